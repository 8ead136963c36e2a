"""Audio files in and out: bytes that nobody vouches for become a checked waveform, and a waveform becomes a file."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from tokenizer.errors import AudioError

MAX_SAMPLES = 2**28  # over all channels: 1 GiB as float32, three hours of 24 kHz mono
MAX_SAMPLE_RATE = 1_000_000
MAX_CHANNELS = 256
_BLOCK_SAMPLES = 2**20
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's answer where a header does not say

# extension -> (libsndfile format, subtype, sample rates that the codec takes; empty for any)
_FORMATS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    ".wav": ("WAV", "PCM_16", ()),
    ".flac": ("FLAC", "PCM_16", ()),
    ".ogg": ("OGG", "VORBIS", ()),
    ".opus": ("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
    ".mp3": ("MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
}


def read_audio(source: str | Path | BinaryIO, *, max_samples: int = MAX_SAMPLES) -> tuple[Tensor, int]:
    """Read a whole wav, flac, mp3, ogg or opus file.

    What a header claims is checked against the limits before anything is allocated, and what arrives is counted
    again while it is read block by block.

    Args:
        source: a path, or a seekable binary file object (read from its start, left open).
        max_samples: the most samples, over all channels, that are accepted.

    Returns:
        waveform [C, S] float32 with S >= 1, and the sample rate in Hz. Every sample is finite; files that store
        floats may exceed [-1, 1].

    Raises:
        AudioError: the file is missing, empty, not audio, damaged, too large, or holds no, infinite or NaN samples;
            its rate is not in [1, 1_000_000] Hz or it has more than 256 channels.
        OSError: `source` is a file object and reading from it failed: no fault of the audio.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise AudioError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        try:
            with path.open("rb") as stream:
                return _read_stream(stream, str(path), max_samples)
        except OSError as error:
            raise AudioError(f"{path}: {error.strerror or error}") from error
    return _read_stream(source, str(getattr(source, "name", "audio")), max_samples)


def write_audio(path: str | Path, waveform: Tensor, sample_rate: int) -> None:
    """Write a waveform in the format that the extension names: .wav and .flac (16 bit), .ogg, .opus or .mp3.

    Samples outside [-1, 1] are clipped, as every one of these formats would need. The file appears whole or not
    at all: it is written under another name and renamed.

    Args:
        path: where to write; its folder exists.
        waveform: [C, S] floats, finite, S >= 1.
        sample_rate: Hz. Opus takes 8, 12, 16, 24 and 48 kHz only.

    Raises:
        AudioError: unknown extension, or a waveform or sample rate that the format cannot hold.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise AudioError(f"{path}: unknown extension {path.suffix!r}, choose one of {', '.join(_FORMATS)}")
    if waveform.ndim != 2 or waveform.numel() == 0:
        raise AudioError(f"{path}: a waveform is [channels, samples] and not empty, this one is {list(waveform.shape)}")
    if not waveform.is_floating_point():
        raise AudioError(f"{path}: a waveform is floats in [-1, 1], this one is {waveform.dtype}")
    if not bool(waveform.isfinite().all()):
        raise AudioError(f"{path}: the waveform holds NaN or infinite samples")
    encoded = _encode(path, waveform.detach().float().cpu(), sample_rate)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(encoded)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _WatchedStream:
    """A file object that remembers why it failed.

    libsndfile reads through C callbacks, and an exception raised there is printed and dropped: a lost connection
    would look like the end of the file and give a shorter, wrong waveform. Here the failure is kept, the
    decoder sees an end of file, and `check` raises afterwards.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.failure: Exception | None = None

    def _guarded(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:  # noqa: BLE001 - any failure is kept, and raised by check()
            self.failure = self.failure or error
            return None

    def read(self, size: int = -1) -> bytes:
        return self._guarded(self.stream.read, size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._guarded(self.stream.seek, offset, whence) or 0

    def tell(self) -> int:
        return self._guarded(self.stream.tell) or 0

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read straight through.

    soundfile seeks to where it is after every read of a seekable file, which fails at the end of a FLAC whose header
    does not say how long it is (as every piped encoder writes it).
    """

    def seekable(self) -> bool:
        return False


def _read_stream(stream: BinaryIO, name: str, max_samples: int) -> tuple[Tensor, int]:
    if stream.seek(0, os.SEEK_END) == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    stream.seek(0)
    watched = _WatchedStream(stream)
    try:
        with _ForwardFile(watched) as file:
            _check_header(file, name, max_samples)
            blocks = list(_read_blocks(file, name, max_samples))
            channels, sample_rate = int(file.channels), int(file.samplerate)
            # Only a FLAC's length is exact; cut between two frames, it would read as a shorter file without an error.
            promised = int(file.frames) if file.format == "FLAC" and file.frames != _UNKNOWN_FRAMES else 0
    except soundfile.LibsndfileError as error:
        watched.check()
        raise AudioError(f"{name}: not audio, or damaged: {error.error_string.rstrip('.')}") from error
    watched.check()
    num_frames = sum(len(block) for block in blocks)
    if num_frames == 0:
        raise AudioError(f"{name}: no samples")
    if num_frames < promised:
        raise AudioError(f"{name}: damaged: ends after {num_frames} of {promised} samples")
    waveform = torch.empty(channels, num_frames)
    start = 0
    for block in blocks:
        waveform[:, start : start + len(block)] = torch.from_numpy(block).T
        start += len(block)
    return waveform, sample_rate


def _check_header(file: soundfile.SoundFile, name: str, max_samples: int) -> None:
    if not 1 <= file.samplerate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{name}: sample rate {file.samplerate} Hz is not in [1, {MAX_SAMPLE_RATE}]")
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise AudioError(f"{name}: {file.channels} channels, at most {MAX_CHANNELS} are accepted")
    if file.frames != _UNKNOWN_FRAMES and file.frames * file.channels > max_samples:
        raise AudioError(
            f"{name}: too large: {file.frames} samples in {file.channels} channel(s), "
            f"at most {max_samples} samples over all channels are accepted"
        )


def _read_blocks(file: soundfile.SoundFile, name: str, max_samples: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield [frames, channels] float32 blocks until the file ends, however many samples its header promised."""
    left = max_samples
    while True:
        block = file.read(max(1, _BLOCK_SAMPLES // file.channels), dtype="float32", always_2d=True)
        if len(block) == 0:
            return
        left -= block.size
        if left < 0:
            raise AudioError(f"{name}: too large: more than {max_samples} samples over all channels")
        if not np.isfinite(block).all():
            raise AudioError(f"{name}: holds NaN or infinite samples")
        yield block


def _encode(path: Path, waveform: Tensor, sample_rate: int) -> bytes:
    file_format, subtype, sample_rates = _FORMATS[path.suffix.lower()]
    if sample_rates and sample_rate not in sample_rates:
        listed = ", ".join(f"{rate / 1000:g}" for rate in sample_rates)
        raise AudioError(f"{path}: {path.suffix.lower()} takes {listed} kHz, not {sample_rate / 1000:g} kHz")
    samples = waveform.clamp(-1.0, 1.0).T.contiguous().numpy()
    if subtype == "PCM_16":  # the exact inverse of reading, which divides by 32768
        samples = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(
            buffer, "w", sample_rate, waveform.shape[0], subtype=subtype, format=file_format
        ) as file:
            for start in range(0, len(samples), 65536):  # one long write overflows the stack of the Vorbis encoder
                file.write(samples[start : start + 65536])
    except (soundfile.LibsndfileError, ValueError, OverflowError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise AudioError(
            f"{path}: {file_format} cannot hold {waveform.shape[0]} channel(s) at {sample_rate} Hz: {reason}"
        ) from error
    return buffer.getvalue()
