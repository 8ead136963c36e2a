"""Where everything of a program lies: groups of operations, buffers, states, and stages that threads can share."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from tokenizer.engine.library import Kernels
from tokenizer.engine.program import Buffer, Operation, Program
from tokenizer.engine.structures import BufferStruct, Kind, OperationStruct, SegmentStruct

SMALL, LARGE = 300_000, 2_000_000  # bytes of weights in float32
FRAMES = {"small": 4, "medium": 32}  # in a block: its rows and the weights fit into a core's caches together


@dataclass(slots=True, kw_only=True)
class ProgramLayout:
    """Lays out what a ProgramBuilder has collected; its fields are explained there."""

    kernels: Kernels
    buffers: Sequence[Buffer]
    operations: Sequence[Operation]
    whole_files: bool
    rows_per_frame: int
    block_frames: int | None
    start_frames: int
    num_statistics: int
    _states: dict[int, int] = field(default_factory=dict, init=False)  # where a buffer's past stands

    def program(self, output: int) -> Program:
        """All operations; `output` is the buffer of the result."""
        self._form_groups()
        state_size = self._place_states()
        rates = self._rates()
        whole = self._laid_out(self.operations, 0, output, rates, state_size)
        stages = [self._laid_out(*stage, rates, state_size) for stage in self._stages(output)]
        return replace(whole, stages=tuple(stages))

    def _stages(self, output: int) -> list[tuple[list[Operation], int, int]]:
        """What comes before an LSTM, the LSTM, and what comes after it, each with its input and its output.

        Nothing where there is no LSTM to be told from the rest, or where more than one buffer goes from stage to stage.
        """
        if self.whole_files:
            return []
        stages = [list(some) for _, some in itertools.groupby(self.operations, lambda each: each.kind == Kind.LSTM)]
        sources = [0, *(stage[0].inputs[0] for stage in stages[1:])]
        for stage, source in zip(stages, sources, strict=True):
            read = {buffer for each in stage for buffer in each.reads()}
            if not read <= {source, *(buffer for each in stage for buffer in each.writes())}:
                return []
        return list(zip(stages, sources, [*sources[1:], output], strict=True)) if len(stages) > 1 else []

    def _laid_out(
        self, operations: Sequence[Operation], source: int, output: int, rates: dict[int, Fraction], state_size: int
    ) -> Program:
        used = dict.fromkeys(buffer for operation in operations for buffer in operation.buffers())
        order = [source, *(index for index in used if index not in (source, output)), output]
        place = {index: number for number, index in enumerate(order)}
        structs = (BufferStruct * len(order))(
            *(self._buffer_struct(index, operations, source, output) for index in order)
        )
        kept: list[Any] = []
        frame_rows = math.ceil(rates[source])
        structures = [_operation_struct(operation, place, frame_rows, kept) for operation in operations]
        return Program(
            kernels=self.kernels,
            operations=(OperationStruct * len(structures))(*structures),
            buffers=structs,
            num_statistics=self.num_statistics,
            state_size=state_size,
            input_width=self.buffers[source].width,
            output_width=self.buffers[output].width,
            narrow_input=source != 0 and self.buffers[source].narrow,
            narrow_output=self.buffers[output].narrow,
            start_rows=self.start_frames * frame_rows,
            frame_rows=frame_rows,
            context_frames=self._context_frames(operations, output, rates),
            kept=tuple(kept),
        )

    def _rates(self) -> dict[int, Fraction]:
        """Rows of a frame in each buffer."""
        rates = {0: Fraction(self.rows_per_frame)}
        for operation in self.operations:
            rate = rates[operation.inputs[0]] / operation.numbers.get("stride", 1)
            up = operation.numbers.get("length" if operation.kind == Kind.OVERLAP_ADD else "up", 1)
            rates |= dict.fromkeys(operation.writes(), rate * up)
        return rates

    def _context_frames(self, operations: Sequence[Operation], output: int, rates: dict[int, Fraction]) -> int | None:
        """How many frames before it a frame hears at most: all that windows reach back, one layer after the other."""
        if self.whole_files or any(operation.kind == Kind.LSTM for operation in operations):
            return None
        heard = {buffer for operation in operations for buffer in operation.buffers()} - {output}
        return sum(math.ceil(self.buffers[index].left / rates[index]) for index in heard)

    def _form_groups(self) -> None:
        """Consecutive operations that work on blocks of one size."""
        group, size = -1, None
        for operation in self.operations:
            block = self._block(operation)
            if block != size:
                group, size = group + 1, block
            operation.group, operation.block = group, block

    def _block(self, operation: Operation) -> int:
        """Frames in a block: 0 for all of all streams, -1 for all of one stream."""
        if operation.kind == Kind.LSTM:
            return 0
        if self.whole_files:
            return -1
        frames = self.block_frames or (
            FRAMES["small"] if operation.work < SMALL else FRAMES["medium"] if operation.work < LARGE else 0
        )
        return max(frames, self.start_frames if frames else 0)

    def _place_states(self) -> int:
        """Find a place for each past in a stream's state; returns the size of all."""
        size = 0
        for index, buffer in enumerate(self.buffers):
            if buffer.left and not self.whole_files:
                self._states[index] = size
                size += buffer.left * buffer.width
        for operation in self.operations:
            if operation.kind == Kind.LSTM and not self.whole_files:
                operation.state = size
                size += 2 * len(operation.layers) * self.buffers[operation.inputs[0]].width
        return size

    def _buffer_struct(self, index: int, operations: Sequence[Operation], source: int, output: int) -> BufferStruct:
        buffer = self.buffers[index]
        groups = {operation.group for operation in operations if index in operation.buffers()}
        if index == output:  # who reads it keeps its past
            return BufferStruct(width=buffer.width, narrow=int(buffer.narrow), whole=1, state=-1)
        return BufferStruct(
            width=buffer.width,
            left=buffer.left,
            right=buffer.right,
            narrow=int(buffer.narrow),
            whole=int(index == source or len(groups) > 1),
            mirrored=int(buffer.mirrored),
            state=self._states.get(index, -1),
        )


def _operation_struct(operation: Operation, place: dict[int, int], frame_rows: int, kept: list[Any]) -> OperationStruct:
    segments = [SegmentStruct(place[window.buffer], window.row, window.length) for window in operation.windows]
    struct = OperationStruct(
        kind=operation.kind,
        activation=operation.activation,
        group=operation.group,
        block=operation.block * frame_rows if operation.block > 0 else operation.block,
        input=place[operation.inputs[0]],
        second=-1 if operation.second is None else place[operation.second],
        output=-1 if operation.output is None else place[operation.output],
        active=-1 if operation.active is None else place[operation.active],
        num_segments=len(segments),
        layers=len(operation.layers),
        state=operation.state,
        segments=(SegmentStruct * len(segments))(*segments) if segments else None,
    )
    for name, number in operation.numbers.items():
        setattr(struct, name, number)
    for name, tensor in operation.tensors.items():
        setattr(struct, name, tensor.data_ptr())
    if operation.layers:
        weights = [part for layer in operation.layers for part in (layer.inputs, layer.recurrent)]
        struct.layer_scales = _pointers([layer.input_scales for layer in operation.layers])
        struct.layer_weights = _pointers(weights)
        struct.layer_compact = _pointers([layer.compact for layer in operation.layers])
        struct.layer_biases = _pointers([layer.bias for layer in operation.layers])
    kept += [struct, segments, operation.tensors, operation.layers]
    return struct


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
