"""Residual units near the sample rate as one Triton kernel, where a check on the device finds that it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.convolution import Conv1d
from tokenizer.engine.cuda.agreement import first_line, relative_error
from tokenizer.engine.cuda.bfloat_layers import mirrored, rows_of, side_by_side
from tokenizer.engine.cuda.device import on_device
from tokenizer.streaming_layer import Residual, State, StreamingLayer, StreamStart

MAX_WIDTH = 64  # wider units do enough arithmetic to hide their memory, and their weights fill the registers
MIN_WIDTH = 16  # of a product on tensor cores
TOLERANCE = 1e-2
_CHECK_SAMPLES = 1000  # more than one block of the kernel, and not a whole number of blocks

Kernel = Callable[..., Tensor]
"""`residual_kernel.run_unit`."""


class FusedUnit(StreamingLayer):
    """A causal residual unit in bfloat16 whose chunks a kernel takes, with the states of the unit itself."""

    def __init__(self, unit: Residual, kernel: Kernel) -> None:
        super().__init__()
        self.unit, self._kernel = unit, kernel
        first, last, *others = _convolutions(unit)
        beside = others[0] if others else last  # any weights, if none stand beside
        self._left, self._dilation = first.left, first.conv.dilation[1]
        tensors = [
            _taps(first.conv.weight),
            _bias(first),
            _taps(last.conv.weight)[0].contiguous(),
            _bias(last),
            _taps(beside.conv.weight)[0].contiguous(),
            _bias(beside),
        ]
        self._names = [f"tensor{number}" for number in range(len(tensors))]
        for name, tensor in zip(self._names, tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """As the unit's."""
        return self.unit.initial_state(batch_size)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The kernel where a past is there or can be mirrored; the unit itself for the few first samples else."""
        (_, heard, *rest), waiting = state
        start = isinstance(heard, StreamStart)
        if x.shape[-1] <= self._left or (start and heard.held.shape[-1]):
            return self.unit.step(x, state)
        active = functional.elu(x[..., : self._left + 1])
        past = mirrored(active, self._left) if start else heard
        weights = tuple(self.get_buffer(name) for name in self._names)
        y = self._kernel(
            rows_of(x), rows_of(past), weights, dilation=self._dilation, shortcut=self.unit.shortcut is not None
        )
        kept = functional.elu(x[..., x.shape[-1] - self._left :])
        return y.transpose(1, 2), (((), kept.clone(), *rest), waiting)

    def finish(self, state: State) -> Tensor | None:
        """As the unit's."""
        return self.unit.finish(state)

    def forward(self, x: Tensor) -> Tensor:
        """Whole streams: one step from a fresh state, and the end."""
        y, state = self.step(x, self.initial_state(len(x)))
        tail = self.finish(state)
        return y if tail is None else side_by_side(y, tail)


def find_kernel() -> Kernel | None:
    """The kernel, or None where there is no triton that works."""
    try:
        from tokenizer.engine.cuda.residual_kernel import run_unit
    except Exception:  # noqa: BLE001 - an installation can be broken in any way
        return None
    return run_unit


def fused(unit: Residual, kernel: Kernel | None) -> StreamingLayer:
    """The unit by the kernel where that takes it, else the unit."""
    return unit if kernel is None or not _fits(unit) else FusedUnit(unit, kernel)


@torch.no_grad()
def checked(layer: StreamingLayer) -> str:
    """What is wrong with the fused units of a network, "" for nothing: each is compared with its own unit.

    The check runs on noise and goes on from a state, so that pasts, mirrors and the ends of blocks are in it.
    """
    for fused_unit in [part for part in layer.modules() if isinstance(part, FusedUnit)]:
        unit = fused_unit.unit
        device = next(unit.parameters()).device
        noise = torch.randn(2, _CHECK_SAMPLES, unit.width, generator=torch.Generator().manual_seed(0))
        x = noise.to(device, torch.bfloat16).transpose(1, 2)
        with on_device(device):
            try:
                ours, theirs = fused_unit.initial_state(2), unit.initial_state(2)
                for chunk in x.tensor_split([_CHECK_SAMPLES // 3], dim=2):
                    y, ours = fused_unit.step(chunk, ours)
                    expected, theirs = unit.step(chunk, theirs)
                    error = relative_error(y, expected)
                    if not error <= TOLERANCE:
                        return f"its values differ from torch's by {error:.1%}"
            except Exception as failure:  # noqa: BLE001 - a compiler, a linker, a driver: torch computes the same
                return first_line(failure)
    return ""


def _fits(unit: Residual) -> bool:
    layers = list(unit.block)
    if len(layers) != 4 or not all(isinstance(layer, nn.ELU) for layer in layers[::2]):
        return False
    convolutions = _convolutions(unit)
    if not all(isinstance(layer, Conv1d) and layer.norm is None and layer.right == 0 for layer in convolutions):
        return False
    first, *points = convolutions
    sizes = all(
        MIN_WIDTH <= width <= MAX_WIDTH and width.bit_count() == 1 for width in (unit.width, first.out_channels)
    )
    return sizes and first.stride == 1 and all(layer.reach == 1 for layer in points)


def _convolutions(unit: Residual) -> list[Any]:
    """The two of its block, and the one beside it where there is one."""
    return [unit.block[1], unit.block[3], *([] if unit.shortcut is None else [unit.shortcut])]


def _taps(weight: Tensor) -> Tensor:
    """[O, C, 1, taps] to [taps, C, O]."""
    return weight[:, :, 0].permute(2, 1, 0).contiguous()


def _bias(layer: Any) -> Tensor:
    bias = layer.conv.bias
    return torch.zeros(layer.out_channels, device=layer.conv.weight.device) if bias is None else bias.float()
