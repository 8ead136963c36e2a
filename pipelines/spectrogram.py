"""Pictures of sound: log-mel spectrograms and code maps as PNG bytes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WINDOW_S = 0.032  # four to eight pitch periods of speech: harmonics stay visible
DYNAMIC_RANGE_DB = 80.0
NUM_BANDS = 128
LOWEST_HZ = 40.0

# Eleven evenly spaced stations of matplotlib's "magma" (CC0); straight lines between them look the same.
MAGMA = np.array(
    [
        [0x00, 0x00, 0x03], [0x14, 0x0D, 0x35], [0x3B, 0x0F, 0x6F], [0x63, 0x19, 0x7F],
        [0x8C, 0x29, 0x80], [0xB5, 0x36, 0x79], [0xDD, 0x49, 0x68], [0xF6, 0x6E, 0x5B],
        [0xFD, 0x9F, 0x6C], [0xFD, 0xCD, 0x90], [0xFB, 0xFC, 0xBF],
    ],
    dtype=np.float64,
)  # fmt: skip

Floats = NDArray[np.float32]


def mel_power(waveform: Floats, sample_rate: int) -> Floats:
    """Energy in mel bands over time.

    Args:
        waveform: [S] samples of one channel.
        sample_rate: Hz.

    Returns:
        [NUM_BANDS, columns] power, lowest band first, one column each quarter of WINDOW_S.
    """
    window = 1 << round(np.log2(WINDOW_S * sample_rate))
    hop = window // 4
    padded = np.pad(waveform.astype(np.float32), (window // 2, window // 2 + hop))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]  # [columns, window]
    spectrum = np.fft.rfft(windows * np.hanning(window).astype(np.float32), n=2 * window)
    power = (np.abs(spectrum) ** 2).astype(np.float32)
    return mel_filters(sample_rate, power.shape[1]) @ power.T


def mel_filters(sample_rate: int, num_bins: int) -> Floats:
    """[NUM_BANDS, num_bins] weights that average a power spectrum into bands of equal width on the mel scale.

    Source: mel = 2595 log10(1 + f / 700), O'Shaughnessy 1987.
    """
    nyquist = sample_rate / 2
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, nyquist))
    edges = 700 * (10 ** (np.linspace(low, high, NUM_BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, nyquist, num_bins)
    # The lowest triangles are narrower than one bin of the transform: none may be empty, so each reaches over two.
    width = bins[1]
    left = np.minimum(edges[:-2], edges[1:-1] - width)[:, None]
    right = np.maximum(edges[2:], edges[1:-1] + width)[:, None]
    centre = edges[1:-1][:, None]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)
    return np.asarray(triangles / triangles.sum(axis=1, keepdims=True), dtype=np.float32)


def reference_level(waveform: Floats, sample_rate: int) -> float:
    """The power that counts as 0 dB: the loudest band of this waveform, so that pictures of its copies compare."""
    return float(max(mel_power(waveform, sample_rate).max(initial=0.0), 1e-10))


def spectrogram_png(waveform: Floats, sample_rate: int, reference: float) -> bytes:
    """Draw [S] samples as a log-mel spectrogram, low bands at the foot, DYNAMIC_RANGE_DB from black to `reference`."""
    return png(spectrogram_pixels(waveform, sample_rate, reference))


def spectrogram_pixels(waveform: Floats, sample_rate: int, reference: float) -> NDArray[np.uint8]:
    """The pixels of that picture, [NUM_BANDS, columns, 3]."""
    decibels = 10 * np.log10(np.maximum(mel_power(waveform, sample_rate), 1e-12) / reference)
    return magma(np.clip(1 + decibels / DYNAMIC_RANGE_DB, 0, 1).astype(np.float32)[::-1])


def magma(level: Floats) -> NDArray[np.uint8]:
    """Colours [.., 3] uint8 for levels in [0, 1], dark to bright, even to the eye."""
    stations = np.linspace(0, 1, len(MAGMA))
    return np.stack([np.interp(level, stations, MAGMA[:, rgb]) for rgb in range(3)], axis=-1).round().astype(np.uint8)


def entry_levels(codebooks: Floats) -> Floats:
    """Where each codebook entry stands among the others along the direction in which they differ most.

    Codes are names without an order. This gives them one that the eye can use: entries that lie close together, and so
    sound alike, get levels close together.

    Args:
        codebooks: [K, V, D] vectors.

    Returns:
        [K, V] levels in [0, 1], evenly spread: the rank on the first principal component.
    """
    centred = codebooks - codebooks.mean(axis=1, keepdims=True)
    axes = np.linalg.eigh(centred.transpose(0, 2, 1) @ centred)[1][:, :, -1]  # [K, D]
    places = np.einsum("kvd,kd->kv", centred, axes)
    extremes = np.take_along_axis(places, np.abs(places).argmax(axis=1)[:, None], axis=1)
    ranks = (places * np.where(extremes < 0, -1, 1)).argsort(axis=1).argsort(axis=1)  # an axis has no sign of its own
    return np.asarray(ranks / max(1, codebooks.shape[1] - 1), dtype=np.float32)


def codes_png(codes: NDArray[np.integer], levels: Floats) -> bytes:
    """Draw codes [K, T] with one cell per code, level 0 on top, in the colours that `entry_levels` [K, V] gives."""
    return png(magma(0.06 + 0.94 * np.take_along_axis(levels[: len(codes)], codes.astype(np.int64), axis=1)))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode [height, width, 3] as PNG with a palette of at most 256 colours, half the size of true colour."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
