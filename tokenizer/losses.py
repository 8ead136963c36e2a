"""Reconstruction losses: what the decoded waveform is compared by while a codec is trained.

Source: EnCodec, arXiv:2210.13438, 3.4 (time and multi-scale mel losses); DAC, arXiv:2306.06546, 3.4.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from tokenizer.torchaudio_import import import_torchaudio

LOG_FLOOR = 1e-5  # of mel magnitudes: 100 dB below full scale, under the noise of any recording
_LINEAR_SHARE = 0.3  # of the linear term in the relative form


def time_loss(reference: Tensor, decoded: Tensor) -> Tensor:
    """Mean absolute difference of two waveforms [B, C, S]; a scalar."""
    return (reference - decoded).abs().mean()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a value without gradient over all processes; the value itself where there is one process."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


@dataclass(frozen=True, slots=True, kw_only=True)
class MelConfig:
    """Which mel spectrograms are compared, and how. Default: EnCodec's.

    Forms (t and m are mel magnitudes of reference and decoded waveform; means over bins and frames):
        paper: mean |t - m| + mean (log10 t - log10 m)^2, of windows of unit energy; the mean over scales. The paper's
            L1 and L2 with alpha = 1. The logarithms are from its authors' code (audiocraft): without them nothing quiet
            would count. That code has power spectra, in which the first term would be one of peaks alone.
        relative: mean |log10 t - log10 m| (quiet bands count like loud ones) + 0.3 mean |t - m| / mean t (loud partials
            get their level right); the mean over scales.
        log: mean |log10 t - log10 m|, with Slaney's filters; the sum over scales, for which DAC's weight of 15 is made.
    """

    windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)  # samples; the hop is a quarter
    bins: int | tuple[int, ...] = 64  # at most so many at each window; or exactly so many, one count a window
    form: Literal["paper", "relative", "log"] = "paper"

    def __post_init__(self) -> None:
        if not self.windows or any(length < 16 or length % 4 for length in self.windows):
            raise ValueError(f"mel windows {self.windows} must be multiples of 4 from 16 on")
        if isinstance(self.bins, tuple) and len(self.bins) != len(self.windows):
            raise ValueError(f"mel bins {self.bins} must be one count, or one for each of the windows {self.windows}")
        if min(bins for _, bins in self.scales) < 1:
            raise ValueError(f"mel bins {self.bins} must be positive")
        if self.form not in _FORMS:
            raise ValueError(f"mel form {self.form!r} is not one of {', '.join(_FORMS)}")

    @property
    def scales(self) -> tuple[tuple[int, int], ...]:
        """Window and bins of each scale."""
        if isinstance(self.bins, tuple):
            return tuple(zip(self.windows, self.bins, strict=True))
        # Short windows resolve few bands: more bins than that would mostly be empty.
        return tuple((length, min(self.bins, length // 8 + 4)) for length in self.windows)


class MelLoss(nn.Module):
    """Distance of mel spectrograms at several window lengths.

    Args:
        sample_rate: Hz.
        config: which spectrograms, and how they are compared.
    """

    def __init__(self, sample_rate: int, config: MelConfig) -> None:
        super().__init__()
        self.config, self.form = config, _FORMS[config.form]
        self.filled: list[float] = []  # share of the filters that hold a frequency at all, by window
        for length, bins in config.scales:
            bank = _filters(sample_rate, length, bins, slaney=self.form.slaney)  # [length // 2 + 1, bins]
            # An empty filter adds nothing. It counts in the mean, as in the reference code, but takes no time.
            held = bank.any(dim=0)
            self.filled.append(float(held.float().mean()))
            taper = torch.hann_window(length)
            self.register_buffer(f"bank_{length}", bank[:, held], persistent=False)
            self.register_buffer(
                f"taper_{length}", taper / taper.norm() if self.form.normalized else taper, persistent=False
            )

    def forward(self, reference: Tensor, decoded: Tensor) -> Tensor:
        """Two waveforms [B, C, S] to a scalar; its gradient is finite for digital silence.

        Where each process has a part of the batch, the mean over processes is the loss of the whole batch.

        Raises:
            ValueError: the waveforms are too short to be mirrored at their ends by half of the longest window.
        """
        longest = max(self.config.windows)
        if decoded.shape[-1] <= longest // 2:
            raise ValueError(f"{decoded.shape[-1]} samples are too few for a window of {longest}: half of it, and one")
        distances = []
        for length, filled in zip(self.config.windows, self.filled, strict=True):
            with torch.no_grad():
                target = self._mel(reference, length)
            distances.append(self.form.distance(target, self._mel(decoded, length), filled))
        total = torch.stack(distances)
        return total.sum() if self.form.summed else total.mean()

    def _mel(self, waveform: Tensor, length: int) -> Tensor:
        """[B, C, S] to mels [B * C, frames, bins]; frames are centred, with a hop of a quarter window."""
        bank, taper = self.get_buffer(f"bank_{length}"), self.get_buffer(f"taper_{length}")
        mirrored = functional.pad(waveform.flatten(0, 1), (length // 2, length // 2), mode="reflect")
        # Not torch.stft, whose backward takes twice the time of this one on a CPU where windows are short.
        spectrum = torch.fft.rfft(mirrored.unfold(-1, length, length // 4) * taper)
        power = spectrum.real.square() + spectrum.imag.square()
        # |z| has no gradient at 0; the floor on |z|^2 keeps it finite for digital silence.
        mel: Tensor = (power + 1e-12).sqrt() @ bank
        return mel


def _filters(sample_rate: int, length: int, bins: int, *, slaney: bool) -> Tensor:
    """Triangular filters from 0 Hz to half the sample rate [length // 2 + 1, bins]; those too narrow are empty."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        bank: Tensor = import_torchaudio().functional.melscale_fbanks(
            length // 2 + 1,
            0.0,
            sample_rate / 2,
            bins,
            sample_rate,
            norm="slaney" if slaney else None,
            mel_scale="slaney" if slaney else "htk",
        )
    return bank


def _paper_distance(target: Tensor, mel: Tensor, filled: float) -> Tensor:
    linear = (target - mel).abs().mean()
    logarithmic = ((target + LOG_FLOOR).log10() - (mel + LOG_FLOOR).log10()).square().mean()
    return (linear + logarithmic) * filled


def _relative_distance(target: Tensor, mel: Tensor, filled: float) -> Tensor:
    logarithmic = ((target + LOG_FLOOR).log10() - (mel + LOG_FLOOR).log10()).abs().mean() * filled
    level = mean_over_processes(target.mean() * filled)
    return logarithmic + _LINEAR_SHARE * (target - mel).abs().mean() * filled / (level + 1e-3)


def _log_distance(target: Tensor, mel: Tensor, filled: float) -> Tensor:
    return (target.clamp(min=LOG_FLOOR).log10() - mel.clamp(min=LOG_FLOOR).log10()).abs().mean() * filled


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    distance: Callable[[Tensor, Tensor, float], Tensor]
    normalized: bool = False  # windows of unit energy; else as they are, with a maximum of 1
    slaney: bool = False  # scale and norm of the filters; else those of HTK
    summed: bool = False  # over scales; else the mean


_FORMS = {
    "paper": _Form(distance=_paper_distance, normalized=True),
    "relative": _Form(distance=_relative_distance),
    "log": _Form(distance=_log_distance, slaney=True, summed=True),
}
