"""Layers of streams: each takes a chunk and its state, and returns its output and the next state.

A layer may answer later than it is asked, because it looks ahead or mirrors the start of a stream; `finish` then gives
the rest. What runs beside such a layer waits for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

State: TypeAlias = Any
"""Nested tuples of tensors, batch first, of a shape that only the layer itself knows. Empty where nothing is kept."""


class StreamStart(NamedTuple):
    """State of a layer that has not put out anything yet."""

    held: Tensor


class StreamingLayer(nn.Module, ABC):
    """A layer whose state is an argument and a result, so that one module serves any number of streams."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """State of `batch_size` streams that have heard nothing yet."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process the next chunk [B, C, S] of every stream; an empty chunk is allowed and changes nothing."""

    def finish(self, state: State) -> Tensor | None:  # noqa: ARG002 - layers that hold nothing need no state
        """End every stream: what the layer still holds, or None where it holds nothing."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Process whole streams [B, C, S]: one step from a fresh state, and the end."""
        y, state = self.step(x, self.initial_state(x.shape[0]))
        return joined(y, self.finish(state))


class Chain(nn.Sequential, StreamingLayer):
    """Layers one after the other; the state is the tuple of theirs. Layers without a `step` keep none."""

    def initial_state(self, batch_size: int) -> State:
        """State of every layer, () for those that keep none."""
        return tuple(layer.initial_state(batch_size) if isinstance(layer, StreamingLayer) else () for layer in self)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Pass a chunk through every layer."""
        next_state: list[State] = []
        for layer, past in zip(self, state, strict=True):
            x, kept = layer.step(x, past) if isinstance(layer, StreamingLayer) else (layer(x), ())
            next_state.append(kept)
        return x, tuple(next_state)

    def finish(self, state: State) -> Tensor | None:
        """End every layer in turn: what one still held goes through the next ones before they end."""
        x: Tensor | None = None
        for layer, past in zip(self, state, strict=True):
            if isinstance(layer, StreamingLayer):
                y, past = layer.step(x, past) if x is not None else (None, past)  # noqa: PLW2901 - the same stream goes on
                tail = layer.finish(past)
                x = tail if y is None else joined(y, tail)
            elif x is not None:
                x = layer(x)
        return x


class Network(StreamingLayer):
    """A chain under the name that checkpoints give it."""

    chain_name = "model"

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.add_module(self.chain_name, Chain(*layers))

    @property
    def chain(self) -> Chain:
        """The layers."""
        chain: Chain = getattr(self, self.chain_name)
        return chain

    def initial_state(self, batch_size: int) -> State:
        """State of every layer. Raises ValueError where one of them cannot stream."""
        return self.chain.initial_state(batch_size)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next chunk of every stream to what became known; both may be empty."""
        return self.chain.step(x, state)

    def finish(self, state: State) -> Tensor | None:
        """End every stream: what was held back, or None."""
        return self.chain.finish(state)

    def forward(self, x: Tensor) -> Tensor:
        """Process whole streams."""
        y: Tensor = self.chain(x)
        return y


class Residual(StreamingLayer):
    """block(x) + shortcut(x): [B, C, S] -> [B, C, S]. Where the block lags behind, the input waits for it."""

    def __init__(self, width: int, block: Chain, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.width, self.block, self.shortcut = width, block, shortcut

    def initial_state(self, batch_size: int) -> State:
        """State of the block, and the input that waits for it: none yet."""
        waiting = next(self.block.parameters()).new_zeros(batch_size, self.width, 0)
        return self.block.initial_state(batch_size), waiting

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process the next chunk."""
        past, waiting = state
        y, past = self.block.step(x, past)
        waiting = torch.cat([waiting, x], dim=-1) if waiting.shape[-1] else x
        return y + self._beside(waiting[..., : y.shape[-1]]), (past, waiting[..., y.shape[-1] :].clone())

    def finish(self, state: State) -> Tensor | None:
        """What waits, with the end of the block."""
        past, waiting = state
        y = self.block.finish(past)
        return None if y is None else y + self._beside(waiting)

    def forward(self, x: Tensor) -> Tensor:
        """Process whole streams."""
        y: Tensor = self._beside(x) + self.block(x)
        return y

    def _beside(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return x
        y: Tensor = self.shortcut(x)
        return y


def joined(first: Tensor, second: Tensor | None) -> Tensor:
    """Two pieces of a stream as one; None is nothing."""
    return first if second is None else torch.cat([first, second], dim=-1)
