"""The token language model: which codes come next, given those before.

EnCodec's entropy model, arXiv:2210.13438, 3.3: a small causal Transformer over frames. The codes of a frame are looked
up in one table per level and added, and K heads give the distribution of the next frame's K codes side by side.

For generation, two things that the paper lacks: level k may be delayed by k steps (MusicGen, arXiv:2306.05284), so that
a code is predicted from the coarser ones of its frame; and a transcript may stand in front of the frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lm_head.activation_grid import LayerGrid, NoGrid, Slot
from lm_head.code_loss import CodeLoss, code_nats, frames_within, to_bits
from lm_head.layouts import delayed
from lm_head.text_prefix import ReadingLayer, TextEmbedding, TextMemory, checked_text
from lm_head.transformer import KeyValues, TransformerLayer, sinusoids
from tokenizer.errors import CodesError


@dataclass(frozen=True, slots=True, kw_only=True)
class LMConfig:
    """Sizes of a token language model. Defaults: the paper's, at 75 frames per second."""

    num_codebooks: int = 16
    codebook_size: int = 1024
    dim: int = 200
    num_layers: int = 5
    num_heads: int = 8
    hidden_dim: int = 800
    context_frames: int = 262  # 3.5 s: a frame sees itself and so many before it
    max_period: float = 10000.0
    layout: Literal["parallel", "delay"] = "parallel"
    text: bool = False  # whether it takes transcripts

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("layout", "text") and value <= 0:
                raise ValueError(f"{field.name} must be positive, not {value!r}")
        if self.layout not in ("parallel", "delay"):
            raise ValueError(f"layout of a TokenLM is 'parallel' or 'delay', not {self.layout!r}")
        if self.dim % (2 * self.num_heads) and (self.dim % self.num_heads or self.dim % 2):
            raise ValueError(f"dim {self.dim} is not even, or not a multiple of {self.num_heads} heads")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LMConfig:
        """From JSON. Raises ValueError on an unknown key or a value of another type."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - names)
        if unknown:
            raise ValueError(f"unknown settings {', '.join(map(str, unknown))}; there are {', '.join(sorted(names))}")
        for name, value in values.items():
            kinds = {"max_period": (int, float), "layout": (str,), "text": (bool,)}.get(name, (int,))
            if not isinstance(value, kinds) or (isinstance(value, bool) and name != "text"):
                raise ValueError(f"{name} cannot be {value!r}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class LMState(NamedTuple):
    """Where streams stand that are predicted step by step. All streams of a batch are at the same frame."""

    layers: tuple[KeyValues, ...]
    position: int  # steps seen, that before the first one included
    text: TextMemory | None = None


class TokenLM(nn.Module):
    """Predicts the next frame of codes.

    One model serves every number of levels up to `config.num_codebooks`: it is the number that the codes have.

    `forward` takes codes, whatever the layout. `begin` and `step` go by the tokens of `config.layout`: in layout
    "parallel" those are the codes; in layout "delay" a step has level k of the frame k steps ago, and the token V where
    that frame is not there (see `layouts.Delay`).
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        levels, size, dim = config.num_codebooks, config.codebook_size, config.dim
        self.embeddings = nn.Parameter(torch.randn(levels, size + 1, dim))  # row 0: nothing, before the first frame
        self.norm_input = nn.LayerNorm(dim)
        layer = ReadingLayer if config.text else TransformerLayer
        self.layers = nn.ModuleList(
            layer(dim, config.num_heads, config.hidden_dim, config.context_frames) for _ in range(config.num_layers)
        )
        self.text_embedding = TextEmbedding(dim, config.max_period) if config.text else None
        bound = dim**-0.5  # as nn.Linear
        self.head_weight = nn.Parameter(torch.empty(levels, size, dim).uniform_(-bound, bound))
        self.head_bias = nn.Parameter(torch.zeros(levels, size))

    def forward(
        self,
        codes: Tensor,
        *,
        begins: bool = True,
        offset: Tensor | int = 0,
        grids: Sequence[LayerGrid] | None = None,
        scored: slice | Tensor | None = None,
        text: Sequence[str] | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Logits of every frame given the frames before it; in layout "delay", what is known of its own frame too.

        Args:
            codes: [B, K, T] int64, K at most `config.num_codebooks`.
            begins: the first frame is that of a stream. Otherwise nothing is known of what came before it, and it is
                not predicted.
            offset: added to positions; [B, 1] for one of each row, as in training.
            grids: what activations and weights are rounded to, for each layer and for the heads; None for nothing.
            scored: the levels whose logits are wanted; None for all K.
            text: a transcript for each row, for models that take them; None for none.
            lengths: [B] frames of each row; behind them is padding, whose logits mean nothing. None for T in all rows.

        Returns:
            [B, T, K, V], or [B, T - 1, K, V] where the stream does not begin here.
        """
        check_codes(codes, self.config)
        if self.config.layout == "delay":  # where coarse levels of the next frames show beside fine ones of the last
            own = frames_within(codes, lengths)[:, None]
            shifted = delayed(codes.where(own, -1), -1) + 1
        else:
            shifted = codes + 1
        x = self.embed(functional.pad(shifted[..., :-1], (1, 0)) if begins else shifted[..., :-1], offset)
        if grids is None:
            grids = [NoGrid()] * (self.config.num_layers + 1)
        memory = self._read(text, len(codes))
        for index, (layer, grid) in enumerate(zip(self.transformer_layers(), grids[:-1], strict=True)):
            x = grid.activation(x, Slot.INPUT)
            if memory is not None and isinstance(layer, ReadingLayer):
                x = layer.forward_after(x, memory.layers[index], memory.visible, begins=begins, grid=grid)
            else:
                x = layer(x, begins=begins, grid=grid)
        levels = slice(codes.shape[1]) if scored is None else scored
        logits = self.heads(grids[-1].activation(x, Slot.INPUT), levels, grids[-1])
        if self.config.layout == "parallel":
            return logits
        delays = torch.arange(codes.shape[1], device=codes.device)[levels].tolist()
        num_frames = codes.shape[-1] - (not begins)
        return torch.stack([logits[:, k : k + num_frames, row] for row, k in enumerate(delays)], dim=2)

    def loss(
        self,
        codes: Tensor,
        generator: torch.Generator | None = None,  # noqa: ARG002 - draws what a CoarseFirstLM hides
        *,
        text: Sequence[str] | None = None,
        begins: bool = True,
        offset: Tensor | int = 0,
        grids: Sequence[LayerGrid] | None = None,
        scored: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> CodeLoss:
        """What codes [B, K, T] cost, T at least 2 where the stream does not begin here; arguments as in `forward`.

        Raises:
            ValueError: a row has fewer frames than that, or more than T.
        """
        own = frames_within(codes, lengths, least=2 - begins)
        logits = self(codes, begins=begins, offset=offset, grids=grids, scored=scored, text=text, lengths=lengths)
        levels = torch.arange(codes.shape[1], device=codes.device) if scored is None else scored
        num_frames = logits.shape[1]
        nats = code_nats(logits, codes[:, levels, -num_frames:].transpose(1, 2))[own[:, -num_frames:]]  # [n, levels]
        bits = torch.full((codes.shape[1],), torch.nan, device=codes.device)
        bits[levels] = to_bits(nats.mean(dim=0))
        counts = torch.zeros(codes.shape[1], device=codes.device)
        counts[levels] = float(len(nats))
        return CodeLoss(nats.mean(), bits, counts)

    @torch.no_grad()
    def begin(
        self, batch_size: int, num_codebooks: int, *, text: Sequence[str] | None = None
    ) -> tuple[Tensor, LMState]:
        """The distribution of first frames: logits [B, 1, K, V], and the state behind it.

        A transcript for each row may stand in front of them.
        """
        layers = tuple(layer.initial_state(batch_size) for layer in self.transformer_layers())
        nothing = torch.zeros(batch_size, num_codebooks, 1, dtype=torch.int64, device=self.head_bias.device)
        return self._step(nothing, LMState(layers, 0, self._read(text, batch_size)))

    @torch.no_grad()
    def step(self, codes: Tensor, state: LMState) -> tuple[Tensor, LMState]:
        """Go on by some frames.

        Args:
            codes: [B, K, T] int64: the frames that followed what `state` has seen, as tokens of `config.layout`.
            state: from `begin` or `step`; it stays as it is.

        Returns:
            Logits [B, T, K, V] of the frame behind each of them, and the state behind the last one.
        """
        size = self.config.codebook_size
        nothing = (codes == size) & (self.config.layout == "delay")
        check_codes(codes.masked_fill(nothing, 0), self.config)
        return self._step((codes + 1).masked_fill(nothing, 0), state)

    def embed(self, shifted: Tensor, offset: Tensor | int) -> Tensor:
        """Frames as vectors: [B, K, T], where 0 is no code and others are 1 too large, to [B, T, D]."""
        size = self.config.codebook_size + 1
        levels = torch.arange(shifted.shape[1], device=shifted.device)[:, None] * size
        rows = functional.embedding(shifted + levels, self.embeddings.flatten(0, 1))  # [B, K, T, D]
        positions = torch.arange(shifted.shape[-1], device=shifted.device) + offset
        x: Tensor = self.norm_input(rows.sum(dim=1)) + sinusoids(positions, self.config.dim, self.config.max_period)
        return x

    def heads(self, x: Tensor, levels: slice | Tensor, grid: LayerGrid) -> Tensor:
        """[B, T, D] to the logits of some levels: [B, T, K, V]."""
        weight, bias = self.head_weight[levels], self.head_bias[levels]
        logits = functional.linear(x, grid.weight(weight.flatten(0, 1)), bias.flatten())
        return logits.reshape(*x.shape[:-1], *bias.shape)

    def _step(self, shifted: Tensor, state: LMState) -> tuple[Tensor, LMState]:
        x = self.embed(shifted, state.position)
        layers = []
        for index, (layer, memory) in enumerate(zip(self.transformer_layers(), state.layers, strict=True)):
            if state.text is not None and isinstance(layer, ReadingLayer):
                x, after = layer.step_after(x, memory, state.text.layers[index], state.text.visible)
            else:
                x, after = layer.step(x, memory)
            layers.append(after)
        logits = self.heads(x, slice(shifted.shape[1]), NoGrid())
        return logits, LMState(tuple(layers), state.position + shifted.shape[-1], state.text)

    def _read(self, text: Sequence[str] | None, batch_size: int) -> TextMemory | None:
        """What each layer sees of the transcripts."""
        transcripts = checked_text(text, batch_size, known=self.config.text)
        if transcripts is None or self.text_embedding is None:
            return None
        x, visible = self.text_embedding(transcripts)
        memories = []
        for layer in self.transformer_layers():
            if isinstance(layer, ReadingLayer):
                x, memory = layer.read(x, visible)
                memories.append(memory)
        return TextMemory(tuple(memories), visible)

    def transformer_layers(self) -> list[TransformerLayer]:
        """The layers from first to last."""
        return list(self.layers)  # type: ignore[arg-type]


def check_codes(codes: Tensor, config: LMConfig) -> None:
    """Raise CodesError unless codes are [B, K, T] integers that the model knows, K and T at least 1."""
    if codes.ndim != 3 or codes.dtype != torch.int64 or not all(codes.shape):
        raise CodesError(f"codes must be int64 [B, K, T] and not empty, not {codes.dtype} {list(codes.shape)}")
    if codes.shape[1] > config.num_codebooks:
        raise CodesError(f"codes have {codes.shape[1]} levels, the language model knows {config.num_codebooks}")
    low, high = torch.aminmax(codes)
    if int(low) < 0 or int(high) >= config.codebook_size:
        raise CodesError(f"codes range from {int(low)} to {int(high)}, allowed is 0 to {config.codebook_size - 1}")
