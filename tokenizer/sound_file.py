"""libsndfile as a decoder: wav, aiff, flac, mp3, ogg, opus; its errors become ours, and it is kept from misreading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import soundfile

from tokenizer.errors import AudioError
from tokenizer.sound_headers import DataChunk, Mp3Header, ogg_fault, read_data_chunk, read_mp3_header
from tokenizer.watched_stream import AmendedStream, WatchedStream

_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's answer where a header does not say
_SIZES_OF_32_BITS = {"WAV", "WAVEX", "AIFF"}
_UNKNOWN_SIZE = b"\xff\xff\xff\xff"  # of a WAV's data: to the end of the file
_BEYOND_FRAMES = 4096  # asked for behind the last sample that a header counts
_LOST_BYTES = 1024  # writers count their header or the padding in; 0.03 s of 16 kHz PCM is no truncation
_LOST_MP3_SECONDS = 0.2  # encoders differ in which frames they count

# Seconds to decode before the place where reading goes on, until the decoder has forgotten where it started. Measured
# on speech: Vorbis needs none; Opus at 8 to 96 kbps had a different sample in 7 of 360 places after 5 s, one of at most
# 6e-5 in 5 after 10 s, and none after 20 s; MP3 stays within 2e-7.
_PREROLL_S = {("MP3", "MPEG_LAYER_III"): 1, ("OGG", "VORBIS"): 1, ("OGG", "OPUS"): 20}
_PCM = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}


class NotSoundError(Exception):
    """libsndfile does not know what this is."""


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read straight through.

    soundfile seeks to where it is after every read of a seekable file, which fails at the end of a FLAC whose header
    does not say how long it is (as every piped encoder writes it).
    """

    def seekable(self) -> bool:
        return False


class SoundFileDecoder:
    """A `Decoder` of what libsndfile reads.

    Args:
        watched: the stream, at its start.
        name: of the file, for messages.
        size: of the file in bytes.

    Raises:
        NotSoundError: libsndfile cannot open it.
        AudioError: its header cannot count that many bytes.
    """

    def __init__(self, watched: WatchedStream, name: str, size: int) -> None:
        self._watched, self._name, self._size = watched, name, size
        self._data = read_data_chunk(watched)
        self._mp3 = None if self._data is not None else read_mp3_header(watched, size)
        watched.seek(0)
        with self._decoding(NotSoundError):
            self._file = _ForwardFile(_amended(watched, size, self._data, self._mp3))
        file = self._file
        self.sample_rate, self.channels = int(file.samplerate), int(file.channels)
        if file.format in _SIZES_OF_32_BITS and size > 2**32 + 8:
            # libsndfile would believe the size modulo 2**32, and give the start of the file as if it were all
            raise AudioError(
                f"{name}: {size} bytes, but {file.format} counts no further than 4 GiB: use RF64, W64 or FLAC"
            )
        guessed = file.format == "MP3" and (self._mp3 is None or not self._mp3.counts)
        self.num_frames = None if guessed or file.frames == _UNKNOWN_FRAMES else int(file.frames)
        self._preroll_s = _preroll_s(file.format, file.subtype)
        self.jumps = self._preroll_s is not None
        self._position = 0

    def read(self, frames: int) -> npt.NDArray[np.float32]:
        """The next samples [n, C], n <= frames; none at the end."""
        if self.num_frames is not None:
            # libsndfile fills what it has no samples for with zeros: a minute of them, twice, for each short file
            left = self.num_frames - self._position
            frames = min(frames, left if left > 0 else _BEYOND_FRAMES)
        with self._decoding(AudioError):
            block: npt.NDArray[np.float32] = self._file.read(frames, dtype="float32", always_2d=True)
        self._position += len(block)
        return block

    def jump(self, frame: int) -> int:
        """Move on, before the first read, and say where to: at `frame` or before it."""
        if self.num_frames is not None and frame > self.num_frames:
            raise AudioError(f"{self._name}: ends after {self.num_frames} samples, before the {frame} to skip")
        if self._preroll_s is None:
            return 0
        # one sample before it at the least: libsndfile does not seek to the very end of a FLAC of unknown length
        with self._decoding(AudioError, f"cannot go on at sample {frame}"):
            self._position = int(self._file.seek(max(0, frame - max(1, self._preroll_s * self.sample_rate))))
        return self._position

    def check_end(self, num_frames: int) -> None:
        """Raise AudioError if a file that ended after so many samples shows that it should not have.

        Half a file must not pass for a whole one. Refused is only what is surely cut: containers of unknown length
        are welcome, as pipes and live recordings write them (see `sound_headers`).
        """
        claimed = self.num_frames or 0
        # MP3 without a count is a guess; a FLAC's length is exact, and cut between two frames it reads without an error
        tolerance = {"FLAC": 0.0, "MP3": _LOST_MP3_SECONDS * self.sample_rate}.get(self._file.format)
        if tolerance is not None and num_frames < claimed - tolerance:
            raise AudioError(f"{self._name}: damaged: ends after {num_frames} of {claimed} samples")
        if self._data is not None and self._data.declared is not None:
            present = max(0, self._size - self._data.offset)
            if present < self._data.declared - _LOST_BYTES:
                raise AudioError(
                    f"{self._name}: damaged: ends after {present} of {self._data.declared} bytes of samples"
                )
        if self._file.format == "OGG":
            fault = ogg_fault(self._watched, self._size)
            self._watched.check()
            if fault is not None:
                raise AudioError(f"{self._name}: {fault}")

    def close(self) -> None:
        """Free the decoder; the stream stays open."""
        self._file.close()

    @contextmanager
    def _decoding(self, kind: type[Exception], what: str = "not audio, or damaged") -> Iterator[None]:
        """Around calls into libsndfile: its errors become ours, and what failed underneath comes first."""
        try:
            yield
        except soundfile.LibsndfileError as error:
            self._watched.check()
            raise kind(f"{self._name}: {what}: {error.error_string.rstrip('.')}") from error
        self._watched.check()


def _amended(
    watched: WatchedStream, size: int, data: DataChunk | None, mp3: Mp3Header | None
) -> WatchedStream | AmendedStream:
    if data is not None and data.unclosed:  # libsndfile would believe the 0
        return AmendedStream(watched, size, replaced=(data.size_at, _UNKNOWN_SIZE))
    if mp3 is not None and not mp3.counts:
        # libsndfile guesses the length from the size and the first frame, and reads no further than that. The guess is
        # made too long for any bit rate, and the file ends where it ends. A count that does not hold is hidden.
        replaced = None if mp3.tag_at is None else (mp3.tag_at, bytes(4))
        return AmendedStream(watched, size, replaced=replaced, claimed_size=256 * size + 2**16)
    return watched


def _preroll_s(file_format: str, subtype: str) -> int | None:
    """None for formats whose libsndfile does not seek to the sample, or not at all: there, decode and drop."""
    return 0 if file_format == "FLAC" or subtype in _PCM else _PREROLL_S.get((file_format, subtype))
