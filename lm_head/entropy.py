"""What codes carry when only their frequencies are known: the baseline that a token language model has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenizer.errors import CodesError

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def code_histogram(codes: npt.NDArray[np.integer], codebook_size: int) -> Counts:
    """How often each entry of each level occurs.

    Args:
        codes: [K, T] or [B, K, T] integers in [0, V).
        codebook_size: V.

    Returns:
        [K, V] counts; histograms of parts of a corpus add up.

    Raises:
        CodesError: not integers of that shape, or outside [0, V).
    """
    codes = np.asarray(codes)
    if codes.ndim not in (2, 3) or not np.issubdtype(codes.dtype, np.integer):
        raise CodesError(f"codes must be integers [K, T] or [B, K, T], not {codes.dtype} {list(codes.shape)}")
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise CodesError(f"codes range from {codes.min()} to {codes.max()}, allowed is 0 to {codebook_size - 1}")
    levels = np.moveaxis(codes, -2, 0).reshape(codes.shape[-2], -1)  # [K, B * T]
    return np.stack([np.bincount(level, minlength=codebook_size) for level in levels.astype(np.int64)])


def order_zero_entropy(histogram: npt.NDArray[np.integer]) -> Floats:
    """Shannon entropy of each level in bits per code: what an ideal coder with these frequencies would spend.

    Args:
        histogram: [K, V] counts; a level without counts has entropy 0.

    Returns:
        [K] bits per code, at most log2(V).
    """
    counts = np.asarray(histogram, np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    logarithm = np.log2(share, out=np.zeros_like(share), where=share > 0)  # x log x is 0 at 0
    bits: Floats = np.maximum(-(share * logarithm).sum(axis=1), 0.0)
    return bits


def perplexity(histogram: npt.NDArray[np.integer]) -> Floats:
    """Number of equally frequent entries with the same entropy, per level: V for perfect use, 1 for collapse."""
    equivalent: Floats = np.exp2(order_zero_entropy(histogram))
    return equivalent
