"""Where streams stand: what encoding and decoding keep between chunks, and batches of it by row.

A batch of streams is one state with a longer first dimension. Streams can share a batch where their states have the
same shapes: where as many samples wait for their frame, and the start of all or of none is still held back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class EncodeState:
    """Where streams being encoded stand. Nothing of it lives on the codec."""

    pending: Tensor  # [B, C, less than a hop] samples that do not fill a frame yet
    network: Any  # nested tuples of tensors, batch dimension first
    num_codebooks: int


@dataclass(frozen=True, slots=True)
class DecodeState:
    """Where streams being decoded stand."""

    network: Any  # nested tuples of tensors, batch dimension first
    owed: int  # samples of frames that went in and have not come out, as layers look ahead


StreamState = TypeVar("StreamState", EncodeState, DecodeState)


def batch_size(state: EncodeState | DecodeState) -> int:
    """Streams in a state."""
    return _leaves(state)[0].shape[0]


def stack_states(states: Sequence[StreamState]) -> StreamState:
    """Streams of several states side by side in one, in order.

    Raises:
        ValueError: no states, or streams that stand at different points of a frame or of their start.
    """
    if not states:
        raise ValueError("no states to stack")
    if len({_phase(state) for state in states}) > 1:
        raise ValueError(
            "streams that hold back different numbers of samples, or have different numbers of codebooks, cannot share "
            "a batch: feed whole frames, and stack streams at their start with streams at their start"
        )
    stacked: StreamState = _combined(lambda rows: torch.cat(list(rows)), *states)
    return stacked


def split_state(state: StreamState) -> list[StreamState]:
    """Each stream of a state as a state of its own, that keeps none of the others' memory."""
    return [select_streams(state, [row]) for row in range(batch_size(state))]


def select_streams(state: StreamState, rows: Sequence[int]) -> StreamState:
    """Some streams of a state, in the order of `rows`."""
    selected: StreamState = _combined(lambda tensors: tensors[0][list(rows)], state)
    return selected


def reset_streams(state: StreamState, rows: Sequence[int], fresh: StreamState) -> StreamState:
    """Some streams start anew, the others go on.

    Args:
        state: of all streams.
        rows: which ones start anew.
        fresh: a state of one stream that has heard nothing, from `encode_state` or `decode_state`.

    Raises:
        ValueError: a stream at its start holds back samples and the others do not, as with mirrored padding, or the
            others wait inside a frame.
    """
    streams = split_state(state)
    for row in rows:
        streams[row] = fresh
    return stack_states(streams)


def _leaves(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in _parts(state) for leaf in _leaves(part)]


def _parts(state: Any) -> Sequence[Any]:
    if dataclasses.is_dataclass(state):
        return [getattr(state, field.name) for field in dataclasses.fields(state)]
    return state if isinstance(state, tuple) else ()


def _phase(state: Any) -> Any:
    """What must be equal for streams to share a batch: all but the values of tensors and the number of streams."""
    if isinstance(state, Tensor):
        return state.shape[1:]
    parts = _parts(state)
    return type(state), tuple(map(_phase, parts)) if len(parts) else state


def _combined(combine: Callable[[Sequence[Tensor]], Tensor], *states: Any) -> Any:
    """One state from several of the same phase, tensor by tensor."""
    first = states[0]
    if isinstance(first, Tensor):
        return combine(states)
    parts = [_combined(combine, *column) for column in zip(*map(_parts, states), strict=True)]
    if dataclasses.is_dataclass(first) or hasattr(first, "_fields"):
        return type(first)(*parts)
    return tuple(parts) if isinstance(first, tuple) else first
