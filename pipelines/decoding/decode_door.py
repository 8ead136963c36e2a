"""What the decoding service accepts: codes and scales as arrays, checked here once and trusted afterwards."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer import CodecSpec, CodesError
from tokenizer.door import checked_scales


def checked_codes(
    codes: NDArray[np.integer], spec: CodecSpec, *, num_codebooks: int | None = None
) -> NDArray[np.uint16]:
    """Codes [K, T] as a copy that is two bytes each.

    Args:
        codes: any integer type, at least one frame.
        spec: the codec's.
        num_codebooks: K; None takes any number of levels that the codec has.

    Raises:
        CodesError: wrong shape, type, number of levels or range.
    """
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu":
        what = f"{codes.dtype} {list(codes.shape)}" if isinstance(codes, np.ndarray) else type(codes).__name__
        raise CodesError(f"codes must be an array of integers [K, T], not {what}")
    levels, frames = codes.shape
    if not 1 <= levels <= spec.num_codebooks or num_codebooks not in (None, levels):
        allowed = f"1 to {spec.num_codebooks}" if num_codebooks is None else num_codebooks
        raise CodesError(f"codes must have {allowed} levels, not {levels}: [K, T] is [levels, frames]")
    if frames < 1:
        raise CodesError("codes must have at least one frame")
    low, high = codes.min(), codes.max()
    if low < 0 or high >= spec.codebook_size:
        raise CodesError(f"codes range from {low} to {high}, allowed is 0 to {spec.codebook_size - 1}")
    return codes.astype(np.uint16)


def checked_length(num_frames: int, num_samples: int | None, spec: CodecSpec) -> int:
    """Samples that so many frames stand for.

    Args:
        num_frames: T.
        num_samples: what the caller says; None for all samples of all frames.
        spec: the codec's.

    Raises:
        CodesError: the frames are too few or too many for the samples, or make up no file of a codec with segments.
    """
    if num_samples is None:
        num_samples = _most_samples(num_frames, spec)
    if num_samples < 1:
        raise CodesError(f"num_samples must be at least 1, not {num_samples}")
    wanted = spec.num_frames(num_samples)
    if wanted != num_frames:
        raise CodesError(f"{num_samples} samples are {wanted} frames, the codes have {num_frames}")
    return num_samples


def checked_loudness(scales: NDArray[np.floating] | None, num_samples: int, spec: CodecSpec) -> Tensor | None:
    """Scales [N], one of each segment, as [1, N] float32; None for codecs that have none.

    Raises:
        CodesError: wrong shape, type or number, not positive, or missing.
    """
    batch = None
    if scales is not None:
        if not isinstance(scales, np.ndarray) or scales.ndim != 1 or scales.dtype.kind != "f":
            what = f"{scales.dtype} {list(scales.shape)}" if isinstance(scales, np.ndarray) else type(scales).__name__
            raise CodesError(f"scales must be an array of floats [N], not {what}")
        batch = torch.from_numpy(scales.astype(np.float64)).float()[None]
    return checked_scales(batch, torch.zeros(1, 1, 0), spec, num_samples)


def _most_samples(num_frames: int, spec: CodecSpec) -> int:
    """The most samples that need no more than so many frames."""
    low, high = 0, num_frames * spec.hop_length
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if spec.num_frames(middle) <= num_frames else (low, middle - 1)
    return low
