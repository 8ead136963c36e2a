"""The adversary of a codec: its discriminators, what they learn by, and what the codec learns from them.

Source: EnCodec, arXiv:2210.13438, 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tokenizer.judgement import Judgement
from tokenizer.losses import mean_over_processes
from tokenizer.period_discriminator import MultiPeriodDiscriminator, PeriodDiscriminatorConfig
from tokenizer.stft_discriminator import MultiScaleStftDiscriminator, StftDiscriminatorConfig

__all__ = [
    "AdversarialKind",
    "DiscriminatorConfig",
    "Discriminators",
    "Judgement",
    "discriminator_loss",
    "feature_matching_loss",
    "generator_loss",
]

AdversarialKind = Literal["hinge", "least_squares"]  # EnCodec's; DAC's (arXiv:2306.06546, 3.4)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscriminatorConfig:
    """Which discriminators there are. Default: EnCodec's."""

    stft: StftDiscriminatorConfig | None = field(default_factory=StftDiscriminatorConfig)
    period: PeriodDiscriminatorConfig | None = None

    def __post_init__(self) -> None:
        if self.stft is None and self.period is None:
            raise ValueError("an adversary has discriminators: stft, period or both")


class Discriminators(nn.Module):
    """All discriminators of a codec.

    Args:
        channels: of the waveform.
        config: which there are.
    """

    def __init__(self, channels: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.families = nn.ModuleDict()
        if config.stft is not None:
            self.families["stft"] = MultiScaleStftDiscriminator(channels, config.stft)
        if config.period is not None:
            self.families["period"] = MultiPeriodDiscriminator(channels, config.period)

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """Judge a batch [B, C, S]: the judgements of every discriminator, always in the same order.

        Raises:
            ValueError: the waveform is too short for one of them.
        """
        return [judgement for family in self.families.values() for judgement in family(waveform)]


def discriminator_loss(
    real: Sequence[Judgement], fake: Sequence[Judgement], *, kind: AdversarialKind = "hinge"
) -> Tensor:
    """How far the scores are from telling recordings and decoded waveforms apart, the mean over discriminators.

    Args:
        real: of the recordings.
        fake: of the decoded waveforms, without a way back to the codec.
        kind: "hinge" asks for more than 1 and less than -1, "least_squares" for 1 and 0.
    """
    if kind == "hinge":
        losses = [(1 - r.score).relu().mean() + (1 + f.score).relu().mean() for r, f in zip(real, fake, strict=True)]
    else:
        losses = [(1 - r.score).square().mean() + f.score.square().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_loss(fake: Sequence[Judgement], *, kind: AdversarialKind = "hinge") -> Tensor:
    """How far the scores of decoded waveforms are from those that recordings shall get, the mean over discriminators.

    The hinge is the paper's max(0, 1 - D): what fools a discriminator already is pushed no further.
    """
    gaps = [1 - judgement.score for judgement in fake]
    return torch.stack([gap.relu().mean() if kind == "hinge" else gap.square().mean() for gap in gaps]).mean()


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Mean |difference| of each layer's output, relative to its mean size on recordings (equation 3 of the paper).

    The mean over layers and discriminators. The size is that of the whole batch, also where processes have a part of
    it each.
    """
    differences, sizes = [], []
    for r, f in zip(real, fake, strict=True):
        count = len(real) * len(r.features)
        for recorded, decoded in zip(r.features, f.features, strict=True):
            # Summed in float32: under autocast the layers are bfloat16.
            differences.append((recorded.detach() - decoded).abs().mean(dtype=torch.float32) / count)
            sizes.append(recorded.detach().abs().mean(dtype=torch.float32))
    scale = mean_over_processes(torch.stack(sizes)).clamp(min=1e-6)  # a layer may be dead, and zero is no scale
    return (torch.stack(differences) / scale).sum()
