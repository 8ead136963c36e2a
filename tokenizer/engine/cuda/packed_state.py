"""States of streams as one matrix, a row of floats a stream: stacking, copying and capturing them is one operation.

A network keeps dozens of small tensors for a stream. A service that stacks and splits them one by one spends more time
on that than on the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizer.streaming_layer import State


class _Leaf(NamedTuple):
    """A tensor of a state, without its first dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Branch(NamedTuple):
    """A tuple of a state: the kind it is of, and what it holds."""

    kind: type
    parts: tuple[Any, ...]


class Layout:
    """What a row of a packed state stands for. Layouts of equal structure are equal."""

    __slots__ = ("_hash", "_structure")

    def __init__(self, state: State) -> None:
        self._structure = _structure(state)
        self._hash = hash(self._structure)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Layout) and self._structure == other._structure)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Hashes of types differ from process to process."""
        return _restored, (self._structure,)

    def unpacked(self, values: Tensor) -> State:
        """The state that [B, n] float32 stand for."""
        leaves = list(_leaves(self._structure))
        found: dict[int, Tensor] = {}
        for dtype in _types(leaf.dtype for leaf in leaves):
            numbers = [number for number, leaf in enumerate(leaves) if leaf.dtype == dtype]
            widths = [math.prod(leaves[number].shape) for number in numbers]
            part, values = values[:, : sum(widths)].to(dtype), values[:, sum(widths) :]
            for number, piece in zip(numbers, part.split(widths, dim=1), strict=True):  # type: ignore[no-untyped-call]
                found[number] = piece.unflatten(1, leaves[number].shape)
        return _filled(self._structure, iter([found[number] for number in range(len(leaves))]))


class PackedState(NamedTuple):
    """States of B streams."""

    values: Tensor  # [B, n] float32, which holds every narrower number as it is
    layout: Layout


def packed(state: State) -> PackedState:
    """Any state whose tensors are of float32 or narrower; it has one at least."""
    tensors = list(_tensors(state))
    groups = [
        torch.cat([tensor.flatten(1) for tensor in tensors if tensor.dtype == dtype], dim=1).float()
        for dtype in _types(tensor.dtype for tensor in tensors)
    ]
    return PackedState(torch.cat(groups, dim=1), Layout(state))


def _restored(structure: Any) -> Layout:
    layout = Layout.__new__(Layout)
    layout._structure, layout._hash = structure, hash(structure)  # noqa: SLF001 - of this room
    return layout


def _structure(state: State) -> Any:
    if isinstance(state, Tensor):
        return _Leaf(tuple(state.shape[1:]), state.dtype)
    return _Branch(type(state), tuple(map(_structure, state)))


def _tensors(state: State) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state:
            yield from _tensors(part)


def _leaves(structure: Any) -> Iterator[_Leaf]:
    if isinstance(structure, _Leaf):
        yield structure
    else:
        for part in structure.parts:
            yield from _leaves(part)


def _filled(structure: Any, tensors: Iterator[Tensor]) -> State:
    if isinstance(structure, _Leaf):
        return next(tensors)
    parts = [_filled(part, tensors) for part in structure.parts]
    return structure.kind(*parts) if hasattr(structure.kind, "_fields") else tuple(parts)


def _types(dtypes: Iterator[torch.dtype]) -> list[torch.dtype]:
    """Each once, in an order that depends on nothing else."""
    return sorted(set(dtypes), key=str)
