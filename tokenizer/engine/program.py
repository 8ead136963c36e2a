"""A program for the kernels: operations over buffers, and how it is run over chunks of streams."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizer.engine.library import Kernels
from tokenizer.engine.row_threads import in_threads
from tokenizer.engine.structures import (
    Activation,
    BufferStruct,
    CallStruct,
    Kind,
    OperationStruct,
    Result,
)


class UnsupportedNetworkError(Exception):
    """The kernels have no operation for a layer: its network runs in torch."""


@dataclass(slots=True)
class Buffer:
    """Rows of values, channels last, with the past that later windows need."""

    width: int
    narrow: bool
    left: int = 0
    right: int = 0
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """A part of what is multiplied: `length` values from a row on, relative to the window's first own row."""

    buffer: int
    row: int
    length: int


class RecurrentLayer(NamedTuple):
    """Packed weights of one layer of an LSTM."""

    inputs: Tensor
    recurrent: Tensor | None  # None: the compact ones are all that is used
    compact: Tensor | None
    bias: Tensor


@dataclass(slots=True)
class Operation:
    """One step. What the fields mean is in kernels/program.h."""

    kind: Kind
    work: int  # bytes of weights: operations with few work on small blocks
    inputs: Sequence[int]
    numbers: dict[str, int] = field(default_factory=dict)
    output: int | None = None
    active: int | None = None
    activation: Activation = Activation.NONE
    second: int | None = None
    windows: Sequence[Window] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)  # weights, bias, gain ...
    layers: Sequence[RecurrentLayer] = ()
    group: int = 0
    block: int = 0
    state: int = -1

    def buffers(self) -> set[int]:
        """All that it reads or writes."""
        others = (self.output, self.active, self.second)
        return {*self.inputs, *(buffer for buffer in others if buffer is not None)}


@dataclass(frozen=True, slots=True)
class Program:
    """A network as the kernels run it. Everything in it is constant, so that any number of threads may run it."""

    kernels: Kernels
    operations: ctypes.Array[OperationStruct]
    buffers: ctypes.Array[BufferStruct]
    num_statistics: int
    state_size: int  # floats of a stream
    input_width: int
    output_width: int
    start_rows: int  # that must be known before a stream can be mirrored; 0 without mirrors
    kept: tuple[Any, ...] = field(repr=False)  # memory that the operations point into

    def run(self, x: Tensor, state: Tensor, *, start: bool = False) -> tuple[Tensor, Tensor] | None:
        """One chunk of streams.

        Args:
            x: [B, rows, input_width] float32, contiguous.
            state: [B, state_size]; streams that begin have zeros.
            start: whether the streams begin here, and their start is to be mirrored.

        Returns:
            [B, rows out, output_width] and the next state; None where there are too few rows to be mirrored.

        Raises:
            MemoryError: there is not enough.
        """
        call = CallStruct(
            operations=self.operations,
            buffers=self.buffers,
            num_operations=len(self.operations),
            num_buffers=len(self.buffers),
            num_statistics=self.num_statistics,
            start=int(start),
            rows=x.shape[1],
            state_size=self.state_size,
        )
        state = state.contiguous()
        library, level = self.kernels.library, self.kernels.level
        rows = library.quantone_output_rows(level, ctypes.byref(call), x.shape[1])
        y = torch.empty(x.shape[0], rows, self.output_width)
        next_state = torch.empty_like(state)

        def part(begin: int, end: int) -> int:
            own = CallStruct.from_buffer_copy(call)
            own.streams = end - begin
            own.input, own.output = x[begin:end].data_ptr(), y[begin:end].data_ptr()
            own.state, own.next_state = state[begin:end].data_ptr(), next_state[begin:end].data_ptr()
            done: int = library.quantone_run(level, ctypes.byref(own))
            return done

        results = set(in_threads(part, x.shape[0]))
        if Result.NO_MEMORY in results:
            raise MemoryError("the engine found no memory for its buffers")
        return None if Result.TOO_SHORT in results else (y, next_state)
