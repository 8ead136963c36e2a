"""A transcript in front of the frames: its UTF-8 bytes, which every frame sees, however long ago they were.

Bytes see each other both ways, and frames see all of them beside their window of the past: so the transcript is read
once, and what layers keep of it stays the same for the whole stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lm_head.activation_grid import LayerGrid, NoGrid
from lm_head.transformer import KeyValues, TransformerLayer, sinusoids, window_mask

SEPARATOR = 256  # behind the bytes of a transcript: one that is empty still has something to see


class TextMemory(NamedTuple):
    """What layers remember of transcripts."""

    layers: tuple[KeyValues, ...]
    visible: Tensor  # [B, P] bool: which of the P places a row's transcript fills


class TextEmbedding(nn.Module):
    """Transcripts as vectors."""

    def __init__(self, dim: int, max_period: float) -> None:
        super().__init__()
        self.dim, self.max_period = dim, max_period
        self.table = nn.Embedding(SEPARATOR + 1, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Sequence[str]) -> tuple[Tensor, Tensor]:
        """One transcript for each row to [B, P, D], and which of the P places each fills, [B, P]."""
        rows = [torch.tensor([*transcript.encode(), SEPARATOR]) for transcript in text]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.table.weight.device)
        lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.table(tokens)) + sinusoids(positions, self.dim, self.max_period)
        return x, positions < lengths[:, None]


class ReadingLayer(TransformerLayer):
    """A layer that can look both ways, and whose frames see what it has read."""

    def read(self, x: Tensor, visible: Tensor) -> tuple[Tensor, KeyValues]:
        """Every place sees every visible one: [B, P, D] and [B, P] to [B, P, D], and what to remember of it."""
        query, key, value = self._attention_inputs(x, NoGrid())
        mask = visible[:, None, None]  # [B, H, queries, keys]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self._finish(x, attended, NoGrid()), KeyValues(key, value)

    def forward_after(self, x: Tensor, text: KeyValues, visible: Tensor, *, begins: bool, grid: LayerGrid) -> Tensor:
        """As `forward`, with a transcript in front."""
        inputs = functional.pad(x, (0, 0, 1, 0)) if begins else x
        query, key, value = self._attention_inputs(inputs, grid)
        attended = self._attend(query, KeyValues(key, value), text, visible)
        return self._finish(x, attended[:, :, -x.shape[1] :], grid)

    def step_after(self, x: Tensor, state: KeyValues, text: KeyValues, visible: Tensor) -> tuple[Tensor, KeyValues]:
        """As `step`, with a transcript in front."""
        query, key, value = self._attention_inputs(x, NoGrid())
        frames = KeyValues(torch.cat([state.keys, key], dim=2), torch.cat([state.values, value], dim=2))
        attended = self._attend(query, frames, text, visible)
        window = slice(-self.context_frames, None)
        return self._finish(x, attended, NoGrid()), KeyValues(frames.keys[:, :, window], frames.values[:, :, window])

    def _attend(self, query: Tensor, frames: KeyValues, text: KeyValues, visible: Tensor) -> Tensor:
        num_queries = query.shape[2]
        recent = window_mask(num_queries, frames.keys.shape[2], self.context_frames, query.device)
        mask = torch.cat([visible[:, None].expand(-1, num_queries, -1), recent.expand(len(query), -1, -1)], dim=-1)
        keys = torch.cat([text.keys, frames.keys], dim=2)
        values = torch.cat([text.values, frames.values], dim=2)
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None])


def checked_text(text: Sequence[str] | None, batch_size: int, *, known: bool) -> Sequence[str] | None:
    """Transcripts for a model, one for each row.

    Args:
        text: None for no transcript; a model that knows text then sees an empty one in each row.
        batch_size: B.
        known: whether the model knows text.

    Raises:
        ValueError: text for a model that does not know it, or for another number of rows.
    """
    if text is None:
        return [""] * batch_size if known else None
    if not known:
        raise ValueError("this language model was built without text")
    if isinstance(text, str) or len(text) != batch_size:
        raise ValueError(f"text is a list of one transcript for each of {batch_size} rows, not {text!r:.60}")
    return text
