"""A program for the kernels: operations over buffers, and how it is run over chunks of streams."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizer.engine.library import Kernels
from tokenizer.engine.row_threads import Piece, in_threads, pieces_for_threads
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
    input_scales: Tensor | None  # of integers
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
    block: int = 0  # in frames
    state: int = -1

    def reads(self) -> list[int]:
        """The buffers that it needs."""
        return [*self.inputs, *([] if self.second is None else [self.second])]

    def writes(self) -> list[int]:
        """The buffers that it fills."""
        return [buffer for buffer in (self.output, self.active) if buffer is not None]

    def buffers(self) -> list[int]:
        """All that it reads or writes."""
        return [*self.reads(), *self.writes()]


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
    narrow_input: bool  # whether it is given bfloats, as between stages
    narrow_output: bool
    start_rows: int  # that must be known before a stream can be mirrored; 0 without mirrors
    frame_rows: int  # of the input
    context_frames: int | None  # before a frame, beyond which it hears nothing; None: it hears all
    kept: tuple[Any, ...] = field(repr=False)  # memory that the operations point into
    stages: tuple[Program, ...] = ()  # the same in several programs, which share the state: of those, some can be cut

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
        state = state.contiguous()
        next_state = torch.empty_like(state)
        for program in self.programs_for(x.shape[0], x.shape[1], start=start):
            y = program.run_into(next_state, x, state, start=start)
            if y is None:
                return None
            x = y
        return x, next_state

    def programs_for(self, streams: int, rows: int, *, start: bool = False) -> tuple[Program, ...]:
        """Itself, or its stages where more threads have something to do so."""
        if not self.stages or torch.get_num_threads() <= streams:
            return (self,)
        frames = rows // self.frame_rows
        shared = (len(stage.pieces(streams, frames * stage.frame_rows, start=start)) for stage in self.stages)
        return self.stages if max(shared, default=1) > max(1, streams) else (self,)

    def pieces(self, streams: int, rows: int, *, start: bool = False) -> list[Piece]:
        """What each thread does of a chunk."""
        context = None if start or self.context_frames is None else self.context_frames * self.frame_rows
        return pieces_for_threads(streams, rows, self.frame_rows, context)

    def run_into(self, next_state: Tensor, x: Tensor, state: Tensor, *, start: bool = False) -> Tensor | None:
        """As `run`, of a stage alone: only the parts of the next state that are its own are written."""
        call = CallStruct(
            operations=self.operations,
            buffers=self.buffers,
            num_operations=len(self.operations),
            num_buffers=len(self.buffers),
            num_statistics=self.num_statistics,
            start=int(start),
            narrow_input=int(self.narrow_input),
            state_size=self.state_size,
        )
        number = torch.bfloat16 if self.narrow_output else torch.float32
        y = torch.empty(x.shape[0], self._rows_after(call, x.shape[1]), self.output_width, dtype=number)
        pieces = self.pieces(x.shape[0], x.shape[1], start=start)

        def part(begin: int, end: int) -> int:
            return max(self._run_piece(call, piece, x, state, y, next_state) for piece in pieces[begin:end])

        results = set(in_threads(part, len(pieces)))
        if Result.NO_MEMORY in results:
            raise MemoryError("the engine found no memory for its buffers")
        return None if Result.TOO_SHORT in results else y

    @torch.inference_mode()  # a thread of its own has a mode of its own
    def _run_piece(
        self, call: CallStruct, piece: Piece, x: Tensor, state: Tensor, y: Tensor, next_state: Tensor
    ) -> int:
        streams = slice(piece.first_stream, piece.end_stream)
        target = y[streams, self._rows_after(call, piece.begin) : self._rows_after(call, piece.end)]
        heard = x[streams, piece.begin - piece.heard : piece.end]
        own = (
            target
            if piece.heard == 0
            else target.new_empty(len(target), self._rows_after(call, heard.shape[1]), self.output_width)
        )
        before = state[streams] if piece.begin == 0 else torch.zeros_like(state[streams])
        after = next_state[streams] if piece.end == x.shape[1] else torch.empty_like(before)
        run = CallStruct.from_buffer_copy(call)
        run.streams, run.rows = heard.shape[:2]
        run.input, run.output = heard.data_ptr(), own.data_ptr()
        run.state, run.next_state = before.data_ptr(), after.data_ptr()
        done: int = self.kernels.library.quantone_run(self.kernels.level, ctypes.byref(run))
        if own is not target:
            target.copy_(own[:, -target.shape[1] :])
        return done

    def _rows_after(self, call: CallStruct, rows: int) -> int:
        after: int = self.kernels.library.quantone_output_rows(self.kernels.level, ctypes.byref(call), rows)
        return after
