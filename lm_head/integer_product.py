"""Matrix products of small integers, exact: in 8 bits where the processor does that right, in float32 otherwise.

Eight-bit products are several times faster (torch's go through oneDNN). But processors without VNNI add two products in
16 bits first, which overflow: whether they are exact here is not looked up but tried.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from lm_head.activation_grid import LIMIT


class IntegerProduct:
    """Multiplication by a fixed matrix of integers up to LIMIT.

    Args:
        values: [N, M] int8.
        device: where the product is taken.
    """

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.values = values.to(device)
        self._in_8_bits = device.type == "cpu" and eight_bits_are_exact()
        self._factors = self.values if self._in_8_bits else self.values.float()

    def __call__(self, x: Tensor, rows: int | None = None) -> Tensor:
        """[..., M] integers up to LIMIT, in float32, to [..., N], or to the first `rows` of N; int32 or float32."""
        factors = self._factors[:rows]
        if not self._in_8_bits:
            return functional.linear(x, factors)
        return eight_bit_product(x.reshape(-1, x.shape[-1]).to(torch.int8), factors).view(*x.shape[:-1], -1)


def eight_bit_product(x: Tensor, factors: Tensor) -> Tensor:
    """[R, M] and [N, M] int8 to [R, N] int32."""
    product: Tensor = torch._int_mm(x, factors.t())  # noqa: SLF001 - the only product of integers that torch has
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
                found = eight_bit_product(x.to(torch.int8), factors.to(torch.int8))
            except (AttributeError, RuntimeError, NotImplementedError):  # a torch without them
                return False
            if not torch.equal(found.long(), x @ factors.T):
                return False
    return True
