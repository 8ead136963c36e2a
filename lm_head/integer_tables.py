"""Tables of the integer language model: exponentials, the activation function and positions, computed once at load.

They are computed in float64 and rounded to integers; the model's fingerprint covers them, so that a machine whose
mathematical library rounds one of them differently is found out.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lm_head.activation_grid import FINE_LIMIT, LIMIT

ATTENTION_SCALE = 16  # table entries per unit of an attention logit
LOGIT_SCALE = 32.0  # ... of a logit of a code
MANTISSA = 2**24  # integers up to here are exact in float32


def frequency_table(codebook_size: int) -> Tensor:
    """How often a code counts whose logit lies i / LOGIT_SCALE below the largest one: from MANTISSA / V down to 1."""
    peak = MANTISSA // codebook_size
    length = math.ceil(math.log(2 * peak) * LOGIT_SCALE) + 1
    return torch.tensor([max(1, round(peak * math.exp(-i / LOGIT_SCALE))) for i in range(length)], dtype=torch.float32)


def attention_table() -> Tensor:
    """Weight, in int8, of a key whose logit lies i / ATTENTION_SCALE below the largest one; the last entry is 0."""
    length = math.ceil(math.log(2 * LIMIT) * ATTENTION_SCALE) + 2
    weights = [round(LIMIT * math.exp(-i / ATTENTION_SCALE)) for i in range(length)]
    return torch.tensor([*weights[:-1], 0], dtype=torch.int8)


def gelu_table(step_in: float, step_out: float) -> Tensor:
    """GELU on the grid: input integers from -FINE_LIMIT to FINE_LIMIT, output int8."""
    inputs = [i * step_in for i in range(-FINE_LIMIT, FINE_LIMIT + 1)]
    outputs = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) / step_out for x in inputs]
    return torch.tensor([max(-LIMIT, min(LIMIT, round(y))) for y in outputs], dtype=torch.int8)


def position_table(num_frames: int, dim: int, max_period: float, step: float) -> Tensor:
    """[frames, D] sinusoids as multiples of a step; see `lm_head.transformer.sinusoids`."""
    exponents = np.arange(dim // 2) / (dim // 2 - 1)
    phase = np.arange(num_frames)[:, None] / max_period**exponents
    table = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / step
    return torch.from_numpy(np.rint(table).astype(np.float32))
