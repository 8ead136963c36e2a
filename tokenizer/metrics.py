"""How close a decoded waveform is to its original: five numbers, each on one channel of each.

SI-SNR and the mel distance need nothing but torch. STOI, PESQ and ViSQOL are packages of the extra `train`, imported
when they are first used. Scores compare with other scores only where the clips and these functions are the same.
"""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from typing import Any

import torch
from torch import Tensor

from tokenizer.resampling import resample
from tokenizer.torchaudio_import import import_torchaudio

PERCEPTUAL_RATE = 16_000  # Hz: what PESQ-WB, ViSQOL's speech mode and, here, STOI are measured at
MEL_RATE = 24_000  # Hz
MEL_WINDOW, MEL_HOP, MEL_BANDS, MEL_FLOOR = 1024, 256, 80, 1e-5
MAX_SI_SNR_DB = 100.0
_NO_POWER = 1e-12  # mean square of -120 dBFS, below the noise of 16 bits: silence
_PESQ_CLIP_S = 30  # ITU-T P.862 is made for 8 to 30 s; its C code has fixed tables that much longer input overruns


def si_snr(reference: Tensor, degraded: Tensor, sample_rate: int) -> float:
    """Scale-invariant signal-to-noise ratio in dB, from -100 to 100; higher is better.

    The degraded waveform is split into its projection on the reference and the rest; both means are removed first.
    Silence has no ratio: against sound it gets -100, against silence 100.

    Args:
        reference: [S] floats in [-1, 1].
        degraded: [S].
        sample_rate: Hz of both; the number does not depend on it.

    Raises:
        ValueError: the waveforms are not 1-D, not equally long, empty, or not finite.

    Source: Le Roux et al., "SDR: half-baked or well done?", arXiv:1811.02508.
    """
    _check(reference, degraded, sample_rate)
    reference, degraded = (waveform.double() - waveform.double().mean() for waveform in (reference, degraded))
    silent = _is_silent(reference), _is_silent(degraded)
    if any(silent):
        return MAX_SI_SNR_DB if all(silent) else -MAX_SI_SNR_DB
    projection = (degraded @ reference) / (reference @ reference) * reference
    ratio = projection.square().sum() / (degraded - projection).square().sum()  # infinite where nothing differs
    return float((10 * ratio.log10()).clamp(-MAX_SI_SNR_DB, MAX_SI_SNR_DB))


def mel_distance(reference: Tensor, degraded: Tensor, sample_rate: int) -> float:
    """Mean |log10 difference| of mel magnitudes at 24 kHz; lower is better, 1.0 is a factor of ten in every band.

    80 bands up to 12 kHz, Hann windows of 1024 samples every 256, magnitudes below 1e-5 count as 1e-5.

    Args:
        reference: [S] floats in [-1, 1].
        degraded: [S].
        sample_rate: Hz of both; other rates than 24 kHz are resampled.

    Raises:
        ValueError: the waveforms are not 1-D, not equally long, empty, or not finite.
    """
    _check(reference, degraded, sample_rate)
    both = resample(torch.stack([reference, degraded]).float().cpu(), sample_rate, MEL_RATE)  # [2, S]
    short_by = max(0, MEL_WINDOW - both.shape[-1])
    mel = _mel_spectrogram()(torch.nn.functional.pad(both, (0, short_by))).clamp_min(MEL_FLOOR).log10()
    return float((mel[0] - mel[1]).abs().mean())


def stoi(reference: Tensor, degraded: Tensor, sample_rate: int) -> float:
    """Short-time objective intelligibility, from 0 to 1; higher is better.

    Args:
        reference: [S] floats in [-1, 1], speech.
        degraded: [S].
        sample_rate: Hz of both; other rates than 16 kHz are resampled.

    Raises:
        ValueError: as for `si_snr`, a silent reference, or less than 0.4 s of sound that is not silence.
        ImportError: the package pystoi is missing.

    Source: Taal et al., ICASSP 2010.
    """
    module = _metric_package("pystoi")
    arrays = _perceptual_arrays(reference, degraded, sample_rate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # pystoi warns and returns 1e-5 where it has no answer
            return float(module.stoi(*arrays, PERCEPTUAL_RATE))
    except (RuntimeWarning, ValueError) as error:
        raise ValueError("STOI needs at least 0.4 s of sound that is not silence") from error


def pesq_wb(reference: Tensor, degraded: Tensor, sample_rate: int) -> float:
    """Perceptual evaluation of speech quality, wide band: 1.0 to 4.64; higher is better.

    Args:
        reference: [S] floats in [-1, 1], speech of 0.25 to 30 s.
        degraded: [S].
        sample_rate: Hz of both; other rates than 16 kHz are resampled.

    Raises:
        ValueError: as for `si_snr`, a silent reference, too short or too long, or no speech found in it.
        ImportError: the package pesq is missing.

    Source: ITU-T P.862.2.
    """
    module = _metric_package("pesq")
    arrays = _perceptual_arrays(reference, degraded, sample_rate)
    if len(arrays[0]) > _PESQ_CLIP_S * PERCEPTUAL_RATE:
        raise ValueError(f"PESQ takes at most {_PESQ_CLIP_S} s, not {len(arrays[0]) / PERCEPTUAL_RATE:.1f} s")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it divides by the peak, 0 in silence, before it gives up
            score = float(module.pesq(PERCEPTUAL_RATE, *arrays, "wb"))
    except (module.PesqError, ValueError) as error:  # ValueError: NaN, of a silent degraded waveform
        reason = error.args[0] if error.args else ""
        raise ValueError(f"PESQ has no score: {reason.decode() if isinstance(reason, bytes) else reason}") from error
    if not 0.0 < score < 5.0:
        raise ValueError(f"PESQ has no score: it computed {score}")
    return score


def visqol(reference: Tensor, degraded: Tensor, sample_rate: int) -> float:
    """ViSQOL's estimate of listeners' mean opinion in speech mode, 1 to 5; higher is better.

    The lattice model maps similarity to opinion, as in Google's program; the older polynomial gives 0.5 to 2 more, and
    the two must never be mixed in one table. Natural speech equal to its reference gets 4.5 to 4.8.

    Args:
        reference: [S] floats in [-1, 1], speech.
        degraded: [S].
        sample_rate: Hz of both; other rates than 16 kHz are resampled.

    Raises:
        ValueError: as for `si_snr`, a silent reference, too short, or no speech found in it.
        ImportError: the package visqol-python or its lattice runtime is missing.

    Source: ViSQOL v3, arXiv:2004.09584.
    """
    arrays = _perceptual_arrays(reference, degraded, sample_rate)
    api = _visqol_api()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # logarithms of digital silence
            score = float(api.measure_from_arrays(*arrays, PERCEPTUAL_RATE).moslqo)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"ViSQOL has no score: {error}") from error
    if not 0.0 < score <= 5.0:
        raise ValueError(f"ViSQOL has no score: it computed {score}")
    return score


def _check(reference: Tensor, degraded: Tensor, sample_rate: int) -> None:
    if reference.ndim != 1 or degraded.ndim != 1:
        raise ValueError(f"metrics take one channel [S], not {list(reference.shape)} and {list(degraded.shape)}")
    if len(reference) != len(degraded) or len(reference) == 0:
        raise ValueError(
            f"metrics take two waveforms of the same length, not {len(reference)} and {len(degraded)} samples"
        )
    if not bool(reference.isfinite().all() and degraded.isfinite().all()):
        raise ValueError("metrics take finite samples, these hold NaN or infinity")
    if sample_rate < 1:
        raise ValueError(f"a sample rate is a positive number of Hz, not {sample_rate}")


def _is_silent(waveform: Tensor) -> bool:
    return float(waveform.double().square().mean()) <= _NO_POWER


def _perceptual_arrays(reference: Tensor, degraded: Tensor, sample_rate: int) -> tuple[Any, Any]:
    """Both waveforms [S] at 16 kHz, as float64 arrays."""
    _check(reference, degraded, sample_rate)
    if _is_silent(reference):
        raise ValueError("the reference is silent: there is no speech to compare with")
    both = resample(torch.stack([reference, degraded]).float().cpu(), sample_rate, PERCEPTUAL_RATE)
    arrays = both.double().numpy()
    return arrays[0], arrays[1]


@functools.lru_cache(maxsize=1)
def _mel_spectrogram() -> Any:
    return import_torchaudio().transforms.MelSpectrogram(
        MEL_RATE, n_fft=MEL_WINDOW, hop_length=MEL_HOP, n_mels=MEL_BANDS, power=1.0
    )


@functools.lru_cache(maxsize=1)
def _visqol_api() -> Any:
    package = _metric_package("visqol")
    _metric_package("ai_edge_litert")
    logging.getLogger("visqol").setLevel(logging.ERROR)  # it warns about differing loudness and lengths, per clip
    api = package.VisqolApi()
    api.create(mode="speech", use_lattice_model=True)
    return api


def _metric_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this metric needs the package {name!r}, which cannot be imported ({error}): pip install 'quantone[train]'"
        ) from error
