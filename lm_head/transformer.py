"""The causal Transformer of the token language model: layers that see a window of the past, at once or stepwise.

Source: EnCodec, arXiv:2210.13438, 3.3, with the details of its released models: normalisation after each sum, and one
vector of zeros before the first frame, which every frame in reach attends to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lm_head.activation_grid import LayerGrid, NoGrid, Slot


class KeyValues(NamedTuple):
    """What one layer remembers of the frames before."""

    keys: Tensor  # [B, H, P, D / H], P at most context_frames
    values: Tensor  # [B, H, P, D / H]


class TransformerLayer(nn.Module):
    """Attention over a window and a feed-forward network, each added to its input and normalised."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, context_frames: int) -> None:
        super().__init__()
        self.num_heads, self.context_frames = num_heads, context_frames
        self.project = nn.Linear(dim, 3 * dim)  # to queries, keys and values
        self.merge = nn.Linear(dim, dim)
        self.norm_attended = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, hidden_dim)
        self.narrow = nn.Linear(hidden_dim, dim)
        self.norm_output = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.merge.bias)

    def initial_state(self, batch_size: int) -> KeyValues:
        """Key and value of the zeros before the first frame."""
        _, key, value = self.project.bias.expand(batch_size, 1, -1).chunk(3, dim=-1)
        return KeyValues(self._by_head(key), self._by_head(value))

    def forward(self, x: Tensor, *, begins: bool, grid: LayerGrid) -> Tensor:
        """All frames of a stream, or of a piece of one that knows nothing of what came before.

        Args:
            x: [B, T, D].
            begins: the first frame is that of a stream, and sees the zeros before it.
            grid: what activations and weights are rounded to.

        Returns:
            [B, T, D].
        """
        inputs = functional.pad(x, (0, 0, 1, 0)) if begins else x  # what the zeros see is dropped below
        query, key, value = self._attention_inputs(inputs, grid)
        mask = None
        if inputs.shape[1] > self.context_frames + 1:
            mask = window_mask(inputs.shape[1], inputs.shape[1], self.context_frames, x.device)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self._finish(x, attended[:, :, -x.shape[1] :], grid)

    def step(self, x: Tensor, state: KeyValues) -> tuple[Tensor, KeyValues]:
        """The next frames [B, T, D] after those that the state remembers, and what it remembers after them."""
        query, key, value = self._attention_inputs(x, NoGrid())
        keys, values = torch.cat([state.keys, key], dim=2), torch.cat([state.values, value], dim=2)
        mask = None
        if x.shape[1] > 1:
            mask = window_mask(x.shape[1], keys.shape[2], self.context_frames, x.device)
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        window = slice(-self.context_frames, None)
        return self._finish(x, attended, NoGrid()), KeyValues(keys[:, :, window], values[:, :, window])

    def _attention_inputs(self, x: Tensor, grid: LayerGrid) -> tuple[Tensor, Tensor, Tensor]:
        weight = grid.weight(self.project.weight)
        query, key, value = functional.linear(x, weight, self.project.bias).chunk(3, dim=-1)
        return (
            self._by_head(grid.activation(query, Slot.QUERY)),
            self._by_head(grid.activation(key, Slot.KEY)),
            self._by_head(grid.activation(value, Slot.VALUE)),
        )

    def _finish(self, x: Tensor, attended: Tensor, grid: LayerGrid) -> Tensor:
        """Everything behind the attention; [B, H, T, D / H] to [B, T, D]."""
        attended = grid.activation(attended.transpose(1, 2).flatten(2), Slot.ATTENDED)
        x = self.norm_attended(x + functional.linear(attended, grid.weight(self.merge.weight), self.merge.bias))
        x = grid.activation(x, Slot.MIDDLE)
        hidden = functional.linear(x, grid.weight(self.widen.weight), self.widen.bias)
        hidden = grid.activation(functional.gelu(grid.activation(hidden, Slot.BEFORE_GELU)), Slot.HIDDEN)
        added = functional.linear(hidden, grid.weight(self.narrow.weight), self.narrow.bias)
        normalised: Tensor = self.norm_output(x + added)
        return normalised

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, H, T, D / H]."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


def window_mask(num_queries: int, num_keys: int, context_frames: int, device: torch.device) -> Tensor:
    """[queries, keys]: which keys the last `num_queries` of them may see: themselves and `context_frames` before."""
    keys = torch.arange(num_keys, device=device)
    age = keys[num_keys - num_queries :, None] - keys
    return (age >= 0) & (age <= context_frames)


def sinusoids(positions: Tensor, dim: int, max_period: float) -> Tensor:
    """Cosines and sines of geometrically spaced periods: positions [...] to [..., dim].

    Source: arXiv:1706.03762, 3.5, ordered as in EnCodec: cosines first, and the longest period is max_period itself.
    """
    exponents = torch.arange(dim // 2, device=positions.device) / (dim // 2 - 1)
    phase = positions[..., None] / max_period**exponents
    return torch.cat([phase.cos(), phase.sin()], dim=-1)
