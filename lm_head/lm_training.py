"""One training step of a token language model, and how its weights begin: at the codec's own codebooks.

In the last part of a run a model that has an integer form computes on the integer grid of the entropy coder, so that
this form costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from lm_head.activation_grid import LayerGrid, RangeWatch, RoundingGrid
from lm_head.coarse_first import CoarseFirstLM, LanguageModel, LanguageModelConfig, make_language_model
from lm_head.code_loss import CodeLoss
from lm_head.fine_lm import FineLM
from lm_head.token_lm import TokenLM
from tokenizer.optimization import Optimization, OptimizerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LMObjective:
    """What is optimised, and on which numbers of levels."""

    levels: tuple[int, ...] = (2, 4, 8, 16)  # one of them is drawn for each batch: one model for all bandwidths
    max_offset: int = 1000  # of positions; drawn for each row, so that none is a special one
    grid_from: float = 0.5  # share of the steps after which the integer grid holds; 1 for never
    begin_share: float = 0.5  # of the batches whose crops are treated as beginnings of streams; with text all are
    scored_levels: int = 4  # heads of a TokenLM that are trained in a step, drawn among its levels: most of the cost

    def __post_init__(self) -> None:
        if not self.levels or min(*self.levels, self.scored_levels) < 1 or self.max_offset < 0:
            raise ValueError("levels and scored_levels are positive, and max_offset is not negative")
        if not 0 <= self.grid_from <= 1 or not 0 <= self.begin_share <= 1:
            raise ValueError("grid_from and begin_share lie in [0, 1]")

    def require_fit(self, model: LanguageModelConfig) -> None:
        """Raise ValueError unless a model of these sizes can be trained so."""
        if self.grid_from < 1 and (model.layout != "parallel" or model.text):
            kind = "models with text" if model.layout == "parallel" else f"layout {model.layout!r}"
            raise ValueError(f"{kind} has no integer form, that is for 'parallel' without text: set grid_from to 1")
        if min(self.levels) < 2 and model.layout == "coarse_first":
            raise ValueError("layout 'coarse_first' is trained on at least 2 levels at a time, levels has 1")


@dataclass(frozen=True, slots=True)
class LMStep:
    """What one step of training showed."""

    bits: dict[int, float]  # per code, of each level that was scored
    gradient_norm: float


class LMTraining:
    """A token language model of any kind, and its optimizers.

    Args:
        config: sizes; they decide which kind of model it is.
        objective: what is optimised.
        optimizer: and how.
        autocast: precision of the forward pass, None for float32.
        codebooks: [K, V, D'] of the codec, to start from. Codes that sound alike then have like embeddings from the
            first step on, which no small corpus would teach.
        start: a model to go on from; goes before codebooks.
        device: where all of it lives.

    Raises:
        ValueError: the model cannot be trained so, or codebooks or start do not fit it.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        objective: LMObjective,
        optimizer: OptimizerSettings,
        *,
        autocast: torch.dtype | None = None,
        codebooks: Tensor | None = None,
        start: LanguageModel | None = None,
        device: str = "cpu",
    ) -> None:
        objective.require_fit(config)
        self.objective, self.autocast, self.device = objective, autocast, torch.device(device)
        self.levels = tuple(sorted({min(count, config.num_codebooks) for count in objective.levels}))
        self.model = make_language_model(config)
        if start is not None:
            if start.config != config:
                raise ValueError(f"the model to start from has other sizes: {start.config}, not {config}")
            self.model.load_state_dict(start.state_dict())
        elif codebooks is not None:
            begin_at_codebooks(self.model, codebooks)
        self.model.to(self.device).train()
        self.optimization = Optimization(self.model, optimizer, optimizer.learning_rate)
        self.grid_steps: Tensor | None = None  # [layers + 1, slots], once the grid holds

    def step(
        self,
        codes: Tensor,
        step: int,
        *,
        rate_factor: float,
        seed: int,
        total_steps: int,
        text: Sequence[str] | None = None,
        lengths: Tensor | None = None,
    ) -> LMStep:
        """Train on one batch.

        All that is random follows from seed and step; what a fine model is asked for, from the process too.

        Args:
            codes: [B, K, T] int64; the slice of this process.
            step: number of the step, from 0.
            rate_factor: of the learning rate.
            seed: of the run.
            total_steps: of the run, for when the grid begins to hold.
            text: a transcript for each row, for models that take them; rows are beginnings of utterances then.
            lengths: [B] frames of each row, behind which is padding; None for T in all rows.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; nothing was updated by it.
        """
        draw = np.random.default_rng([seed, step])
        codes = codes[:, : int(draw.choice(self.levels))].to(self.device)
        begins_grid = self.grid_steps is None and step >= self.objective.grid_from * total_steps
        if begins_grid and isinstance(self.model, TokenLM):
            self.grid_steps = calibrated_steps(self.model, codes)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            loss = self._loss(codes, draw, text, None if lengths is None else lengths.to(self.device))
        bits, share = _over_processes(loss)
        if not all(math.isfinite(value) for value in bits.values()):
            raise FloatingPointError("the loss of the language model is not finite")
        (loss.nats * share).backward()  # type: ignore[no-untyped-call]
        return LMStep(bits, self.optimization.step(rate_factor).item())

    def _loss(
        self, codes: Tensor, draw: np.random.Generator, text: Sequence[str] | None, lengths: Tensor | None
    ) -> CodeLoss:
        begins = bool(draw.random() < self.objective.begin_share) or self.model.config.text
        scored = np.sort(draw.permutation(codes.shape[1])[: self.objective.scored_levels])
        offset = torch.from_numpy(self._draw_offsets(draw, len(codes))).to(self.device)
        if isinstance(self.model, CoarseFirstLM):
            generator = torch.Generator().manual_seed(int(draw.integers(2**62)) + _place_among_processes()[0])
            return self.model.loss(codes, generator, text=text, begins=begins, offset=offset, lengths=lengths)
        grids = None if self.grid_steps is None else rounding_grids(self.grid_steps)
        levels = torch.from_numpy(scored).to(self.device)
        return self.model.loss(
            codes, text=text, begins=begins, offset=offset, lengths=lengths, grids=grids, scored=levels
        )

    def _draw_offsets(self, draw: np.random.Generator, num_rows: int) -> npt.NDArray[np.int64]:
        """[B, 1] for the rows of this process: those that one process with all rows would draw for them."""
        rank, size = _place_among_processes()
        offsets = draw.integers(0, self.objective.max_offset + 1, (size * num_rows, 1))
        return offsets[rank * num_rows : (rank + 1) * num_rows]

    def to_lm(self) -> LanguageModel:
        """A copy for inference, from the average of the weights where one is kept."""
        lm = make_language_model(self.model.config)
        lm.load_state_dict(self.optimization.exported.state_dict())
        return lm.eval().requires_grad_(requires_grad=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimization": self.optimization.state_dict(),
            "grid_steps": self.grid_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimization.load_state_dict(state["optimization"])
        steps = state["grid_steps"]
        self.grid_steps = None if steps is None else steps.to(self.device)


def begin_at_codebooks(model: LanguageModel, codebooks: Tensor) -> None:
    """Set embeddings and heads to the codec's codebooks, turned into the model's space by a random rotation each.

    The sum of a frame's embeddings is then its latent vector, rotated.

    Args:
        model: to change; each half of a pair begins at the levels that it knows.
        codebooks: [K, V, D'] with at least the model's levels; D' beyond the model's dimension is projected down.

    Raises:
        ValueError: fewer levels, or another codebook size.
    """
    config = model.config
    if codebooks.shape[0] < config.num_codebooks or codebooks.shape[1] != config.codebook_size:
        wanted = f"{config.num_codebooks} levels of {config.codebook_size}"
        raise ValueError(f"codebooks are {list(codebooks.shape)}, the model has {wanted}")
    parts = (model.coarse, model.fine) if isinstance(model, CoarseFirstLM) else (model,)
    for part in parts:
        _begin_at(part, codebooks.detach().float())


@torch.no_grad()
def _begin_at(model: TokenLM | FineLM, codebooks: Tensor) -> None:
    num_codebooks, dim = model.config.num_codebooks, model.config.dim
    entries = codebooks[:num_codebooks] - codebooks[:num_codebooks].mean(dim=1, keepdim=True)
    width = entries.shape[-1]
    side = max(width, dim)
    rotations = [torch.linalg.qr(torch.randn(side, side))[0][:width, :dim] for _ in range(2)]
    gain = (dim / min(width, dim)) ** 0.5  # keeps the standard deviation of a coordinate
    level_scale = entries.std(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    # Embeddings keep the levels' proportions, so that their sum is the latent; heads want logits of like size.
    model.embeddings[:, 1:] = entries / level_scale[0] @ rotations[0] * gain
    heads = entries / level_scale @ rotations[1] * gain * 0.5 * dim**-0.5
    model.head_weight.copy_(heads[-len(model.head_weight) :])  # a fine model has none for level 0


def calibrated_steps(model: TokenLM, codes: Tensor) -> Tensor:
    """Step sizes of the integer grid, [layers + 1, slots], from the activations that some codes cause.

    Args:
        model: to be put on the grid.
        codes: [B, K, T] that are typical.
    """
    watches = [RangeWatch() for _ in range(model.config.num_layers + 1)]
    with torch.no_grad():
        model(codes, grids=watches)
    steps = torch.stack([watch.steps() for watch in watches]).to(codes.device)
    if distributed.is_initialized():  # each has seen its part of the batch, and all go on with one grid
        distributed.all_reduce(steps, op=distributed.ReduceOp.MAX)
    return steps


def rounding_grids(steps: Tensor) -> Sequence[LayerGrid]:
    """The grids of each layer and of the heads, from [layers + 1, slots] steps."""
    return [RoundingGrid(row) for row in steps]


def _over_processes(loss: CodeLoss) -> tuple[dict[int, float], Tensor]:
    """Bits of the levels that were scored in all processes together, and the weight of this one, on average 1.

    Rows differ in length, and gradients are averaged: who has more codes must count for more.
    """
    scored = loss.counts > 0
    sums = torch.stack([loss.bits.where(scored, 0.0) * loss.counts, loss.counts])  # [2, K]
    share = torch.ones((), device=sums.device)
    if distributed.is_initialized():
        distributed.all_reduce(sums)
        share = loss.counts.sum() * distributed.get_world_size() / sums[1].sum()
    levels = sums[1].nonzero()[:, 0].tolist()
    return dict(zip(levels, (sums[0] / sums[1])[levels].tolist(), strict=True)), share


def _place_among_processes() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
