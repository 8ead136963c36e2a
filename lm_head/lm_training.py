"""One training step of a token language model, and how its weights begin: at the codec's own codebooks.

In the last part of a run the model computes on the integer grid of the entropy coder, so that its integer form costs
next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from lm_head.activation_grid import LayerGrid, RangeWatch, RoundingGrid
from lm_head.token_lm import LMConfig, TokenLM
from tokenizer.optimization import Optimization, OptimizerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LMObjective:
    """What is optimised, and on which numbers of levels."""

    levels: tuple[int, ...] = (2, 4, 8, 16)  # one of them is drawn for each batch: one model for all bandwidths
    max_offset: int = 1000  # of positions; drawn for each row, so that none is a special one
    grid_from: float = 0.5  # share of the steps after which the integer grid holds; 1 for never
    begin_share: float = 0.5  # of the batches whose crops are treated as beginnings of streams
    scored_levels: int = 4  # heads that are trained in a step, drawn among its levels: heads are most of the cost

    def __post_init__(self) -> None:
        if not self.levels or min(*self.levels, self.scored_levels) < 1 or self.max_offset < 0:
            raise ValueError("levels and scored_levels are positive, and max_offset is not negative")
        if not 0 <= self.grid_from <= 1 or not 0 <= self.begin_share <= 1:
            raise ValueError("grid_from and begin_share lie in [0, 1]")


@dataclass(frozen=True, slots=True)
class LMStep:
    """What one step of training showed."""

    bits: dict[int, float]  # per code, of each level that was scored
    gradient_norm: float


class LMTraining:
    """A token language model and its optimizers.

    Args:
        config: sizes.
        objective: what is optimised.
        optimizer: and how.
        autocast: precision of the forward pass, None for float32.
        codebooks: [K, V, D'] of the codec, to start from. Codes that sound alike then have like embeddings from the
            first step on, which no small corpus would teach.
        start: a model to go on from; goes before codebooks.
        device: where all of it lives.
    """

    def __init__(
        self,
        config: LMConfig,
        objective: LMObjective,
        optimizer: OptimizerSettings,
        *,
        autocast: torch.dtype | None = None,
        codebooks: Tensor | None = None,
        start: TokenLM | None = None,
        device: str = "cpu",
    ) -> None:
        self.objective, self.autocast, self.device = objective, autocast, torch.device(device)
        self.levels = tuple(sorted({min(count, config.num_codebooks) for count in objective.levels}))
        self.model = TokenLM(config)
        if start is not None:
            if start.config != config:
                raise ValueError(f"the model to start from has other sizes: {start.config}, not {config}")
            self.model.load_state_dict(start.state_dict())
        elif codebooks is not None:
            begin_at_codebooks(self.model, codebooks)
        self.model.to(self.device).train()
        self.optimization = Optimization(self.model, optimizer, optimizer.learning_rate)
        self.grid_steps: Tensor | None = None  # [layers + 1, slots], once the grid holds

    def step(self, codes: Tensor, step: int, *, rate_factor: float, seed: int, total_steps: int) -> LMStep:
        """Train on one batch. All that is random follows from seed and step.

        Args:
            codes: [B, K, T] int64; the slice of this process.
            step: number of the step, from 0.
            rate_factor: of the learning rate.
            seed: of the run.
            total_steps: of the run, for when the grid begins to hold.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; nothing was updated by it.
        """
        draw = np.random.default_rng([seed, step])
        num_codebooks = int(draw.choice(self.levels))
        begins = bool(draw.random() < self.objective.begin_share)
        scored = np.sort(draw.permutation(num_codebooks)[: self.objective.scored_levels])
        offset = torch.from_numpy(self._draw_offsets(draw, len(codes))).to(self.device)
        codes, levels = codes[:, :num_codebooks].to(self.device), torch.from_numpy(scored).to(self.device)
        if self.grid_steps is None and step >= self.objective.grid_from * total_steps:
            self.grid_steps = calibrated_steps(self.model, codes)
        grids = None if self.grid_steps is None else rounding_grids(self.grid_steps)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            loss = self.model.loss(codes, begins=begins, offset=offset, grids=grids, scored=levels)
        bits = _mean_over_processes(loss.bits[levels])
        if not bool(bits.isfinite().all()):
            raise FloatingPointError("the loss of the language model is not finite")
        loss.nats.backward()  # type: ignore[no-untyped-call]
        norm = self.optimization.step(rate_factor)
        return LMStep(dict(zip(scored.tolist(), bits.tolist(), strict=True)), norm.item())

    def _draw_offsets(self, draw: np.random.Generator, num_rows: int) -> npt.NDArray[np.int64]:
        """[B, 1] for the rows of this process: those that one process with all rows would draw for them."""
        rank, size = 0, 1
        if distributed.is_initialized():
            rank, size = distributed.get_rank(), distributed.get_world_size()
        offsets = draw.integers(0, self.objective.max_offset + 1, (size * num_rows, 1))
        return offsets[rank * num_rows : (rank + 1) * num_rows]

    def to_lm(self) -> TokenLM:
        """A copy for inference, from the average of the weights where one is kept."""
        exported = self.optimization.exported
        if not isinstance(exported, TokenLM):
            raise TypeError(f"a language model is exported from a TokenLM, not from {type(exported).__name__}")
        lm = TokenLM(exported.config)
        lm.load_state_dict(exported.state_dict())
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


def begin_at_codebooks(model: TokenLM, codebooks: Tensor) -> None:
    """Set embeddings and heads to the codec's codebooks, turned into the model's space by a random rotation each.

    The sum of a frame's embeddings is then its latent vector, rotated.

    Args:
        model: to change.
        codebooks: [K, V, D'] with at least the model's levels; D' beyond the model's dimension is projected down.

    Raises:
        ValueError: fewer levels, or another codebook size.
    """
    config = model.config
    if codebooks.shape[0] < config.num_codebooks or codebooks.shape[1] != config.codebook_size:
        wanted = f"{config.num_codebooks} levels of {config.codebook_size}"
        raise ValueError(f"codebooks are {list(codebooks.shape)}, the model has {wanted}")
    entries = codebooks[: config.num_codebooks].detach().float()
    entries = entries - entries.mean(dim=1, keepdim=True)
    width = entries.shape[-1]
    side = max(width, config.dim)
    rotations = [torch.linalg.qr(torch.randn(side, side))[0][:width, : config.dim] for _ in range(2)]
    gain = (config.dim / min(width, config.dim)) ** 0.5  # keeps the standard deviation of a coordinate
    level_scale = entries.std(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    with torch.no_grad():
        # Embeddings keep the levels' proportions, so that their sum is the latent; heads want logits of like size.
        model.embeddings[:, 1:] = entries / level_scale[0] @ rotations[0] * gain
        model.head_weight.copy_(entries / level_scale @ rotations[1] * gain * 0.5 * config.dim**-0.5)


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


def _mean_over_processes(values: Tensor) -> Tensor:
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values
