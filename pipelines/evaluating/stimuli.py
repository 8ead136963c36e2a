"""What a listener gets to hear of one clip: the reference, the low anchor and every system, equally loud, as FLAC."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

from pipelines.evaluating.loudness import loudness
from pipelines.evaluating.mushra_results import LOW_ANCHOR, REFERENCE

ANCHOR_HZ = 3500.0
TARGET_LUFS = -23.0  # EBU R 128: leaves speech its peaks
MAX_PEAK = 0.99
MAX_CORRECTION_DB = 12.0  # a system that lost the sound itself must not have its noise raised to a roar
FADE_S = 0.01  # clips are played in a loop: its seam must not click

_ANCHOR_CUT_HZ = 3780.0  # half way down; flat to 0.02 dB up to 3.5 kHz, under -50 dB from 4 kHz
_ANCHOR_TAPS_S = 0.0124
_ANCHOR_BETA = 4.5  # Kaiser

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Stimulus:
    """One condition of a clip."""

    condition: str  # "reference", "low_anchor", or "speech_24khz 6 kbps"
    waveform: Floats  # [S]
    flac: bytes


def make_stimuli(reference: Floats, systems: Mapping[str, Floats], sample_rate: int) -> list[Stimulus]:
    """Reference, low anchor, then the systems, all of one loudness.

    Every condition is brought to the loudness of the reference, and then all together to TARGET_LUFS, or as near as
    the peaks allow; ends are faded.

    Args:
        reference: [S] at `sample_rate`.
        systems: by condition, each [S] and in time with the reference.
        sample_rate: Hz.
    """
    conditions = {REFERENCE: reference, LOW_ANCHOR: low_anchor(reference, sample_rate), **systems}
    target = loudness(reference, sample_rate)
    equal = {name: waveform * _correction(waveform, sample_rate, target) for name, waveform in conditions.items()}
    gain = 10 ** ((TARGET_LUFS - target) / 20) if np.isfinite(target) else 1.0
    peak = max(float(np.abs(waveform).max(initial=0.0)) for waveform in equal.values())
    gain = min(gain, MAX_PEAK / max(peak, 1e-9))
    window = _fades(len(reference), sample_rate)
    ready = {name: (waveform * gain * window).astype(np.float32) for name, waveform in equal.items()}
    return [Stimulus(name, waveform, _flac(waveform, sample_rate)) for name, waveform in ready.items()]


def low_anchor(waveform: Floats, sample_rate: int) -> Floats:
    """[S] without what lies above 3.5 kHz, and without delay.

    Source: ITU-R BS.1534-3, anchors: at most 0.1 dB of ripple below, 25 dB down at 4 kHz and 50 dB at 4.5 kHz.
    """
    half = round(_ANCHOR_TAPS_S * sample_rate / 2)
    taps = np.arange(-half, half + 1)
    cut = min(2 * _ANCHOR_CUT_HZ / sample_rate, 1.0)  # of the Nyquist frequency; at low rates nothing is left to cut
    kernel = cut * np.sinc(cut * taps) * np.kaiser(len(taps), _ANCHOR_BETA)
    filtered = np.convolve(waveform.astype(np.float64), kernel / kernel.sum())
    return np.asarray(filtered[half : half + len(waveform)], dtype=np.float32)


def _correction(waveform: Floats, sample_rate: int, target_lufs: float) -> float:
    difference = target_lufs - loudness(waveform, sample_rate)
    if not np.isfinite(difference):  # silence on either side has no loudness to bring to another
        return 1.0
    return float(10 ** (np.clip(difference, -MAX_CORRECTION_DB, MAX_CORRECTION_DB) / 20))


def _fades(num_samples: int, sample_rate: int) -> npt.NDArray[np.float64]:
    ramp = np.minimum(1.0, (np.arange(num_samples) + 0.5) / (FADE_S * sample_rate))
    return np.asarray(np.minimum(ramp, ramp[::-1]))


def _flac(waveform: Floats, sample_rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
