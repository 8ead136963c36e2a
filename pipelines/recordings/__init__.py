"""One recording at a time: compressed to a file and back, or continued by a language model."""
