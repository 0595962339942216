"""Benchmarks: one file a question, LOG.md for the answers."""
