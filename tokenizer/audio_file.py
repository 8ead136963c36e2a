"""Audio files in: bytes that nobody vouches for become a checked waveform, whole or block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenizer.av_audio import AvDecoder, container_of
from tokenizer.errors import AudioError
from tokenizer.sound_file import NotSoundError, SoundFileDecoder
from tokenizer.watched_stream import WatchedStream

MAX_SAMPLES = 2**28  # over all channels: 1 GiB as float32, three hours of 24 kHz mono
MAX_SAMPLE_RATE = 1_000_000
MAX_CHANNELS = 256
_BLOCK_SAMPLES = 2**20  # over all channels
_BLOCK_SECONDS = 60  # a file that claims to be at 1 Hz would have days in a block


class Decoder(Protocol):
    """What reads one format, from the first sample to the last."""

    sample_rate: int
    channels: int
    num_frames: int | None  # samples of each channel that the header claims; None where it says nothing
    jumps: bool  # whether `jump` gets anywhere

    def read(self, frames: int) -> npt.NDArray[np.float32]:
        """The next samples [n, C], n <= frames; none at the end."""

    def jump(self, frame: int) -> int:
        """Move on, before the first read, and say where to: at `frame` or before it."""

    def check_end(self, num_frames: int) -> None:
        """Raise AudioError if a file that ended after so many samples shows that it should not have."""

    def close(self) -> None:
        """Free what the decoder holds; the stream stays open."""


class AudioReader:
    """An open audio file, read once and straight through: see `open_audio`.

    Attributes:
        name: of the file, for messages.
        sample_rate: in Hz, in [1, 1_000_000].
        channels: in [1, 256].
        num_frames: samples of each channel that the header claims, which nobody has checked; None where it does not.
        skips_fast: whether `skip` costs little; otherwise it decodes all that it skips.
    """

    def __init__(self, decoder: Decoder, name: str, max_samples: int | None) -> None:
        self.name, self.sample_rate, self.channels = name, decoder.sample_rate, decoder.channels
        self.num_frames, self.skips_fast = decoder.num_frames, decoder.jumps
        self._decoder, self._max_samples = decoder, max_samples
        self._position = 0

    def skip(self, num_frames: int) -> None:
        """Leave out the first samples of each channel, to the sample; before the first block.

        Lossy formats decode a while before the place they go on at, because their decoders need some past: MP3 then
        comes within 1e-6 of what reading straight through gives, the others are the same bits.

        Raises:
            AudioError: the file has fewer samples.
            OSError: as in `read_audio`.
        """
        self._position = self._decoder.jump(num_frames) if num_frames else 0
        while self._position < num_frames:
            block = self._decoder.read(min(num_frames - self._position, self._block_frames))
            if len(block) == 0:
                raise AudioError(f"{self.name}: ends after {self._position} samples, before the {num_frames} to skip")
            self._position += len(block)

    def blocks(self, num_frames: int | None = None) -> Iterator[Tensor]:
        """Blocks [C, n] of the waveform, float32, finite, n >= 1: at most a minute and 2**20 samples each.

        What is wrong with a file may show only in its last block, after all others were given.

        Args:
            num_frames: stop after so many samples of each channel, and do not look at what follows; None to the end.

        Raises:
            AudioError, OSError: as in `read_audio`.
        """
        num_read = 0
        while num_frames is None or num_read < num_frames:
            wanted = self._block_frames if num_frames is None else min(self._block_frames, num_frames - num_read)
            block = self._decoder.read(wanted)  # [n, C]
            if len(block) == 0:
                self._check_end()
                return
            num_read += len(block)
            self._position += len(block)
            if self._max_samples is not None and num_read * self.channels > self._max_samples:
                raise AudioError(f"{self.name}: too large: more than {self._max_samples} samples over all channels")
            if not np.isfinite(block).all():
                raise AudioError(f"{self.name}: holds NaN or infinite samples")
            yield torch.from_numpy(block).T.contiguous()

    @property
    def _block_frames(self) -> int:
        return max(1, min(_BLOCK_SAMPLES // self.channels, _BLOCK_SECONDS * self.sample_rate))

    def _check_end(self) -> None:
        if self._position == 0:
            raise AudioError(f"{self.name}: no samples")
        self._decoder.check_end(self._position)


@contextmanager
def open_audio(source: str | Path | BinaryIO, *, max_samples: int | None = None) -> Iterator[AudioReader]:
    """Open an audio file of any length, to read it in blocks and in constant memory.

    wav, aiff, flac, mp3, ogg, opus and what else libsndfile knows; and with the optional extra `audio-extra` the first
    audio stream of m4a, mp4, mov, aac, webm, mkv, wma, amr, avi, flv, mpeg and ogv.

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
    """Read a whole audio file, of the formats of `open_audio`.

    What a header claims is checked against the limits before anything is allocated, and what arrives is counted
    again while it is read block by block.

    Args:
        source: a path, or a seekable binary file object (read from its start, left open).
        max_samples: the most samples, over all channels, that are accepted.

    Returns:
        waveform [C, S] float32 with S >= 1, and the sample rate in Hz. Every sample is finite; files that store
        floats may exceed [-1, 1].

    Raises:
        AudioError: the file is missing, empty, not audio, damaged, cut short, too large, or holds no, infinite or NaN
            samples; its rate is not in [1, 1_000_000] Hz or it has more than 256 channels; a WAV or AIFF exceeds the
            4 GiB that its header can count; it needs the optional extra `audio-extra`, which is not installed.
        OSError: `source` is a file object and reading from it failed: no fault of the audio.
    """
    with open_audio(source, max_samples=max_samples) as reader:
        return torch.cat(list(reader.blocks()), dim=-1), reader.sample_rate


@contextmanager
def _open_stream(watched: WatchedStream, name: str, max_samples: int | None) -> Iterator[AudioReader]:
    size = watched.seek(0, os.SEEK_END)
    watched.check()
    if size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    watched.seek(0)
    with closing(_decoder(watched, name, size)) as decoder:
        _check_header(decoder, name, max_samples)
        yield AudioReader(decoder, name, max_samples)


def _decoder(watched: WatchedStream, name: str, size: int) -> Any:
    # libsndfile first: it checks the checksums of FLAC, which FFmpeg does not
    try:
        return SoundFileDecoder(watched, name, size)
    except NotSoundError as error:
        container = container_of(watched)
        if container is None:
            raise AudioError(str(error)) from error.__cause__
    return AvDecoder(watched, name, container)


def _check_header(decoder: Decoder, name: str, max_samples: int | None) -> None:
    if not 1 <= decoder.sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{name}: sample rate {decoder.sample_rate} Hz is not in [1, {MAX_SAMPLE_RATE}]")
    if not 1 <= decoder.channels <= MAX_CHANNELS:
        raise AudioError(f"{name}: {decoder.channels} channels, at most {MAX_CHANNELS} are accepted")
    num_frames = decoder.num_frames
    if max_samples is not None and num_frames is not None and num_frames * decoder.channels > max_samples:
        raise AudioError(
            f"{name}: too large: {num_frames} samples in {decoder.channels} channel(s), "
            f"at most {max_samples} samples over all channels are accepted"
        )
