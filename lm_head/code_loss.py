"""What codes cost under a model: the loss in nats, and what people read, bits by level."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional


class CodeLoss(NamedTuple):
    """What a batch of codes cost."""

    nats: Tensor  # scalar: mean over all codes that were scored
    bits: Tensor  # [K] per code of each level, without a gradient; NaN where none was scored


def code_nats(logits: Tensor, codes: Tensor) -> Tensor:
    """What each code costs: logits [..., V] and codes [...] to nats [...]."""
    flat = functional.cross_entropy(logits.flatten(0, -2).float(), codes.flatten(), reduction="none")
    return flat.reshape(codes.shape)


def to_bits(nats: Tensor) -> Tensor:
    """Natural logarithms to base 2, detached."""
    return nats.detach() / math.log(2)
