"""What codes cost under a model: the loss in nats, and what people read, bits by level."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class CodeLoss(NamedTuple):
    """What a batch of codes cost."""

    nats: Tensor  # scalar: mean over all codes that were scored
    bits: Tensor  # [K] per code of each level, without a gradient; NaN where none was scored
    counts: Tensor  # [K] codes of each level that were scored


def code_nats(logits: Tensor, codes: Tensor) -> Tensor:
    """What each code costs: logits [..., V] and codes [...] to nats [...]."""
    flat = functional.cross_entropy(logits.flatten(0, -2).float(), codes.flatten(), reduction="none")
    return flat.reshape(codes.shape)


def to_bits(nats: Tensor) -> Tensor:
    """Natural logarithms to base 2, detached."""
    return nats.detach() / math.log(2)


def frames_within(codes: Tensor, lengths: Tensor | None, *, least: int = 1) -> Tensor:
    """Which frames of codes [B, K, T] are a row's own, and not padding behind it: [B, T].

    Args:
        codes: rows that were padded to one length.
        lengths: [B] frames of each; None for T in all rows.
        least: frames that a row must have.

    Raises:
        ValueError: another number of lengths, or one outside [least, T].
    """
    rows, _, num_frames = codes.shape
    if lengths is None:
        return torch.ones(rows, num_frames, dtype=torch.bool, device=codes.device)
    if lengths.shape != (rows,) or int(lengths.min()) < least or int(lengths.max()) > num_frames:
        raise ValueError(f"lengths are {rows} numbers from {least} to {num_frames}, not {lengths.tolist()}")
    return torch.arange(num_frames, device=codes.device) < lengths[:, None]
