"""Rows in motion, on Ray: shards in, receipts out."""
