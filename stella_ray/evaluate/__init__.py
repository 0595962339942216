"""How good the encoder is: C-MTEB and long-text retrieval."""
