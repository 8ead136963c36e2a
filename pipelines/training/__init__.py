"""Training of codecs and language models: recipes, data, the loop around both, checkpoints and logs."""
