"""How gradients become better weights: averaged over processes, clipped, and applied by Muon and AdamW."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

MIN_MATRIX_SIDE = 16  # a few rows of taps are no matrix to orthogonalise


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Which steps are taken. Defaults: EnCodec, arXiv:2210.13438, 4.1."""

    learning_rate: float = 3e-4
    discriminator_rate: float | None = None  # None: that of the codec
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0  # of the norm over all weights
    muon: bool = False  # for weight matrices; AdamW has the rest
    weight_average: float = 0.0  # decay of the moving average that is exported; 0 exports the weights themselves

    def __post_init__(self) -> None:
        positive = (self.learning_rate, self.gradient_clip, self.discriminator_rate)
        if any(value is not None and value <= 0 for value in positive) or self.weight_decay < 0:
            raise ValueError("rates and gradient_clip must be positive, weight_decay not negative")
        if not 0 <= self.weight_average < 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("weight_average and betas lie in [0, 1)")

    def for_discriminators(self) -> OptimizerSettings:
        """The same without what only the codec has: Muon, and the average of its weights."""
        return dataclasses.replace(self, muon=False, weight_average=0.0)


class Optimization:
    """The optimizers of one module and, where wanted, the moving average of its weights."""

    def __init__(self, module: nn.Module, settings: OptimizerSettings, learning_rate: float) -> None:
        self.module, self.settings, self.learning_rate = module, settings, learning_rate
        self.optimizers = _optimizers(module, settings)
        self.average: AveragedModel | None = None
        if settings.weight_average:
            self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(settings.weight_average))  # type: ignore[no-untyped-call]

    def step(self, factor: float) -> Tensor:
        """Apply the gradients that `backward` has left, and clear them.

        Args:
            factor: of the learning rate, from the schedule.

        Returns:
            Norm of the gradient before clipping; a scalar.

        Raises:
            FloatingPointError: the gradient is not finite; weights and optimizers are as before.
        """
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        average_gradients(parameters)
        norm: Tensor = nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
        if not bool(norm.isfinite()):
            raise FloatingPointError(f"the gradient of {type(self.module).__name__} is not finite")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.module)
        return norm

    @property
    def exported(self) -> nn.Module:
        """The module whose weights are to be used: the average where there is one."""
        return self.module if self.average is None else self.average.module

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the module's own state."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one exchange."""
    if not distributed.is_initialized() or not parameters:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _optimizers(module: nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for weight matrices and AdamW for the rest (convolutions, biases, gains).

    Measured on the patch codec over 300 steps of 24 s: time loss 0.0173 with Muon, 0.0193 with AdamW alone, at 1.2
    times the seconds per step. Scaled to AdamW's update size, so that both follow one learning rate.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if settings.muon and p.ndim == 2 and min(p.shape) >= MIN_MATRIX_SIDE]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen]
    adamw = torch.optim.AdamW(others, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
    if not matrices:
        return [adamw]
    decay = settings.weight_decay
    return [
        torch.optim.Muon(matrices, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        adamw,
    ]
