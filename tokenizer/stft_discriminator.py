"""The multi-scale STFT discriminator: a waveform judged by its complex spectrogram at several window lengths.

Source: EnCodec, arXiv:2210.13438, 3.4 and figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizer.judgement import Judge, Judgement, normed
from tokenizer.network_config import require


@dataclass(frozen=True, slots=True, kw_only=True)
class StftDiscriminatorConfig:
    """Shape of the discriminators, one a window. Defaults: EnCodec at 24 kHz; kernels as released, not 3 x 8."""

    windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)  # samples; the hop is a quarter
    filters: int = 32  # output channels of every layer
    kernel: tuple[int, int] = (3, 9)  # frames, frequency bins
    dilations: tuple[int, ...] = (1, 2, 4)  # in frames, of the layers that halve the number of frequency bins

    def __post_init__(self) -> None:
        windows = bool(self.windows) and all(length >= 8 and length % 4 == 0 for length in self.windows)
        require(windows, f"an STFT discriminator needs windows in multiples of 4 from 8 on, not {self.windows}")
        kernel = len(self.kernel) == 2 and all(side >= 1 and side % 2 for side in self.kernel)
        require(kernel, f"an STFT discriminator needs a kernel of two odd sides, not {self.kernel}")
        sizes = (self.filters, *self.dilations)
        require(min(sizes) >= 1, f"an STFT discriminator needs positive filters and dilations, not {sizes}")


class StftJudge(Judge):
    """The discriminator of one window length."""

    def __init__(self, channels: int, window: int, config: StftDiscriminatorConfig) -> None:
        width, (rows, columns) = config.filters, config.kernel
        half = (rows // 2, columns // 2)
        # Without weight norm, as in the authors' code: `encodec` and `audiocraft` leave it out of the first layer.
        layers: list[nn.Module] = [nn.Conv2d(2 * channels, width, config.kernel, padding=half)]
        for dilation in config.dilations:
            padding = (dilation * half[0], half[1])
            layers.append(
                normed(nn.Conv2d(width, width, config.kernel, (1, 2), padding=padding, dilation=(dilation, 1)))
            )
        layers.append(normed(nn.Conv2d(width, width, rows, padding=half[0])))
        super().__init__(layers, normed(nn.Conv2d(width, 1, rows, padding=half[0])), slope=0.2)
        self.length = window
        taper = torch.hann_window(window)
        self.register_buffer("taper", taper / taper.norm(), persistent=False)

    def picture(self, waveform: Tensor) -> Tensor:
        """[B, C, S] to [B, 2 C, frames, window // 2 + 1]: real parts of all channels, then imaginary ones."""
        taper: Tensor = self.get_buffer("taper")
        frames = waveform.float().unfold(-1, self.length, self.length // 4)  # [B, C, frames, window]
        spectrum = torch.view_as_real(torch.fft.rfft(frames * taper))
        return spectrum.permute(0, 4, 1, 2, 3).flatten(1, 2)


class MultiScaleStftDiscriminator(nn.Module):
    """One discriminator a window length, each with the whole waveform.

    Args:
        channels: of the waveform.
        config: of the discriminators.
    """

    def __init__(self, channels: int, config: StftDiscriminatorConfig) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(StftJudge(channels, window, config) for window in config.windows)
        self.longest = max(config.windows)

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """Judge a batch [B, C, S] at each scale; the spectrograms are float32 under autocast too.

        Raises:
            ValueError: the waveform is shorter than the longest window.
        """
        if waveform.shape[-1] < self.longest:
            raise ValueError(f"{waveform.shape[-1]} samples are fewer than the longest window has, {self.longest}")
        return [discriminator(waveform) for discriminator in self.discriminators]
