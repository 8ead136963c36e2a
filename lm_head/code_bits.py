"""Bits of each code of a clip, whatever kind of model counts them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lm_head.activation_grid import LayerGrid
from lm_head.coarse_first import LanguageModel
from lm_head.code_loss import code_nats, to_bits
from lm_head.token_lm import TokenLM


@torch.no_grad()
def code_bits(
    lm: LanguageModel,
    codes: Tensor,
    *,
    text: Sequence[str] | None = None,
    grids: Sequence[LayerGrid] | None = None,
) -> Tensor:
    """What each code costs from the beginning of a stream on.

    A `CoarseFirstLM` is asked for all frames of a fine level at once, with none complete: those are the bits of a whole
    clip whose coarser levels are known.

    Args:
        lm: what counts.
        codes: [B, K, T] int64.
        text: a transcript for each row, for models that take them.
        grids: that a `TokenLM` computes on; None for none.

    Returns:
        [B, K, T].

    Raises:
        CodesError: the model does not know such codes.
    """
    if isinstance(lm, TokenLM):
        return to_bits(code_nats(lm(codes, text=text, grids=grids).transpose(1, 2), codes))
    coarse = to_bits(code_nats(lm.coarse(codes[:, :1], text=text).transpose(1, 2), codes[:, :1]))
    rows = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    fine = [
        to_bits(code_nats(lm.fine(codes, rows + level, rows, text=text), codes[:, level]))
        for level in range(1, codes.shape[1])
    ]
    return torch.cat([coarse, torch.stack(fine, dim=1)], dim=1) if fine else coarse
