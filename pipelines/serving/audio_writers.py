"""Sound as the bytes of an audio file while it is made: wav and pcm here, flac, opus and mp3 by libsndfile in memory.

The length is known before the first sample, so every header is right from the first byte on, and nothing has to be
written again at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipelines.serving.mp3_header import with_length
from pipelines.serving.service_errors import invalid_argument

_AT_ONCE = 65536  # samples of each channel in one write: long ones overflow the stack of some encoders
_MAX_WAV_BYTES = 2**32 - 2**12  # of samples; sizes in its header have 32 bits


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """One of the formats of answers."""

    media_type: str
    file_format: str = ""  # libsndfile's names; empty for what needs no encoder
    subtype: str = ""
    sample_rates: tuple[int, ...] = ()  # that it takes; empty for any


FORMATS = {
    "wav": AudioFormat("audio/wav"),
    "pcm": AudioFormat("audio/pcm"),
    "flac": AudioFormat("audio/flac", "FLAC", "PCM_16"),
    "opus": AudioFormat("audio/ogg", "OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
    "mp3": AudioFormat(
        "audio/mpeg", "MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
    ),
}


@dataclass(frozen=True, slots=True)
class SoundShape:
    """What is known of a sound before its first sample."""

    sample_rate: int  # Hz
    channels: int
    num_samples: int  # of each channel


class AudioWriter(Protocol):
    """Turns samples into the bytes of a file."""

    num_bytes: int | None  # of the whole file; None where only its end tells
    is_slow: bool  # whether writing is work for a thread

    def write(self, block: NDArray[np.float32]) -> bytes:
        """The bytes that came to be by the next samples [C, n]; may be none."""

    def finish(self) -> bytes:
        """The last bytes."""


def open_writer(name: str, shape: SoundShape) -> AudioWriter:
    """What writes a sound in one of FORMATS.

    Raises:
        RequestError: the format cannot hold such a sound.
    """
    audio_format = FORMATS[name]
    rates = audio_format.sample_rates
    if rates and shape.sample_rate not in rates:
        listed = ", ".join(f"{rate / 1000:g}" for rate in rates)
        raise invalid_argument(
            f"response_format: {name} takes {listed} kHz, the codec has {shape.sample_rate / 1000:g} kHz: take wav"
        )
    if audio_format.file_format:
        return EncodedWriter(name, shape)
    if name == "wav" and shape.num_samples * shape.channels * 2 > _MAX_WAV_BYTES:
        raise invalid_argument("response_format: a wav ends at 4 GiB, take flac or pcm")
    return PcmWriter(shape, header=name == "wav")


class PcmWriter:
    """int16 samples, little-endian, channels interleaved, with the header of a WAV or without."""

    is_slow = False

    def __init__(self, shape: SoundShape, *, header: bool) -> None:
        self._header = _wav_header(shape) if header else b""
        self.num_bytes: int | None = len(self._header) + shape.num_samples * shape.channels * 2

    def write(self, block: NDArray[np.float32]) -> bytes:
        """See AudioWriter."""
        header, self._header = self._header, b""
        return header + pcm16(block).astype("<i2", copy=False).tobytes()

    def finish(self) -> bytes:
        """See AudioWriter."""
        return b""


class EncodedWriter:
    """A file that libsndfile writes into memory, handed on as far as it is written.

    Raises:
        RequestError: the format cannot hold such a sound.
    """

    is_slow = True
    num_bytes: int | None = None

    def __init__(self, name: str, shape: SoundShape) -> None:
        self._name, self._shape = name, shape
        self._sink = _Sink()
        file_format, subtype = FORMATS[name].file_format, FORMATS[name].subtype
        try:
            self._file = soundfile.SoundFile(
                self._sink, "w", shape.sample_rate, shape.channels, subtype=subtype, format=file_format
            )
        except (soundfile.LibsndfileError, ValueError) as error:
            raise invalid_argument(
                f"response_format: {name} cannot hold {shape.channels} channel(s) at {shape.sample_rate} Hz"
            ) from error
        self._at_start = True

    def write(self, block: NDArray[np.float32]) -> bytes:
        """See AudioWriter."""
        is_pcm = self._file.subtype == "PCM_16"
        self._file.write(pcm16(block) if is_pcm else np.clip(block, -1.0, 1.0).T)
        return self._written()

    def finish(self) -> bytes:
        """See AudioWriter."""
        self._file.close()
        return self._written()

    def _written(self) -> bytes:
        pieces = self._sink.take()
        if self._at_start and pieces:
            self._at_start = False
            pieces = _with_known_length(self._name, pieces, self._shape.num_samples)
        return b"".join(pieces)


class _Sink:
    """A file object that only grows: what goes back to change the header finds it gone, and is dropped."""

    def __init__(self) -> None:
        self._new: list[bytes] = []
        self._position = self._size = 0

    def write(self, content: Any) -> int:
        content = bytes(content)
        if self._position == self._size:
            self._new.append(content)
            self._size += len(content)
        self._position += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def take(self) -> list[bytes]:
        """What was written since the last call, write by write."""
        pieces, self._new = self._new, []
        return pieces


def blocks_of(block: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """A block [C, n] in pieces that are written at once."""
    for start in range(0, block.shape[-1], _AT_ONCE):
        yield block[:, start : start + _AT_ONCE]


def pcm16(block: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples [C, n] as [n, C] int16, clipped; the inverse of reading, which divides by 32768."""
    return np.ascontiguousarray(np.clip(np.rint(block.T * 32768.0), -32768, 32767).astype(np.int16))


def _wav_header(shape: SoundShape) -> bytes:
    num_bytes = shape.num_samples * shape.channels * 2
    per_second = shape.sample_rate * shape.channels * 2
    return struct.pack(
        "<4sI8sIHHIIHH4sI",
        b"RIFF",
        36 + num_bytes,
        b"WAVEfmt ",
        16,
        1,  # PCM
        shape.channels,
        shape.sample_rate,
        per_second,
        shape.channels * 2,
        16,
        b"data",
        num_bytes,
    )


def _with_known_length(name: str, pieces: list[bytes], num_samples: int) -> list[bytes]:
    """The first writes of a file with the number of samples in its header, where the format has a place for it."""
    if name == "flac":
        start = b"".join(pieces)
        # the last 36 of 64 bits: RFC 9639, 8.2
        known = int.from_bytes(start[18:26], "big") | num_samples
        return [start[:18], known.to_bytes(8, "big"), start[26:]]
    if name == "mp3":
        return [with_length(pieces[0], num_samples), *pieces[1:]]  # the encoder writes frame by frame
    return pieces
