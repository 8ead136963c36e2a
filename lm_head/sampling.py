"""Drawing codes from logits: temperature, the k most likely, the likeliest that make up a share p.

Every row of a batch has a random generator of its own, so what it draws depends on its seed alone. Draws are made on
the CPU: a seed means the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How adventurous draws are. Filters apply in this order, each to what the one before left.

    Attributes:
        temperature: divides logits; 0 always takes the likeliest code.
        top_k: only so many likeliest codes; None for all.
        top_p: only the fewest likeliest codes whose probabilities reach this sum (arXiv:1904.09751); None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a number from 0 on, not {self.temperature!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")


def row_generators(seed: int | Sequence[int], batch_size: int) -> list[torch.Generator]:
    """One random generator for each row.

    Args:
        seed: one for each row; or one number, and the rows count up from it. So row 2 of a batch with seed 7 is what
            seed 9 gives alone.
        batch_size: B.

    Raises:
        ValueError: another number of seeds than rows, or seeds of more than 63 bits.
    """
    seeds = [seed + row for row in range(batch_size)] if isinstance(seed, int) else list(seed)
    if len(seeds) != batch_size:
        raise ValueError(f"{len(seeds)} seeds for {batch_size} rows")
    if not all(0 <= value < 2**63 for value in seeds):
        raise ValueError(f"seeds are whole numbers from 0 to 2^63, not {seeds!r:.60}")
    return [torch.Generator().manual_seed(value) for value in seeds]


def draw_codes(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One code from each distribution.

    Args:
        logits: [B, ..., V].
        sampling: which codes may be drawn, and how likely each is.
        generators: one for each row; they go on by as many numbers as a row has distributions, whatever is in them.

    Returns:
        [B, ...] int64 in [0, V).
    """
    shape = logits.shape[1:-1]
    chances = torch.stack([torch.rand(shape, generator=generator, dtype=torch.float64) for generator in generators])
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    kept = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    ordered = logits.double() / sampling.temperature
    order = torch.arange(kept, device=logits.device).expand_as(ordered[..., :kept])
    if sampling.top_k is not None or sampling.top_p is not None:  # otherwise sorting would cost more than all the rest
        ordered, order = torch.topk(ordered, kept, dim=-1)  # the likeliest first
    ends = torch.cumsum(torch.softmax(ordered, dim=-1), dim=-1)  # of each code's share of [0, 1]
    last = torch.full_like(order[..., :1], kept - 1)  # rank of the least likely code that stays
    if sampling.top_p is not None:
        last = (ends < sampling.top_p).sum(dim=-1, keepdim=True).clamp(max=kept - 1)
    share = chances.to(logits.device)[..., None] * ends.gather(-1, last)
    rank = torch.searchsorted(ends, share, right=True).minimum(last)
    return order.gather(-1, rank).squeeze(-1)
