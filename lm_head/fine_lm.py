"""The fine model: all codes of one level at once, given the coarser levels of all frames.

VALL-E's second stage, arXiv:2301.02111, 4.2.2: a Transformer that looks both ways and is told which level it is asked
for. Frames that are complete already stand in front, as the enrolled recording does there; so a stream can be filled
stretch by stretch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lm_head.code_loss import CodeLoss, code_nats, frames_within, to_bits
from lm_head.text_prefix import ReadingLayer, TextEmbedding, checked_text
from lm_head.token_lm import LMConfig, check_codes
from lm_head.transformer import sinusoids
from tokenizer.errors import CodesError

_NO_PAST_SHARE = 0.2  # of training rows: nothing is complete yet, as where a stream begins
_WHOLE_SHARE = 0.5  # of training rows: those to be filled go on to the end; others end early, as stretches do


class FineLM(nn.Module):
    """Predicts level k, 1 <= k < K, of frames whose levels below k are known.

    Args:
        config: sizes. `num_codebooks` counts level 0, which is given; `context_frames` says how many complete frames
            are shown before those to be filled; `layout` does not matter.

    Raises:
        ValueError: fewer than 2 levels.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        if config.num_codebooks < 2:
            raise ValueError("a fine model has at least 2 levels, of which the first is given")
        self.config = config
        levels, size, dim = config.num_codebooks, config.codebook_size, config.dim
        self.embeddings = nn.Parameter(torch.randn(levels, size + 1, dim))  # row 0: not known yet
        self.level_embeddings = nn.Parameter(torch.randn(levels - 1, dim))
        self.norm_input = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            ReadingLayer(dim, config.num_heads, config.hidden_dim, config.context_frames)
            for _ in range(config.num_layers)
        )
        self.text_embedding = TextEmbedding(dim, config.max_period) if config.text else None
        bound = dim**-0.5  # as nn.Linear
        self.head_weight = nn.Parameter(torch.empty(levels - 1, size, dim).uniform_(-bound, bound))
        self.head_bias = nn.Parameter(torch.zeros(levels - 1, size))

    def forward(
        self,
        codes: Tensor,
        levels: Tensor,
        complete: Tensor,
        *,
        ends: Tensor | None = None,
        text: Sequence[str] | None = None,
    ) -> Tensor:
        """Logits of one level of every frame.

        Args:
            codes: [B, K, T] int64. Of the first `complete` frames of a row all levels are shown, of the others those
                below the level that is asked for; what the rest holds does not matter.
            levels: [B] the level asked for, from 1 to K - 1.
            complete: [B] from 0 to T.
            ends: [B] the frames that a row has; none sees those behind. None for T in all rows.
            text: a transcript for each row, for models that take them; None for none.

        Returns:
            [B, T, V]; those of complete frames mean nothing.
        """
        check_codes(codes, self.config)
        x, frames = self._embed(codes, levels, complete), torch.arange(codes.shape[-1], device=codes.device)
        visible = (frames < (codes.shape[-1] if ends is None else ends[:, None])).expand(len(codes), -1)
        transcripts = checked_text(text, len(codes), known=self.config.text)
        if transcripts is not None and self.text_embedding is not None:
            prefix, filled = self.text_embedding(transcripts)
            x, visible = torch.cat([prefix, x], dim=1), torch.cat([filled, visible], dim=1)
        for layer in self._transformer():
            x, _ = layer.read(x, visible)
        x = x[:, -codes.shape[-1] :]
        return torch.baddbmm(self.head_bias[levels - 1, None], x, self.head_weight[levels - 1].transpose(1, 2))

    def loss(
        self,
        codes: Tensor,
        generator: torch.Generator | None = None,
        *,
        text: Sequence[str] | None = None,
        lengths: Tensor | None = None,
    ) -> CodeLoss:
        """What the levels above 0 of codes [B, K, T] cost.

        Each row is asked for a level of its own, behind some complete frames and up to some end; all three are drawn.

        Args:
            codes: [B, K, T] int64.
            generator: draws; None for that of torch.
            text: a transcript for each row, for models that take them; None for none.
            lengths: [B] frames of each row, behind which is padding; None for T in all rows.

        Raises:
            CodesError: K is 1.
            ValueError: a row has no frame, or more than T.
        """
        rows, num_codebooks, num_frames = codes.shape
        if num_codebooks < 2:
            raise CodesError("a fine model predicts levels from 1 on, the codes have only level 0")
        own = frames_within(codes, lengths).sum(dim=1)  # [B]
        levels = torch.randint(1, num_codebooks, (rows,), generator=generator).to(codes.device)
        chances = torch.rand(2, rows, generator=generator).to(codes.device)
        complete = ((chances[0] - _NO_PAST_SHARE) / (1 - _NO_PAST_SHARE) * own).long().clamp(min=0).minimum(own - 1)
        ends = complete + 1 + (chances[1] / (1 - _WHOLE_SHARE) * (own - complete)).long()
        ends = ends.minimum(own)
        logits = self(codes, levels, complete, ends=ends, text=text)
        nats = code_nats(logits, codes.gather(1, levels[:, None, None].expand(-1, 1, num_frames))[:, 0])
        frames = torch.arange(num_frames, device=codes.device)
        asked = (frames >= complete[:, None]) & (frames < ends[:, None])  # [B, T]
        sums = torch.zeros(num_codebooks, device=codes.device).index_add(0, levels, (nats.detach() * asked).sum(dim=1))
        counts = torch.zeros_like(sums).index_add(0, levels, asked.sum(dim=1).to(sums.dtype))
        return CodeLoss((nats * asked).sum() / asked.sum(), to_bits(sums / counts), counts)

    @torch.no_grad()
    def fill(
        self, codes_below: Tensor, num_codebooks: int, *, past: Tensor | None = None, text: Sequence[str] | None = None
    ) -> Tensor:
        """The likeliest finer levels of some frames, level after level.

        Args:
            codes_below: [B, k, T] int64, the k >= 1 coarsest levels of the frames.
            num_codebooks: K, levels wanted.
            past: [B, K, P] the complete frames before them; only the last `context_frames` matter.
            text: a transcript for each row, for models that take them; None for none.

        Returns:
            [B, K, T], whose first k levels are `codes_below`.
        """
        rows, given, num_frames = codes_below.shape
        finer = codes_below.new_zeros(rows, num_codebooks - given, num_frames)
        codes = torch.cat([codes_below, finer], dim=1)
        if past is not None:
            codes = torch.cat([past[..., -self.config.context_frames :], codes], dim=-1)
        complete = torch.full((rows,), codes.shape[-1] - num_frames, device=codes.device)
        for level in range(given, num_codebooks):
            logits = self(codes, torch.full_like(complete, level), complete, text=text)
            codes[:, level, -num_frames:] = logits[:, -num_frames:].argmax(dim=-1)
        return codes[..., -num_frames:]

    def _embed(self, codes: Tensor, levels: Tensor, complete: Tensor) -> Tensor:
        """[B, K, T] to [B, T, D]: the sum of what is known."""
        frames = torch.arange(codes.shape[-1], device=codes.device)
        tables = torch.arange(codes.shape[1], device=codes.device)[:, None]
        known = (tables < levels[:, None, None]) | (frames < complete[:, None, None])  # [B, K, T]
        rows = (codes + 1) * known + tables * (self.config.codebook_size + 1)
        x: Tensor = self.norm_input(functional.embedding(rows, self.embeddings.flatten(0, 1)).sum(dim=1))
        return x + sinusoids(frames, self.config.dim, self.config.max_period) + self.level_embeddings[levels - 1, None]

    def _transformer(self) -> list[ReadingLayer]:
        return list(self.layers)  # type: ignore[arg-type]
