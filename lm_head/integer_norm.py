"""Layer normalisation of integers, with the same result on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

from lm_head.activation_grid import LIMIT

RANGE = 2.0**14  # inputs are cut off there: sums over 512 channels and their means are then exact enough in float32
MAX_CHANNELS = 512


class IntegerNorm:
    """From integers of any scale to the grid of what follows.

    Mean and norm are rounded down to integers; the halves inside keep the last bit of a division or root, which is
    where machines could differ, from deciding.

    Args:
        gain_and_bias: [D] each.
        step: of the grid of the output.
        device: where it computes.
    """

    def __init__(self, gain_and_bias: tuple[Tensor, Tensor], step: float, device: torch.device) -> None:
        gain, bias = gain_and_bias
        self._gain, self._bias = (gain * (len(gain) ** 0.5 / step)).to(device), (bias / step).to(device)
        # As tensors: torch takes Python's numbers at twice the cost of these operations on a single frame.
        self._half, self._channels = torch.tensor(0.5, device=device), torch.tensor(float(len(gain)), device=device)
        self._one_and_a_half = torch.tensor(1.5, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] integers in float32, which are changed, to int8."""
        return self.unrounded(x).round_().clamp_(-LIMIT, LIMIT).char()

    def unrounded(self, x: Tensor) -> Tensor:
        """[..., D] multiples of the step, not yet integers."""
        x.clamp_(-RANGE, RANGE)
        centred = x.sub_(x.sum(dim=-1, keepdim=True).add_(self._half).div_(self._channels).floor_())
        # A square below 2 ** 30 rounded to 24 bits is a multiple of 2 ** 6 at most: their sum is exact in float64.
        power = centred.square().sum(dim=-1, keepdim=True, dtype=torch.float64)
        norm = power.add_(self._one_and_a_half).sqrt_().floor_().float()  # at least 1
        return centred.mul_(self._gain).div_(norm).add_(self._bias)

    def constants(self) -> list[Tensor]:
        """Every number that the result depends on."""
        return [self._gain, self._bias]
