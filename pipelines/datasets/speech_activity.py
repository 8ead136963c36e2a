"""Speech activity: which share of a recording stands out of its own background, estimated from energy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FRAME_S = 0.02
FLOOR_PERCENTILE, LOUD_PERCENTILE = 5, 95
MARGIN_DB = 5.0  # above the background
REACH_DB = 30.0  # below the loud frames: what is fainter is breath, rumble or reverberation, even in a quiet room
LEAST_RANGE_DB = 10.0  # between background and loud frames: noise has 1 dB, steady tones none, speech at 10 dB SNR 13
LEAST_DBFS = -80.0  # of the loud frames: below is the noise of 16 bits
HANG_OVER_S = 0.15  # stop closures and soft ends belong to the word


def speech_share(waveform: npt.NDArray[np.floating], sample_rate: int) -> float:
    """Share of the time, 0 to 1, in which somebody probably speaks; an estimate, made to sort and filter a corpus.

    A frame of 20 ms is active where its level is 5 dB above the background (5th percentile of the file's own levels)
    and within 30 dB of its loud frames (95th percentile); activity lasts for 0.15 s more. A file whose level hardly
    changes has no activity: steady noise, tones, hum. So gain does not matter, and a steady background down to 10 dB
    SNR hardly does. Whatever else comes and goes counts as speech: music, applause, a slamming door.

    Args:
        waveform: [C, S] in [-1, 1]; channels are mixed. Fastest in float64, in which sums are formed.
        sample_rate: Hz.
    """
    levels = _frame_levels(waveform, sample_rate)
    if len(levels) == 0:
        return 0.0
    floor, loud = np.percentile(levels, [FLOOR_PERCENTILE, LOUD_PERCENTILE])
    if loud < LEAST_DBFS or loud - floor < LEAST_RANGE_DB:
        return 0.0
    active = levels > max(floor + MARGIN_DB, loud - REACH_DB)
    frames = np.arange(len(levels))
    latest = np.maximum.accumulate(np.where(active, frames, -len(levels)))
    return float(np.mean(frames - latest <= round(HANG_OVER_S / FRAME_S)))


def _frame_levels(waveform: npt.NDArray[np.floating], sample_rate: int) -> npt.NDArray[np.float64]:
    """Level of each whole frame in dBFS, without its mean: DC and rumble below 50 Hz are not sound."""
    length = max(1, round(FRAME_S * sample_rate))
    count = waveform.shape[-1] // length
    mono = waveform[0] if len(waveform) == 1 else waveform.mean(axis=0)
    frames = mono[: count * length].reshape(count, length)
    mean = np.einsum("fs->f", frames, dtype=np.float64) / length
    power = np.einsum("fs,fs->f", frames, frames, dtype=np.float64) / length - np.square(mean)
    levels: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(power, 1e-12))
    return levels
