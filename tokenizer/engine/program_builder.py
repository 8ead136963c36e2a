"""Programs put together: the operations of a network's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenizer.engine.integer_weights import integer_weights, part_lengths, whole_strides
from tokenizer.engine.library import Kernels
from tokenizer.engine.program import Buffer, Operation, Program, UnsupportedNetworkError, Window
from tokenizer.engine.program_layout import ProgramLayout
from tokenizer.engine.structures import Kind

# Values of a window that the next one does not see, where sums of rows cost less than they save.
LEAST_UNIT, LEAST_NARROW_UNIT = 32, 128


class ProgramBuilder:
    """Collects the operations of one network, and lays them out.

    Args:
        kernels: that will run it.
        fast: whether values between layers are bfloats, or are multiplied as integers, where the kernels have them.
        even: whether rows have whole pairs of values.
        whole_files: for networks that look at the end of a file; otherwise streams come in chunks.
        rows_per_frame: of the input.
        block_frames: in a block, where all layers shall share blocks of one size.
    """

    def __init__(
        self,
        kernels: Kernels,
        *,
        fast: bool,
        even: bool,
        whole_files: bool,
        rows_per_frame: int,
        block_frames: int | None = None,
    ) -> None:
        self.kernels, self.whole_files = kernels, whole_files
        self.narrow = fast and even and kernels.has_bfloat
        self._integers = fast and kernels.fast_numbers == "int16"
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
        """Windows times weights [columns, depth], plus bias.

        Args:
            windows: what they are made of.
            weights: in the windows' order.
            bias: [columns]
            settings: fields of Operation, and numbers for the kernels; `pairs` says that windows come in whole pairs,
                and may be multiplied so.
        """
        pairs = settings.pop("pairs", False)
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
        tensors, units = self._packed(windows, weights, numbers["stride"], few=few, pairs=pairs)
        if units:
            numbers["pair_units"] = units
        self.add(
            Operation(
                Kind.FEW_COLUMNS if few else Kind.MATRIX,
                work=weights.numel() * 4,
                inputs=[window.buffer for window in windows],
                numbers=numbers,
                windows=windows,
                tensors=tensors | {"bias": padded(bias, columns)},
                **fields,
            )
        )

    def _packed(
        self, windows: Sequence[Window], weights: Tensor, stride: int, *, few: bool, pairs: bool
    ) -> tuple[dict[str, Tensor], int]:
        """Weights as the kernels read them, and how many units a window has where two are multiplied together."""
        narrow = self.buffers[windows[0].buffer].narrow
        if few:
            return {"weights": weights.detach().to(torch.bfloat16 if narrow else torch.float32).contiguous().clone()}, 0
        rows = [(self.buffers[window.buffer].width, window.length) for window in windows]
        integers = self.integers(weights, whole_strides(rows, stride))
        if integers is not None:
            return {"weights": integers[0], "column_scales": integers[1]}, 0
        tensors = {"weights": self.kernels.pack(weights, narrow=narrow)}
        units = self._pair_units(windows, stride, narrow=narrow) if pairs else 0
        if units:
            products = pair_products(weights, units)
            tensors["pair_weights"] = torch.cat([self.kernels.pack(product, narrow=narrow) for product in products])
        return tensors, units

    def integers(self, weights: Tensor, rows: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor] | None:
        """Weights [columns, depth] packed as integers, and the scales of columns; None where floats are multiplied.

        Args:
            weights: of a product.
            rows: width and length of each segment of what they are multiplied by.
        """
        parts = part_lengths(rows) if self._integers else None
        if parts is None:
            return None
        words, scales = integer_weights(weights, parts)
        return self.kernels.pack(words.view(torch.float32), narrow=False), padded(scales, len(weights))

    def _pair_units(self, windows: Sequence[Window], stride: int, *, narrow: bool) -> int:
        """How many units a window has, where two windows side by side are better multiplied together; otherwise 0."""
        if len(windows) > 1 or (narrow and self.kernels.name == "amx"):  # tiles multiply faster than rows are added
            return 0
        unit = stride * self.buffers[windows[0].buffer].width
        units, rest = divmod(windows[0].length, unit)
        enough = unit % 16 == 0 and unit >= (LEAST_NARROW_UNIT if narrow else LEAST_UNIT)
        return units if units in (2, 3) and rest == 0 and enough else 0

    def build(self, output: int) -> Program:
        """Lay everything out.

        Args:
            output: the buffer of the result.
        """
        layout = ProgramLayout(
            kernels=self.kernels,
            buffers=self.buffers,
            operations=self.operations,
            whole_files=self.whole_files,
            rows_per_frame=self._rows_per_frame,
            block_frames=self._block_frames,
            start_frames=self.start_frames,
            num_statistics=self._num_statistics,
        )
        return layout.program(output)


def padded(bias: Tensor | None, columns: int) -> Tensor:
    """[columns] to whole vectors; zeros where there is no bias."""
    values = torch.zeros(-(-columns // 64) * 64)
    if bias is not None:
        values[:columns] = bias.detach()
    return values


def pair_products(weights: Tensor, units: int) -> list[Tensor]:
    """Weights [columns, units * D] of the products that make two neighbours, [columns, D] each: see kernels/pairs.h."""
    first, *middle, last = weights.detach().double().chunk(units, dim=1)
    if units == 2:
        return [first, first + last, last]
    return [first, (first + last + middle[0]) / 2, (first + last - middle[0]) / 2, last]
