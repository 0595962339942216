"""Text to vector, in torch: models, tokens, batches, attention. Knows neither Ray nor Lance."""
