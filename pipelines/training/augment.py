"""What is done to a training example's level and room: gain, clipping guard, reverberation.

Source: EnCodec, arXiv:2210.13438, 4.1, with impulse responses that are drawn instead of recorded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]  # [C, S]

PEAK = 0.99  # of full scale, at most
RT60_SECONDS = (0.3, 1.3)
_DIRECT_TO_REVERBERANT_DB = (0.0, 12.0)  # from far in a hall to close in a room
_NUM_EARLY = 8  # reflections that stand out: walls, floor and ceiling, once or twice
_EARLY_SECONDS = (0.002, 0.04)
_DULLNESS_HZ = (2000.0, 8000.0)  # above it, air and soft walls take sound away


def draw_gain(rng: np.random.Generator, gain_db: tuple[float, float]) -> float:
    """A factor, uniform in decibels between two gains."""
    return float(10.0 ** (rng.uniform(*gain_db) / 20.0))


def guard_peak(waveform: Waveform) -> Waveform:
    """Turn down what would clip, so that its peak is 0.99 of full scale; the rest stays as it is."""
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform if peak <= PEAK else waveform * np.float32(PEAK / peak)


def reverberate(rng: np.random.Generator, waveform: Waveform, sample_rate: int) -> Waveform:
    """Put a waveform [C, S] into a random room, at the same level and without delay.

    Before the waveform there was silence: reverberation builds up from its start on.
    """
    num_channels, num_samples = waveform.shape
    response = room_response(rng, num_channels, sample_rate)[:, :num_samples]
    size = 1 << (num_samples + response.shape[1] - 1).bit_length()  # no wrapping around, and a size that is fast
    spectrum = np.fft.rfft(waveform, size) * np.fft.rfft(response, size)
    wet = np.fft.irfft(spectrum, size)[:, :num_samples]
    energy = float(np.square(wet).sum())
    level = np.sqrt(float(np.square(waveform, dtype=np.float64).sum()) / energy) if energy > 0 else 1.0
    return (wet * level).astype(np.float32)


def room_response(rng: np.random.Generator, num_channels: int, sample_rate: int) -> npt.NDArray[np.float64]:
    """A random room's impulse response [C, n]: 1 at sample 0 for the direct sound, early reflections, a tail.

    The tail is noise that falls by 60 dB in RT60 (0.3 to 1.3 s) and loses its treble. What reverberates has 0 to
    12 dB less energy than the direct sound. Channels share the room, not the reflections. Source: Polack, La
    transmission de l'energie sonore dans les salles, 1988.
    """
    rt60 = rng.uniform(*RT60_SECONDS)
    length = round(rt60 * sample_rate)
    decay = 10.0 ** (-3.0 * np.arange(length) / length)  # amplitude: 60 dB are a factor of 1000
    onset = min(round(rng.uniform(*_EARLY_SECONDS) * sample_rate), length - 1)
    tail = rng.standard_normal((num_channels, length)) * decay
    tail[:, :onset] = 0.0
    keep = np.exp(-2.0 * np.pi * rng.uniform(*_DULLNESS_HZ) / sample_rate)
    size = 1 << length.bit_length()
    one_pole = (1.0 - keep) / (1.0 - keep * np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size))
    reverberant = np.fft.irfft(np.fft.rfft(tail, size) * one_pole, size)[:, :length]
    delays = np.round(rng.uniform(*_EARLY_SECONDS, (num_channels, _NUM_EARLY)) * sample_rate).astype(int)
    loudest = np.abs(reverberant).max(initial=0.0)
    for channel, taps in enumerate(np.clip(delays, 1, length - 1)):
        np.add.at(reverberant[channel], taps, loudest * decay[taps] * rng.uniform(1.0, 3.0, _NUM_EARLY))
    reverberant[:, 0] = 0.0
    ratio = 10.0 ** (rng.uniform(*_DIRECT_TO_REVERBERANT_DB) / 20.0)
    reverberant /= ratio * np.sqrt(np.square(reverberant).sum(axis=1, keepdims=True))
    reverberant[:, 0] = 1.0
    return reverberant
