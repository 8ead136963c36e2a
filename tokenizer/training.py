"""One training step of a codec and its adversary.

    waveform ── codec ── decoded ──┬── discriminators: told apart from the waveform? (two steps of three)
                                   └── time, mel, adversarial and feature losses, balanced ── back through the codec

Plain torch: data, logging and checkpoints around it live in `pipelines`. Where torch.distributed is initialised, each
process has its slice of the batch, and all end the step with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from tokenizer.adversarial import Discriminators
from tokenizer.codec import Codec
from tokenizer.objective import Losses, Objective
from tokenizer.optimization import Optimization, OptimizerSettings
from tokenizer.quantizer_training import QuantizerTraining
from tokenizer.spec import CodecSpec
from tokenizer.trainable_codec import TrainableCodec


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave."""

    losses: dict[str, float]  # of all processes, each before its weight; "discriminator" where those were updated
    shares: dict[str, float]  # of the balanced gradient, by loss; empty where it is not balanced
    gradient_norm: float  # of the codec, before clipping
    codes: Tensor  # [B, K, T] int64, K levels in use, of this process


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Everything that decides what a step does."""

    objective: Objective
    quantizer: QuantizerTraining
    optimizer: OptimizerSettings
    autocast: torch.dtype | None = None  # precision of networks and discriminators; None is float32


class CodecTraining:
    """A codec, its discriminators, and the optimizers of both.

    Args:
        spec: of the codec.
        settings: of the training.
        start: a codec to go on from; None starts afresh.
        device: where all of it lives.
    """

    def __init__(
        self, spec: CodecSpec, settings: TrainingSettings, *, start: Codec | None = None, device: str = "cpu"
    ) -> None:
        self.spec, self.settings, self.device = spec, settings, torch.device(device)
        objective, optimizer = settings.objective, settings.optimizer
        self.codec = TrainableCodec(spec, settings.quantizer, start).to(self.device).train()
        self.losses = Losses(spec, objective, settings.autocast).to(self.device)
        self.optimization = Optimization(self.codec, optimizer, optimizer.learning_rate)
        self.discriminators: Discriminators | None = None
        self.adversary: Optimization | None = None
        if objective.discriminator is not None:
            self.discriminators = Discriminators(spec.channels, objective.discriminator).to(self.device)
            rate = optimizer.discriminator_rate or optimizer.learning_rate
            self.adversary = Optimization(self.discriminators, optimizer.for_discriminators(), rate)

    def step(self, waveform: Tensor, step: int, *, rate_factor: float, seed: int) -> StepResult:
        """Train on one batch.

        All that is random follows from seed and step: a resumed run does what an undisturbed one does, and processes
        do the same.

        Args:
            waveform: [B, C, S] float32, S a multiple of hop_length; the slice of this process.
            step: number of the step, from 0.
            rate_factor: of the learning rates.
            seed: of the run.

        Raises:
            FloatingPointError: a loss or gradient is not finite; the message names it, and nothing was updated by it.
        """
        mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])  # torch uses 32 bits of a seed
        generator = torch.Generator().manual_seed(mixed)
        torch.manual_seed(mixed)  # k-means and replaced entries draw from the global generator
        waveform = waveform.to(self.device)
        num_codebooks = self.codec.quantizer.draw_num_codebooks(generator)
        updating = float(torch.rand((), generator=generator)) < self.settings.objective.discriminator_probability
        result = self.codec(waveform, num_codebooks, autocast=self.settings.autocast)
        named: dict[str, float] = {}
        adversarial = self.discriminators is not None and step >= self.settings.objective.adversarial_start
        if adversarial and updating:
            named |= self._update_discriminators(waveform, result.decoded, rate_factor)
        losses = self.losses(waveform, result.decoded, self.discriminators if adversarial else None)
        named |= _finite_means({**losses, "commitment": result.commitment})
        gradient, shares = self.losses.gradient(losses, result.decoded)
        commitment = self.settings.objective.commitment_weight * result.commitment
        torch.autograd.backward([result.decoded, commitment], [gradient, None])
        norm = self.optimization.step(rate_factor)
        return StepResult(named, shares, norm.item(), result.codes)

    def _update_discriminators(self, waveform: Tensor, decoded: Tensor, rate_factor: float) -> dict[str, float]:
        if self.discriminators is None or self.adversary is None:
            raise RuntimeError("there are no discriminators to update")
        loss = self.losses.discrimination(waveform, decoded, self.discriminators)
        named = _finite_means({"discriminator": loss})
        loss.backward()  # type: ignore[no-untyped-call]
        self.adversary.step(rate_factor)
        return named

    def to_codec(self, name: str) -> Codec:
        """The inference form, from the average of the weights where one is kept."""
        exported = self.optimization.exported
        if not isinstance(exported, TrainableCodec):
            raise TypeError(f"a codec is exported from a TrainableCodec, not from {type(exported).__name__}")
        return exported.to_codec(name)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        state: dict[str, Any] = {
            "codec": self.codec.state_dict(),
            "losses": self.losses.state_dict(),
            "optimization": self.optimization.state_dict(),
        }
        if self.discriminators is not None and self.adversary is not None:
            state |= {"discriminators": self.discriminators.state_dict(), "adversary": self.adversary.state_dict()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.codec.load_state_dict(state["codec"])
        self.losses.load_state_dict(state["losses"])
        self.optimization.load_state_dict(state["optimization"])
        if self.discriminators is not None and self.adversary is not None:
            self.discriminators.load_state_dict(state["discriminators"])
            self.adversary.load_state_dict(state["adversary"])


def _finite_means(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Each loss over the whole batch, that of all processes; one look at the device for all of them.

    Raises:
        FloatingPointError: on every process, where one is not finite on any of them.
    """
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    named = dict(zip(losses, values.tolist(), strict=True))
    wrong = [f"{name} {value:g}" for name, value in named.items() if not math.isfinite(value)]
    if wrong:
        raise FloatingPointError(f"a loss is not finite: {', '.join(wrong)}")
    return named
