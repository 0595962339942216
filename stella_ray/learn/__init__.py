"""How the encoder improves, in torch: the fine-tuning recipe."""
