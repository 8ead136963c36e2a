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

# Values of a window that the next one does not see, where mixtures of rows cost less than they save.
LEAST_UNIT, LEAST_NARROW_UNIT, LEAST_INTEGER_UNIT = 32, 128, 64
# Shares of a window's units in the weights of each product: see kernels/winograd.h.
_WEIGHT_MIXTURES: dict[tuple[int, int], list[list[float]]] = {
    (2, 2): [[1, 0], [1, 1], [0, 1]],
    (2, 3): [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    (4, 2): [[1, 0], [1 / 2, 1 / 2], [1 / 6, -1 / 6], [8 / 3, 4 / 3], [0, 1 / 2]],
    (4, 3): [
        [1 / 2, 0, 0],
        [1 / 6, 1 / 6, 1 / 6],
        [1 / 6, -1 / 6, 1 / 6],
        [16 / 15, 8 / 15, 4 / 15],
        [1 / 30, -1 / 15, 2 / 15],
        [0, 0, 1 / 2],
    ],
}


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
            settings: fields of Operation, and numbers for the kernels; `together` says how many windows may be
                multiplied together.
        """
        together = settings.pop("together", 1)
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
        tensors = self._packed(windows, weights, numbers["stride"], few=few)
        units = (
            0 if few or together == 1 else self._units(windows, numbers["stride"], integers="column_scales" in tensors)
        )
        if units:
            numbers |= {"units": units, "windows": 2 if narrow else together}
            tensors |= self._mixed(weights, numbers["windows"], units, narrow=narrow)
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

    def _packed(self, windows: Sequence[Window], weights: Tensor, stride: int, *, few: bool) -> dict[str, Tensor]:
        """Weights as the kernels read them, and scales where they are integers."""
        narrow = self.buffers[windows[0].buffer].narrow
        if few:
            return {"weights": weights.detach().to(torch.bfloat16 if narrow else torch.float32).contiguous().clone()}
        rows = [(self.buffers[window.buffer].width, window.length) for window in windows]
        integers = self.integers(weights, whole_strides(rows, stride))
        if integers is None:
            return {"weights": self.kernels.pack(weights, narrow=narrow)}
        return {"weights": integers[0], "column_scales": integers[1]}

    def _mixed(self, weights: Tensor, windows: int, units: int, *, narrow: bool) -> dict[str, Tensor]:
        """Those of windows that are multiplied together, product after product."""
        products = mixed_weights(weights, windows, units)
        integers = [self.integers(product, [(product.shape[1], product.shape[1])]) for product in products]
        known = [product for product in integers if product is not None]
        if not known:
            return {"unit_weights": torch.cat([self.kernels.pack(product, narrow=narrow) for product in products])}
        packed, scales = zip(*known, strict=True)
        return {"unit_weights": torch.cat(packed), "unit_scales": torch.cat(scales)}

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

    def _units(self, windows: Sequence[Window], stride: int, *, integers: bool) -> int:
        """How many units a window has, where windows side by side are better multiplied together; otherwise 0."""
        narrow = self.buffers[windows[0].buffer].narrow
        if len(windows) > 1 or (narrow and self.kernels.name == "amx"):  # tiles multiply faster than rows are added
            return 0
        unit = stride * self.buffers[windows[0].buffer].width
        units, rest = divmod(windows[0].length, unit)
        least = LEAST_NARROW_UNIT if narrow else LEAST_INTEGER_UNIT if integers else LEAST_UNIT
        return units if units in (2, 3) and rest == 0 and unit % 16 == 0 and unit >= least else 0

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


def mixed_weights(weights: Tensor, windows: int, units: int) -> list[Tensor]:
    """Weights [columns, units * D] of the products that make some windows at once, [columns, D] each, float64."""
    own = torch.stack(weights.detach().double().chunk(units, dim=1))
    shares = torch.tensor(_WEIGHT_MIXTURES[windows, units], dtype=torch.float64)
    return list(torch.tensordot(shares, own, dims=1))
