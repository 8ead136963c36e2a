"""Weight norm in checkpoints: weights at rest are folded here, and split into length and direction elsewhere.

Source: weight normalization, arXiv:1602.07868.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tokenizer.checkpoint_layout import require_floats

# where weight norm keeps a weight's length and its direction: torch's old spelling, and its new one
HOOK_SPELLING = (".weight_g", ".weight_v")
PARAMETRIZED_SPELLING = (".parametrizations.weight.original0", ".parametrizations.weight.original1")
_SQUARE_BITS = 40  # of the largest square of a row: 2^22 of them fit into 63 bits


def fold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply lengths and directions back into weights.

    Raises:
        ValueError: half of a pair is missing, or the halves do not fit each other.
    """
    folded = dict(tensors)
    for length_suffix, direction_suffix in (HOOK_SPELLING, PARAMETRIZED_SPELLING):
        for length_key in [key for key in tensors if key.endswith(length_suffix)]:
            layer = length_key.removesuffix(length_suffix)
            direction = folded.pop(layer + direction_suffix, None)
            length = folded.pop(length_key)
            if direction is None:
                raise ValueError(f"weights missing {layer + direction_suffix}")
            require_floats(length_key, length)
            require_floats(layer + direction_suffix, direction)
            if direction.dim() != 3 or length.shape != (direction.shape[0], 1, 1):
                raise ValueError(f"{length_key} is {list(length.shape)}, {direction_suffix} {list(direction.shape)}")
            folded[f"{layer}.weight"] = _weight(direction.float(), length.float())
    return folded


def split(tensors: Mapping[str, Tensor], keys: Iterable[str], spelling: tuple[str, str]) -> dict[str, Tensor]:
    """The inverse of `fold` for some weights, chosen so that folding gives exactly these weights again.

    With the weight itself as direction and its own norm as length, the factor between them is exactly one. A row of
    zeros has no direction: any does, as its length is zero.

    Raises:
        ValueError: a weight does not survive it, being too large or too small for its norm to be a float.
    """
    parted = dict(tensors)
    for key in keys:
        weight = parted.pop(key).contiguous()
        empty = (weight == 0).flatten(1).all(dim=1)[:, None, None]
        direction = torch.where(empty, torch.copysign(torch.ones_like(weight), weight), weight)
        length = torch.where(empty, 0.0, _norm(direction).float())
        if not torch.equal(_weight(direction, length), weight):
            raise ValueError(f"{key} has values that weight norm cannot express in floats")
        layer = key.removesuffix(".weight")
        parted[layer + spelling[0]], parted[layer + spelling[1]] = length, direction
    return parted


def _weight(direction: Tensor, length: Tensor) -> Tensor:
    """length * direction / |direction|, row by row, with the same bits on every machine.

    A codec's identity is a hash of its weights, and torch's own operation sums the norm in an order that depends on the
    processor. Here only the factor is computed, exactly, and rounded once. A factor that is one within the rounding of
    `length` is one.
    """
    factor = length.double() / _norm(direction)
    factor = torch.where((factor - 1).abs() < 2**-23, 1.0, factor).float()
    return direction * factor


def _norm(direction: Tensor) -> Tensor:
    """Euclidean norm of each row, float64 [rows, 1, 1]: squares are summed as integers, which no order can change."""
    squares = direction.double().square()  # exact: a float has 24 bits
    _, exponent = torch.frexp(squares.amax(dim=(1, 2), keepdim=True))
    shift = _SQUARE_BITS - exponent
    total = torch.ldexp(squares, shift).round().to(torch.int64).sum(dim=(1, 2), keepdim=True)
    return torch.ldexp(total.double(), -shift).sqrt()
