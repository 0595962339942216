"""Vectors at rest, in Lance: open, write, commit, publish, search."""
