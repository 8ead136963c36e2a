"""Audio files in: bytes that nobody vouches for become a checked waveform, whole or block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from tokenizer.errors import AudioError
from tokenizer.watched_stream import WatchedStream

MAX_SAMPLES = 2**28  # over all channels: 1 GiB as float32, three hours of 24 kHz mono
MAX_SAMPLE_RATE = 1_000_000
MAX_CHANNELS = 256
_BLOCK_SAMPLES = 2**20  # over all channels
_BLOCK_SECONDS = 60  # a file that claims to be at 1 Hz would have days in a block
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's answer where a header does not say
_SIZES_OF_32_BITS = {"WAV", "WAVEX", "AIFF"}


class AudioReader:
    """An open audio file, read once and straight through: see `open_audio`.

    Attributes:
        sample_rate: in Hz, in [1, 1_000_000].
        channels: in [1, 256].
    """

    def __init__(self, file: soundfile.SoundFile, watched: WatchedStream, name: str, max_samples: int | None) -> None:
        self.sample_rate, self.channels = int(file.samplerate), int(file.channels)
        self._file, self._watched, self._name, self._max_samples = file, watched, name, max_samples
        self._claimed = 0 if file.frames == _UNKNOWN_FRAMES else int(file.frames)

    def blocks(self) -> Iterator[Tensor]:
        """Blocks [C, n] of the waveform, float32, finite, n >= 1: at most a minute and 2**20 samples each.

        What is wrong with a file may show only in its last block, after all others were given.

        Raises:
            AudioError, OSError: as in `read_audio`.
        """
        num_frames = 0
        frames = max(1, min(_BLOCK_SAMPLES // self.channels, _BLOCK_SECONDS * self.sample_rate))
        while True:
            with _decoding(self._watched, self._name):
                block = self._file.read(frames, dtype="float32", always_2d=True)  # [n, C]
            if len(block) == 0:
                break
            num_frames += len(block)
            if self._max_samples is not None and num_frames * self.channels > self._max_samples:
                raise AudioError(f"{self._name}: too large: more than {self._max_samples} samples over all channels")
            if not np.isfinite(block).all():
                raise AudioError(f"{self._name}: holds NaN or infinite samples")
            yield torch.from_numpy(block).T.contiguous()
        if num_frames == 0:
            raise AudioError(f"{self._name}: no samples")
        # Only a FLAC's length is exact; cut between two frames, it would read as a shorter file without an error.
        if self._file.format == "FLAC" and num_frames < self._claimed:
            raise AudioError(f"{self._name}: damaged: ends after {num_frames} of {self._claimed} samples")


@contextmanager
def open_audio(source: str | Path | BinaryIO, *, max_samples: int | None = None) -> Iterator[AudioReader]:
    """Open a wav, flac, mp3, ogg or opus file of any length, to read it in blocks and in constant memory.

    Args:
        source: a path, or a seekable binary file object (read from its start, left open).
        max_samples: the most samples, over all channels, that are accepted; None for any number.

    Yields:
        The reader; it is closed afterwards.

    Raises:
        AudioError, OSError: as in `read_audio`.
    """
    if not isinstance(source, (str, os.PathLike)):
        with _open_stream(WatchedStream(source), str(getattr(source, "name", "audio")), max_samples) as reader:
            yield reader
        return
    path = Path(source)
    if not path.is_file():
        raise AudioError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror or error}") from error
    with stream, _open_stream(WatchedStream(stream, str(path)), str(path), max_samples) as reader:
        yield reader


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
            its rate is not in [1, 1_000_000] Hz or it has more than 256 channels; a WAV or AIFF exceeds the 4 GiB
            that its header can count.
        OSError: `source` is a file object and reading from it failed: no fault of the audio.
    """
    with open_audio(source, max_samples=max_samples) as reader:
        return torch.cat(list(reader.blocks()), dim=-1), reader.sample_rate


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read straight through.

    soundfile seeks to where it is after every read of a seekable file, which fails at the end of a FLAC whose header
    does not say how long it is (as every piped encoder writes it).
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _open_stream(watched: WatchedStream, name: str, max_samples: int | None) -> Iterator[AudioReader]:
    size = watched.seek(0, os.SEEK_END)
    watched.check()
    if size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    watched.seek(0)
    with _decoding(watched, name):
        file = _ForwardFile(watched)
    with file:
        _check_header(file, name, size, max_samples)
        yield AudioReader(file, watched, name, max_samples)


@contextmanager
def _decoding(watched: WatchedStream, name: str) -> Iterator[None]:
    """Around calls into libsndfile: its errors become ours, and what failed underneath comes first."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        watched.check()
        raise AudioError(f"{name}: not audio, or damaged: {error.error_string.rstrip('.')}") from error
    watched.check()


def _check_header(file: soundfile.SoundFile, name: str, size: int, max_samples: int | None) -> None:
    if not 1 <= file.samplerate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{name}: sample rate {file.samplerate} Hz is not in [1, {MAX_SAMPLE_RATE}]")
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise AudioError(f"{name}: {file.channels} channels, at most {MAX_CHANNELS} are accepted")
    if file.format in _SIZES_OF_32_BITS and size > 2**32 + 8:
        # libsndfile would believe the size modulo 2**32, and give the start of the file as if it were all
        raise AudioError(f"{name}: {size} bytes, but {file.format} counts no further than 4 GiB: use RF64, W64 or FLAC")
    if max_samples is not None and file.frames != _UNKNOWN_FRAMES and file.frames * file.channels > max_samples:
        raise AudioError(
            f"{name}: too large: {file.frames} samples in {file.channels} channel(s), "
            f"at most {max_samples} samples over all channels are accepted"
        )
