"""What a codec is trained for: the losses on its output, their weights, and the gradient that they add up to.

Source: EnCodec, arXiv:2210.13438, 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.adversarial import (
    AdversarialKind,
    DiscriminatorConfig,
    Discriminators,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from tokenizer.balancer import BalancerState, balance
from tokenizer.judgement import Judgement
from tokenizer.losses import MelConfig, MelLoss, time_loss
from tokenizer.spec import CodecSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Losses and their weights. Defaults: EnCodec at 24 kHz."""

    time_weight: float = 0.1
    mel_weight: float = 1.0
    adversarial_weight: float = 3.0
    feature_weight: float = 3.0
    commitment_weight: float = 1.0  # outside the balancer: it does not come by way of the decoded waveform
    balanced: bool = True  # the weights are shares of the gradient; False: the weights multiply the losses
    mel: MelConfig = field(default_factory=MelConfig)
    discriminator: DiscriminatorConfig | None = field(default_factory=DiscriminatorConfig)  # None: no adversary
    adversarial_kind: AdversarialKind = "hinge"
    adversarial_start: int = 0  # step from which the adversary takes part
    discriminator_probability: float = 2 / 3  # of the steps that update the discriminators too

    def __post_init__(self) -> None:
        weights = (self.time_weight, self.mel_weight, self.adversarial_weight, self.feature_weight)
        if min(*weights, self.commitment_weight) < 0 or self.time_weight + self.mel_weight <= 0:
            raise ValueError("weights must not be negative, and time or mel must have one")
        if not 0 < self.discriminator_probability <= 1 or self.adversarial_start < 0:
            raise ValueError("discriminator_probability lies in (0, 1], adversarial_start from 0")


class Losses(nn.Module):
    """The losses on the decoded waveform, and the balance between them.

    Args:
        spec: of the codec.
        objective: what counts how much.
        autocast: precision of the discriminators; None is float32, as everything else always is.
    """

    def __init__(self, spec: CodecSpec, objective: Objective, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.objective, self.autocast = objective, autocast
        self.mel = MelLoss(spec.sample_rate, objective.mel)
        self.balance_state = BalancerState.start(self.weights)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss that has one."""
        named = {"time": self.objective.time_weight, "mel": self.objective.mel_weight}
        if self.objective.discriminator is not None:
            named |= {"adversarial": self.objective.adversarial_weight, "feature": self.objective.feature_weight}
        return {name: weight for name, weight in named.items() if weight > 0}

    def forward(self, waveform: Tensor, decoded: Tensor, discriminators: Discriminators | None) -> dict[str, Tensor]:
        """Each loss on a batch [B, C, S], by name, before its weight; the adversary's only where there is one."""
        losses = {}
        if "time" in self.weights:
            losses["time"] = time_loss(waveform, decoded)
        if "mel" in self.weights:
            losses["mel"] = self.mel(waveform, decoded)
        if discriminators is not None:
            with torch.no_grad():
                real = self._judge(discriminators, waveform)
            fake = self._judge(discriminators, decoded)
            losses["adversarial"] = generator_loss(fake, kind=self.objective.adversarial_kind)
            losses["feature"] = feature_matching_loss(real, fake)
        return {name: loss for name, loss in losses.items() if name in self.weights}

    def gradient(self, losses: Mapping[str, Tensor], decoded: Tensor) -> tuple[Tensor, dict[str, float]]:
        """What the decoder's output should change by.

        Taken with respect to the waveform first, so that discriminators gather no gradients here, and the losses can be
        balanced there.

        Returns:
            [B, C, S], and the share of each loss in it (empty unless balanced).
        """
        if not self.objective.balanced:
            total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
            return torch.autograd.grad(total, decoded)[0], {}
        gradient, shares, self.balance_state = balance(losses, decoded, self.weights, self.balance_state)
        return gradient, shares

    def discrimination(self, waveform: Tensor, decoded: Tensor, discriminators: Discriminators) -> Tensor:
        """The discriminators' own loss on a batch: real against decoded."""
        real, fake = (self._judge(discriminators, sound) for sound in (waveform, decoded.detach()))
        return discriminator_loss(real, fake, kind=self.objective.adversarial_kind)

    def _judge(self, discriminators: Discriminators, waveform: Tensor) -> list[Judgement]:
        with torch.autocast(waveform.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            judgements: list[Judgement] = discriminators(waveform)
        return judgements

    def get_extra_state(self) -> dict[str, Any]:
        """The balancer's averages, for checkpoints."""
        return self.balance_state.to_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_extra_state`."""
        self.balance_state = BalancerState.from_dict(state)
