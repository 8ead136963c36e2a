"""Reconstruction losses: what the decoded waveform is compared by while a codec is trained.

Source: EnCodec, arXiv:2210.13438, 3.4 (time and multi-scale mel losses).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.torchaudio_import import import_torchaudio

LOG_FLOOR = 1e-5  # of mel magnitudes: 100 dB below full scale, under the noise of any recording


def time_loss(reference: Tensor, decoded: Tensor) -> Tensor:
    """Mean absolute difference of two waveforms [B, C, S]; a scalar."""
    return (reference - decoded).abs().mean()


class MelLoss(nn.Module):
    """Distance of mel spectrograms at several window lengths.

    Each scale adds the mean |difference| of log10 magnitudes (quiet bands count like loud ones) and a share of the
    difference of magnitudes relative to the reference's mean (loud partials get their level right).
    """

    def __init__(
        self, sample_rate: int, windows: tuple[int, ...], max_bins: int = 64, linear_share: float = 0.3
    ) -> None:
        super().__init__()
        self.windows, self.linear_share = windows, linear_share
        functional = import_torchaudio().functional
        for length in windows:
            # Short windows resolve few bands: more mel bins than that would leave empty filters.
            bins = min(max_bins, length // 8 + 4)
            bank = functional.melscale_fbanks(length // 2 + 1, 0.0, sample_rate / 2, bins, sample_rate)
            self.register_buffer(f"bank_{length}", bank, persistent=False)  # [length // 2 + 1, bins]
            self.register_buffer(f"window_{length}", torch.hann_window(length), persistent=False)

    def forward(self, reference: Tensor, decoded: Tensor) -> Tensor:
        """Two waveforms [B, C, S] to a scalar, the mean over scales."""
        total = reference.new_zeros(())
        for length in self.windows:
            with torch.no_grad():
                target = self._mel(reference, length)
            mel = self._mel(decoded, length)
            log_difference = (torch.log10(target + LOG_FLOOR) - torch.log10(mel + LOG_FLOOR)).abs().mean()
            linear_difference = (target - mel).abs().mean() / (target.mean() + 1e-3)
            total = total + log_difference + self.linear_share * linear_difference
        return total / len(self.windows)

    def _mel(self, waveform: Tensor, length: int) -> Tensor:
        """[B, C, S] to mel magnitudes [B * C, frames, bins], hop a quarter of the window."""
        window: Tensor = getattr(self, f"window_{length}")
        bank: Tensor = getattr(self, f"bank_{length}")
        spectrum = torch.stft(waveform.flatten(0, 1), length, length // 4, window=window, return_complex=True)
        # |z| has no gradient at 0; the floor on |z|^2 keeps it finite for digital silence.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()
        return magnitude.transpose(1, 2) @ bank
