"""The multi-period discriminator: a waveform folded into rows of one period each, and judged column by column.

Source: HiFi-GAN, arXiv:2010.05646, 2.3; DAC, arXiv:2306.06546, 3.3, whose padding is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from tokenizer.judgement import Judge, Judgement, normed
from tokenizer.network_config import require

_GROWTH = (1, 4, 16, 32, 32)  # output channels of each layer, in multiples of the first
_STRIDES = (3, 3, 3, 3, 1)
_TAPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodDiscriminatorConfig:
    """Shape of the discriminators, one a period."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)  # samples; primes, so that no two see the same rows
    filters: int = 32  # output channels of the first layer; the last has 32 times as many

    def __post_init__(self) -> None:
        positive = bool(self.periods) and all(period >= 1 for period in self.periods)
        require(positive, f"a period discriminator needs positive periods, not {self.periods}")
        require(self.filters >= 1, f"a period discriminator needs positive filters, not {self.filters}")


class PeriodJudge(Judge):
    """The discriminator of one period."""

    def __init__(self, channels: int, period: int, filters: int) -> None:
        widths = [channels, *(growth * filters for growth in _GROWTH)]
        layers = [
            normed(nn.Conv2d(before, after, (_TAPS, 1), (stride, 1), padding=(_TAPS // 2, 0)))
            for before, after, stride in zip(widths, widths[1:], _STRIDES, strict=False)
        ]
        super().__init__(layers, normed(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))), slope=0.1)
        self.period = period

    def picture(self, waveform: Tensor) -> Tensor:
        """[B, C, S] to [B, C, S // period + 1, period], its end mirrored."""
        padded = functional.pad(waveform, (0, self.period - waveform.shape[-1] % self.period), mode="reflect")
        rows: Tensor = padded.reshape(*padded.shape[:-1], -1, self.period)
        return rows


class MultiPeriodDiscriminator(nn.Module):
    """One discriminator a period, each with the whole waveform.

    Args:
        channels: of the waveform.
        config: of the discriminators.
    """

    def __init__(self, channels: int, config: PeriodDiscriminatorConfig) -> None:
        super().__init__()
        judges = (PeriodJudge(channels, period, config.filters) for period in config.periods)
        self.discriminators = nn.ModuleList(judges)
        self.longest = max(config.periods)

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """Judge a batch [B, C, S] at each period.

        Raises:
            ValueError: the waveform is not longer than the longest period, and cannot be mirrored.
        """
        if waveform.shape[-1] <= self.longest:
            raise ValueError(f"{waveform.shape[-1]} samples are not more than the longest period, {self.longest}")
        return [discriminator(waveform) for discriminator in self.discriminators]
