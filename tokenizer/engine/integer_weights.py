"""Weights as 16-bit integers, for kernels/integers.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_INTEGER = 8191  # of what they are multiplied by
PART_VALUES = 256  # of a row, summed in 32 bits
MOST_SEGMENTS, MOST_PARTS, LEAST_WIDTH = 4, 128, 32
_MOST_WEIGHT = 32767
_MOST_SUM = 2**31 - 1


class IntegerWeights(NamedTuple):
    """Pairs of integers as words, and what a column's integers are multiplied by."""

    words: Tensor  # [columns, depth / 2], int32
    scales: Tensor  # [columns]


def part_lengths(segments: Sequence[tuple[int, int]]) -> list[int] | None:
    """Values of each part that the kernels sum in integers; None where they cannot.

    Args:
        segments: of a window: the width of their rows, and how many values they have.
    """
    if len(segments) > MOST_SEGMENTS:
        return None
    lengths = []
    for width, length in segments:
        if width < LEAST_WIDTH or width % 16 or length % width:
            return None
        row = [min(PART_VALUES, width - first) for first in range(0, width, PART_VALUES)]
        lengths += row * (length // width)
    return lengths if len(lengths) <= MOST_PARTS else None


def whole_strides(rows: Sequence[tuple[int, int]], stride: int) -> list[tuple[int, int]]:
    """The rows of a stride as one row, where all segments of a window are whole strides long: longer parts.

    Args:
        rows: width and length of each segment.
        stride: rows from one window to the next.
    """
    whole = all(length % (width * stride) == 0 for width, length in rows)
    return [(width * stride if whole else width, length) for width, length in rows]


def integer_weights(weights: Tensor, lengths: Sequence[int]) -> IntegerWeights:
    """Weights [columns, depth] as integers; the sums of no part leave 32 bits.

    Args:
        weights: in float32.
        lengths: of the parts.
    """
    values = weights.detach().double()
    parts = torch.split(values, list(lengths), dim=1)
    largest_sum = torch.stack([part.abs().sum(dim=1) for part in parts]).amax(dim=0)
    # Rounding may add half a unit to each weight of a part.
    room = _MOST_SUM / MOST_INTEGER - PART_VALUES / 2
    scales = torch.maximum(values.abs().amax(dim=1) / _MOST_WEIGHT, largest_sum / room)
    integers = (values / scales.clamp_min(1e-300)[:, None]).round().to(torch.int16)
    return IntegerWeights(integers.contiguous().view(torch.int32), scales.float())
