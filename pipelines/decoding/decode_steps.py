"""States of streams on the model's side: batched while the same streams go on together, taken apart only when not."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer import Codec
from tokenizer.stream_state import DecodeState

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ParkedState:
    """The network state of one stream, in main memory."""

    state: DecodeState
    nbytes: int


class _Group:
    """Streams that took their last step together: one state, one row for each key."""

    def __init__(self, keys: list[int], state: DecodeState) -> None:
        self.keys = keys  # some may have left since
        self.advance(state)

    def advance(self, state: DecodeState) -> None:
        """Take the state after a step."""
        self.state, self.leaves = state, list(_leaves(state.network))


_Run: TypeAlias = tuple[_Group, int, int]  # consecutive rows of a group, from, to


class StreamStates:
    """The states of all streams of one codec, by key. A key that is not known is a stream at its start.

    Only the model thread may use it. Streams can share a step where they are of one phase: at their start all are, and
    later those whose networks hold back equally much, which for most codecs again are all.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._places: dict[int, _Group] = {}
        self._phases: dict[Hashable, Hashable] = {}
        self.device = next(codec.parameters()).device

    @property
    def start_phase(self) -> Hashable:
        """The phase of streams at their start."""
        phase = _phase(self._codec.decode_state(1))
        return self._phases.setdefault(phase, phase)

    def step(self, codes: Mapping[int, NDArray[np.integer]]) -> tuple[dict[int, Samples], Hashable, int]:
        """The next frames of streams of one phase.

        Args:
            codes: [K, T] of each stream, by key, all of one shape, already checked.

        Returns:
            Samples [C, n] of each stream that became known, the phase in which all are now, and how many samples the
            networks hold back.
        """
        group = self._gathered(list(codes))
        batch = np.stack([codes[key] for key in group.keys]).astype(np.int64)  # [R, K, T]
        waveform, state = self._codec.decode_step(torch.from_numpy(batch), group.state)
        group.advance(state)
        phase = _phase(state)
        # One object for equal phases: comparing them is then comparing addresses.
        return self._by_key(group, waveform), self._phases.setdefault(phase, phase), state.owed

    def flush(self, keys: Sequence[int]) -> dict[int, Samples]:
        """End streams of one phase: the samples [C, n] that were held back. Their keys are forgotten."""
        group = self._gathered(list(keys))
        waveform, _ = self._codec.decode_flush(group.state)
        self.drop(keys)
        return self._by_key(group, waveform)

    def drop(self, keys: Iterable[int]) -> None:
        """Forget streams. Their rows go when their neighbours are next put together."""
        for key in keys:
            self._places.pop(key, None)

    def park(self, key: int) -> ParkedState | None:
        """Take a stream's state out of the device; None for a stream at its start."""
        group = self._places.pop(key, None)
        if group is None:
            return None
        row = group.keys.index(key)
        leaves = [leaf[row : row + 1].to("cpu", copy=True) for leaf in group.leaves]
        return ParkedState(_with_leaves(group.state, leaves), sum(leaf.nbytes for leaf in leaves))

    def resume(self, key: int, parked: ParkedState) -> None:
        """Put a parked state back under a key."""
        leaves = [leaf.to(self.device) for leaf in _leaves(parked.state.network)]
        self._place(_Group([key], _with_leaves(parked.state, leaves)))

    def _by_key(self, group: _Group, waveform: Tensor) -> dict[int, Samples]:
        samples: Samples = waveform.float().cpu().numpy()  # [R, C, n]
        # Copies: a view of one row would keep the samples of all its neighbours in memory until it is read.
        return {key: row.copy() for key, row in zip(group.keys, samples, strict=True)}

    def _gathered(self, keys: list[int]) -> _Group:
        """Streams in one group: as it is where it has just these, else put together from where they are."""
        fresh = [key for key in keys if key not in self._places]
        if fresh:
            self._place(_Group(fresh, self._codec.decode_state(len(fresh))))
        groups = list(dict.fromkeys(self._places[key] for key in keys))
        if len(groups) == 1 and len(groups[0].keys) == len(keys):
            return groups[0]
        wanted = set(keys)
        together = _put_together([run for group in groups for run in self._runs(group, wanted)])
        self._place(together)
        for group in groups:
            self._let_go(group)
        return together

    def _place(self, group: _Group) -> None:
        self._places.update(dict.fromkeys(group.keys, group))

    def _runs(self, group: _Group, wanted: Container[int]) -> list[_Run]:
        """Where a group has streams that are wanted."""
        runs: list[_Run] = []
        for row, key in enumerate(group.keys):
            if key in wanted and self._places.get(key) is group:
                start = runs.pop()[1] if runs and runs[-1][2] == row else row
                runs.append((group, start, row + 1))
        return runs

    def _let_go(self, group: _Group) -> None:
        """Give memory back: few streams that stayed behind move out of a group that was much larger."""
        rest = self._runs(group, self._places)
        if rest and 4 * sum(end - start for _, start, end in rest) <= len(group.keys):
            self._place(_put_together(rest))


def _put_together(runs: Sequence[_Run]) -> _Group:
    """A group with a state of its own, from rows of others that are of one phase."""
    columns = zip(*([leaf[start:end] for leaf in group.leaves] for group, start, end in runs), strict=True)
    keys = [key for group, start, end in runs for key in group.keys[start:end]]
    return _Group(keys, _with_leaves(runs[0][0].state, [torch.cat(column) for column in columns]))


def _phase(state: DecodeState) -> Hashable:
    """What streams that share a step have in common: the samples held back, and where in the networks they are held."""
    return state.owed, _shapes(state.network)


def _shapes(part: Any) -> Hashable:
    if isinstance(part, Tensor):
        return part.shape[1:]
    return type(part), *map(_shapes, part)


def _leaves(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    else:
        for inner in part:
            yield from _leaves(inner)


def _with_leaves(state: DecodeState, leaves: Sequence[Tensor]) -> DecodeState:
    """A state of the same shape with other tensors."""
    return DecodeState(_filled(state.network, iter(leaves)), state.owed)


def _filled(part: Any, leaves: Iterator[Tensor]) -> Any:
    if isinstance(part, Tensor):
        return next(leaves)
    inner = [_filled(one, leaves) for one in part]
    return type(part)(*inner) if hasattr(part, "_fields") else tuple(inner)
