"""Statistics and models of codes: what they carry, and how few bits hold them."""

from lm_head.entropy import code_histogram, order_zero_entropy, perplexity

__all__ = ["code_histogram", "order_zero_entropy", "perplexity"]
