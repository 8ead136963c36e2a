"""A question with a known answer: does this machine compute the integer language model as every other one does?"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from lm_head.integer_lm import IntegerLM
from tokenizer.errors import CheckpointError

FRAMES = 40


def known_answer(lm: IntegerLM) -> str:
    """sha256 of the cumulative frequencies for some fixed codes, evaluated at once for two streams, and stepwise.

    Raises:
        CheckpointError: the two ways differ, so that what this machine writes it could not read.
    """
    levels, size = lm.config.num_codebooks, lm.config.codebook_size
    counts = np.arange(2 * levels * FRAMES, dtype=np.int64).reshape(2, levels, FRAMES)
    shifted = torch.from_numpy(counts * 7919 % (size + 1)).to(lm.device)
    at_once = lm.step(shifted, lm.begin(2, FRAMES))
    state = lm.begin(1)
    stepwise = torch.cat([lm.step(frame, state) for frame in torch.split(shifted[:1], 1, dim=-1)], dim=1)
    if not torch.equal(at_once[:1], stepwise):
        raise CheckpointError("this machine computes the language model differently in one call and stepwise")
    cumulative = at_once.double().cumsum(dim=-1).long().cpu().numpy()  # [B, T, K, V]
    return hashlib.sha256(cumulative.astype("<i8").tobytes()).hexdigest()


def require_known_answer(lm: IntegerLM, expected: str) -> None:
    """Raise CheckpointError where this machine gives another answer than the one that made the model."""
    if known_answer(lm) != expected:
        raise CheckpointError(
            "the language model does not give its known answer: its files were changed, or this machine computes it in "
            "another way than the one that made it, and neither could read what the other writes. If the files are as "
            "they were, please report the processor and torch.__config__.show()"
        )
