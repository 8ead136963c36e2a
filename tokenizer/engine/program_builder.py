"""Programs put together: the operations of a network's layers, and where their values lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenizer.engine.library import Kernels
from tokenizer.engine.program import Buffer, Operation, Program, UnsupportedNetworkError, Window
from tokenizer.engine.structures import BufferStruct, Kind, OperationStruct, SegmentStruct

SMALL, LARGE = 300_000, 2_000_000  # bytes of weights in float32
FRAMES = {"small": 4, "medium": 32}  # in a block: its rows and the weights fit into a core's caches together


class ProgramBuilder:
    """Collects the operations of one network, and lays them out.

    Args:
        kernels: that will run it.
        narrow: whether values between layers are bfloats.
        whole_files: for networks that look at the end of a file; otherwise streams come in chunks.
        rows_per_frame: of the input.
        block_frames: in a block, where all layers shall share blocks of one size.
    """

    def __init__(
        self, kernels: Kernels, *, narrow: bool, whole_files: bool, rows_per_frame: int, block_frames: int | None = None
    ) -> None:
        self.kernels, self.narrow, self.whole_files = kernels, narrow, whole_files
        self._rows_per_frame, self._block_frames = rows_per_frame, block_frames
        self.buffers: list[Buffer] = []
        self.operations: list[Operation] = []
        self.start_frames = 0
        self._num_statistics = 0

    def buffer(self, width: int, *, narrow: bool | None = None) -> int:
        """A new buffer; by default of the program's numbers."""
        if width > 16384:
            raise UnsupportedNetworkError("rows are too wide")
        self.buffers.append(Buffer(width, self.narrow if narrow is None else narrow))
        return len(self.buffers) - 1

    def statistics(self) -> int:
        """A new place for the sums of a group norm."""
        self._num_statistics += 1
        return self._num_statistics - 1

    def add(self, operation: Operation) -> None:
        """The next operation."""
        self.operations.append(operation)

    def matrix(self, windows: Sequence[Window], weights: Tensor, bias: Tensor | None, **settings: Any) -> None:
        """Windows times weights [columns, depth], plus bias. Settings: fields of Operation, numbers for the kernels."""
        narrow = self.buffers[windows[0].buffer].narrow
        if len(windows) > 32 or any(self.buffers[window.buffer].narrow != narrow for window in windows):
            raise UnsupportedNetworkError("windows of too many parts, or of different numbers")
        columns = weights.shape[0]
        fields = {
            key: settings.pop(key) for key in list(settings) if key in ("output", "active", "activation", "second")
        }
        numbers = {"stride": 1, "up": 1, "statistics": -1, "columns": columns, **settings}
        simple = fields.keys() == {"output"} and numbers["up"] == 1 and numbers["statistics"] < 0
        few = columns <= 4 and simple and not self.buffers[fields["output"]].narrow
        if few:
            packed = weights.detach().to(torch.bfloat16 if narrow else torch.float32).contiguous().clone()
        else:
            packed = self.kernels.pack(weights, narrow=narrow)
        padded = torch.zeros(-(-columns // 64) * 64)
        if bias is not None:
            padded[:columns] = bias.detach()
        self.add(
            Operation(
                Kind.FEW_COLUMNS if few else Kind.MATRIX,
                work=weights.numel() * 4,
                inputs=[window.buffer for window in windows],
                numbers=numbers,
                windows=windows,
                tensors={"weights": packed, "bias": padded},
                **fields,
            )
        )

    def build(self, output: int) -> Program:
        """Lay everything out.

        Args:
            output: the buffer of the result.
        """
        self._form_groups()
        order = [index for index in range(len(self.buffers)) if index != output] + [output]
        place = {index: number for number, index in enumerate(order)}
        state_size = self._place_states()
        structs = (BufferStruct * len(order))(*(self._buffer_struct(index, index == output) for index in order))
        kept: list[Any] = []
        operations = (OperationStruct * len(self.operations))(
            *(_operation_struct(operation, place, kept) for operation in self.operations)
        )
        return Program(
            kernels=self.kernels,
            operations=operations,
            buffers=structs,
            num_statistics=self._num_statistics,
            state_size=state_size,
            input_width=self.buffers[0].width,
            output_width=self.buffers[output].width,
            start_rows=self.start_frames * self._rows_per_frame,
            kept=tuple(kept),
        )

    def _form_groups(self) -> None:
        """Consecutive operations that work on blocks of one size."""
        group, size = -1, None
        for operation in self.operations:
            block = self._block(operation)
            if block != size:
                group, size = group + 1, block
            operation.group, operation.block = group, block

    def _block(self, operation: Operation) -> int:
        """Input rows in a block: 0 for all of all streams, -1 for all of one stream."""
        if operation.kind == Kind.LSTM:
            return 0
        if self.whole_files:
            return -1
        frames = self._block_frames or (
            FRAMES["small"] if operation.work < SMALL else FRAMES["medium"] if operation.work < LARGE else 0
        )
        return max(frames, self.start_frames if frames else 0) * self._rows_per_frame

    def _place_states(self) -> int:
        """Where in a stream's state each past stands; returns the size of all. Kept in `_states` by buffer."""
        self._states: dict[int, int] = {}
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

    def _buffer_struct(self, index: int, is_output: bool) -> BufferStruct:
        buffer = self.buffers[index]
        groups = {operation.group for operation in self.operations if index in operation.buffers()}
        return BufferStruct(
            width=buffer.width,
            left=buffer.left,
            right=buffer.right,
            narrow=int(buffer.narrow),
            whole=int(index == 0 or is_output or len(groups) > 1),
            mirrored=int(buffer.mirrored),
            state=self._states.get(index, -1),
        )


def _operation_struct(operation: Operation, place: dict[int, int], kept: list[Any]) -> OperationStruct:
    segments = [SegmentStruct(place[window.buffer], window.row, window.length) for window in operation.windows]
    struct = OperationStruct(
        kind=operation.kind,
        activation=operation.activation,
        group=operation.group,
        block=operation.block,
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
        struct.layer_weights = _pointers(weights)
        struct.layer_compact = _pointers([layer.compact for layer in operation.layers])
        struct.layer_biases = _pointers([layer.bias for layer in operation.layers])
    kept += [struct, segments, operation.tensors, operation.layers]
    return struct


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
