"""How long a training run lasts, on how much at a time, and how its learning rate goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

import torch

_MAY_BE_ZERO = ("warmup_steps", "decay_steps", "precision", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What every recipe says; how long a row of a batch is, each kind of recipe adds."""

    steps: int
    batch_size: int  # of all processes together
    warmup_steps: int = 0
    decay_steps: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"  # of the networks
    seed: int = 0
    log_every: int = 25  # steps
    checkpoint_every: int = 500  # steps

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in _MAY_BE_ZERO and getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} must be positive")
        if self.warmup_steps < 0 or not 0 <= self.decay_steps <= self.steps:
            raise ValueError("warmup_steps must not be negative, decay_steps not outside 0 to steps")
        if self.checkpoint_every % self.log_every:
            raise ValueError("checkpoint_every must be a multiple of log_every: a resumed run then logs the same rows")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is not float32 or bfloat16")

    @property
    def autocast(self) -> torch.dtype | None:
        """The precision as torch.autocast takes it; None is float32."""
        return torch.bfloat16 if self.precision == "bfloat16" else None

    def rate_factor(self, step: int) -> float:
        """Share of the learning rate at a step: a linear rise, a plateau, and a fall along 1 - sqrt to zero.

        The plateau makes a run extendable: until the fall begins, its checkpoints do not depend on `steps`.
        """
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        into_fall = step - (self.steps - self.decay_steps)
        fall = 1.0 - (into_fall / self.decay_steps) ** 0.5 if into_fall > 0 else 1.0
        return min(rise, fall)

    def lasting(self, steps: int) -> Self:
        """The same with another number of steps; the fall is part of them."""
        return dataclasses.replace(self, steps=steps, decay_steps=min(self.decay_steps, steps))
