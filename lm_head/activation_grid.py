"""The integer grid that the entropy coder computes on, and its imitation in floating point for training.

Weights are rounded to 255 steps per output channel, activations to 255 steps per tensor. Rounding has no slope: the
gradient passes as if it were not there (straight-through estimator, arXiv:1308.3432).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

LIMIT = 127  # of integers in 8 bits, symmetric
FINE_LIMIT = 2047  # of what goes into the table of the activation function


class Slot(IntEnum):
    """The tensors of one layer that have a step size of their own."""

    INPUT = 0
    QUERY = 1
    KEY = 2
    VALUE = 3
    ATTENDED = 4
    MIDDLE = 5  # between attention and feed-forward
    BEFORE_GELU = 6
    HIDDEN = 7


OUTPUT_SLOT = Slot.INPUT  # of one layer more than there are: what the heads read


class LayerGrid(Protocol):
    """What a layer does to its activations and weights before it uses them."""

    def activation(self, x: Tensor, slot: Slot) -> Tensor:
        """x as the layer goes on with it."""

    def weight(self, weight: Tensor) -> Tensor:
        """[N, M] weights as the layer uses them."""


class NoGrid:
    """Floating point as it is."""

    def activation(self, x: Tensor, slot: Slot) -> Tensor:  # noqa: ARG002
        """The same."""
        return x

    def weight(self, weight: Tensor) -> Tensor:
        """The same."""
        return weight


class RoundingGrid:
    """Everything rounded to integers times a step.

    Args:
        steps: [slots] step sizes of the layer's activations.
    """

    def __init__(self, steps: Tensor) -> None:
        self.steps = steps

    def activation(self, x: Tensor, slot: Slot) -> Tensor:
        """Rounded and cut off."""
        step, limit = self.steps[slot], limit_of(slot)
        rounded = (x / step).round().clamp(-limit, limit) * step
        return x + (rounded - x).detach()

    def weight(self, weight: Tensor) -> Tensor:
        """Rounded by output channel."""
        step = weight_steps(weight)
        return weight + ((weight / step).round() * step - weight).detach()


class RangeWatch:
    """Keeps the range of what passes, from which step sizes are calibrated.

    Not the largest value decides but one that few pass: outliers are cut off rather than costing all others a bit.

    Args:
        quantile: share of the values that stay inside.
    """

    def __init__(self, quantile: float = 0.9999) -> None:
        self.quantile = quantile
        self.ranges = torch.zeros(len(Slot))

    def activation(self, x: Tensor, slot: Slot) -> Tensor:
        """The same; its range is kept."""
        values = x.detach().float().abs().flatten()
        inside = values.kthvalue(max(1, round(self.quantile * values.numel()))).values.cpu()
        self.ranges[slot] = torch.maximum(self.ranges[slot], inside)
        return x

    def weight(self, weight: Tensor) -> Tensor:
        """The same."""
        return weight

    def steps(self) -> Tensor:
        """[slots] step sizes."""
        limits = torch.tensor([limit_of(slot) for slot in Slot])
        return self.ranges.clamp(min=1e-6) / limits


def limit_of(slot: Slot) -> int:
    """Largest integer of a tensor on the grid."""
    return FINE_LIMIT if slot is Slot.BEFORE_GELU else LIMIT


def weight_steps(weight: Tensor) -> Tensor:
    """Step size of each output channel: [N, M] to [N, 1]."""
    return weight.detach().abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / LIMIT
