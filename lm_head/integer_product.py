"""Matrix products of small integers, exact: in 8 bits where the processor does that right, in float32 otherwise.

Eight-bit products are several times faster (torch's go through oneDNN). But processors without VNNI add two products in
16 bits first, which overflow: whether they are exact here is not looked up but tried.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lm_head.activation_grid import LIMIT


class FixedFactor:
    """The right side of products that is always the same: weights.

    Args:
        values: [N, M] int8.
        device: where products are taken.
    """

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.values = values.to(device)
        self._in_8_bits = in_8_bits(device)
        self._factors = (self.values if self._in_8_bits else self.values.float()).t()  # [M, N]

    def product(self, x: Tensor, rows: int | None = None) -> Tensor:
        """[R, M] int8 to [R, N], or to the first `rows` of N: exact integers, in int32 or float32."""
        factors = self._factors if rows is None else self._factors[:, :rows]
        return eight_bit_product(x, factors) if self._in_8_bits else x.float() @ factors


def products_by_stream(x: Tensor, y: Tensor) -> Tensor:
    """[B, R, M] and [B, M, N] int8 to [B, R, N]: exact integers, in int32 or float32."""
    if not in_8_bits(x.device):
        return x.float() @ y.float()
    if len(x) == 1:
        return eight_bit_product(x[0], y[0])[None]
    return torch.stack(list(map(eight_bit_product, x.unbind(), y.unbind())))


def in_8_bits(device: torch.device) -> bool:
    """Whether products are taken in 8 bits there."""
    return device.type == "cpu" and eight_bits_are_exact()


def eight_bit_product(x: Tensor, y: Tensor) -> Tensor:
    """[R, M] and [M, N] int8 to [R, N] int32."""
    product: Tensor = torch._int_mm(x, y)  # noqa: SLF001 - the only product of integers that torch has
    return product


@cache
def eight_bits_are_exact() -> bool:
    """Whether 8-bit products on this processor are those of the integers, largest ones and all signs included."""
    generator = torch.Generator().manual_seed(0)
    for rows, width in ((1, 200), (40, 200), (3, 800), (64, 800)):
        for low in (LIMIT, -LIMIT):
            x = torch.randint(-LIMIT, LIMIT + 1, (rows, width), generator=generator)
            x[0], factors = LIMIT, torch.randint(-LIMIT, LIMIT + 1, (64, width), generator=generator)
            factors[0], factors[1, ::2] = low, -low
            try:
                found = eight_bit_product(x.to(torch.int8), factors.to(torch.int8).t())
            except (AttributeError, RuntimeError):  # a torch without them, or one that lacks them here
                return False
            if not torch.equal(found.long(), x @ factors.T):
                return False
    return True
