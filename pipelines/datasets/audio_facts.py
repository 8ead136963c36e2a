"""What a waveform says about itself: level, clipping, speech activity and identity, measured before it is encoded."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.datasets.speech_activity import speech_share
from tokenizer.errors import AudioError

Waveform = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float64]  # the same, as sums need it

SILENCE_DBFS = -120.0  # written for digital silence, which has no level
CLIPPED_FROM = 0.99  # resampling makes the flat top of a clipped peak ring: a half of it falls below 1.0
CLIPPED_S = 1 / 8000  # three samples at 24 kHz
CLIPPED_RUNS = 5  # in 248 clips of clean speech with a peak of 1.0, at five sample rates, at most four were found
_HASH_BLOCKS = 64
_HASH_STEPS = 16.0  # for one time the level of the file


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """Level, clipping, speech and identity of one waveform."""

    peak: float  # largest magnitude; 1.0 is full scale
    rms_dbfs: float  # -120 for digital silence
    clipping_share: float  # of the samples, 0 to 1
    speech_share: float  # of the time, 0 to 1: an estimate
    content_hash: str  # 16 hex digits, equal for equal sound


def measure_audio(waveform: Waveform, sample_rate: int) -> AudioFacts:
    """Measure a waveform as the codec gets it: mixed down and at the codec's rate.

    Args:
        waveform: [C, S] floats.
        sample_rate: Hz.

    Raises:
        AudioError: there are no samples.
    """
    if waveform.size == 0:
        raise AudioError(f"the waveform has no samples: its shape is {list(waveform.shape)}")
    samples = waveform.astype(np.float64)  # once for all sums
    power = float(np.einsum("cs,cs->", samples, samples)) / samples.size
    peak = max(float(waveform.max()), -float(waveform.min()))
    return AudioFacts(
        peak=peak,
        rms_dbfs=max(SILENCE_DBFS, 10 * math.log10(power)) if power > 0 else SILENCE_DBFS,
        clipping_share=clipping_share(waveform, sample_rate) if peak >= CLIPPED_FROM else 0.0,
        speech_share=speech_share(samples, sample_rate),
        content_hash=content_hash(samples, power),
    )


def clipping_share(waveform: Waveform, sample_rate: int) -> float:
    """Share of samples on clipped peaks: runs of at least 1/8000 s at 0.99 of full scale or above, of one sign.

    A file that was only normalised touches full scale at its one loudest peak, so fewer than five runs are none.
    Peaks that were clipped and then turned down, or mixed with an unclipped channel, are not found; a pure tone below
    some 300 Hz at full scale stays there long enough to count.

    Args:
        waveform: [C, S].
        sample_rate: Hz.
    """
    least = max(3, round(CLIPPED_S * sample_rate))
    lengths = np.concatenate([_runs_at_full_scale(channel) for channel in waveform])
    clipped = lengths[lengths >= least]
    return float(clipped.sum() / waveform.size) if len(clipped) >= CLIPPED_RUNS else 0.0


def content_hash(waveform: Samples, power: float) -> str:
    """16 hex digits, equal where the sound is: WAV and FLAC of it, 16 bits and 24, a copy under another name.

    Rounding every sample would not do: resampled on a CPU with other vector instructions, 89 % of files differ in some
    16-bit sample. So each of 64 blocks is projected on a fixed sequence of signs and rounded to 1/16 of what noise of
    the file's level would give: rounding errors hardly ever cross a step there, any other recording does at once.

    Args:
        waveform: [C, S].
        power: mean square of it; 0 for digital silence, which is the same at equal length.
    """
    digest = hashlib.blake2b(repr(waveform.shape).encode(), digest_size=8)
    if power > 0:
        length = -(-waveform.shape[-1] // _HASH_BLOCKS)
        unit = math.sqrt(power * length) / _HASH_STEPS
        for channel in waveform:
            digest.update(np.rint(_project(channel, length) / unit).astype("<i4").tobytes())
        digest.update(b"%d" % round(10 * math.log10(power)))  # a louder copy is another sound
    return digest.hexdigest()


def _runs_at_full_scale(channel: Waveform) -> npt.NDArray[np.int64]:
    """Lengths of runs [n] of consecutive samples of one sign at full scale."""
    near = np.flatnonzero(np.abs(channel) >= CLIPPED_FROM)
    if len(near) == 0:
        return near
    ends = np.flatnonzero((np.diff(near) != 1) | (np.diff(np.signbit(channel[near])) != 0))
    return np.diff(np.concatenate([[-1], ends, [len(near) - 1]]))


def _project(channel: Samples, length: int) -> npt.NDArray[np.float64]:
    """The sum over each block of `length` samples with pseudo-random signs, the same ones for ever: [64] or fewer."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_128(b"quantone").digest(-(-length // 8)), np.uint8))[:length]
    signs = 1.0 - 2.0 * bits
    whole = len(channel) // length * length
    rest = channel[whole:]
    blocks = channel[:whole].reshape(-1, length)
    sums = np.einsum("bs,s->b", blocks, signs)
    return np.append(sums, rest @ signs[: len(rest)]) if len(rest) else sums
