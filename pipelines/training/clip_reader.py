"""Reading clips where they lie: whole, or a stretch at the codec's rate without decoding the rest."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.training.training_clips import Clip
from tokenizer import AudioError, StreamingResampler, mix_channels, open_audio
from tokenizer.sinc_filter import sinc_filter
from tokenizer.watched_stream import WatchedStream

_PREROLL_SECONDS = 0.1  # decoded and dropped after a seek: MP3 and Opus frames lean on earlier ones (RFC 7845: 80 ms)
_FORWARD_SECONDS = 20  # of MP3: libmpg123 complains on stderr after seeks, and clips of MP3 corpora are mostly short
_LONGEST_FILE = 2**40  # frames; libsndfile answers 2**63 - 1 where a header does not say
_BUFFER_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class ClipReader:
    """Reads clips at one sample rate and channel count.

    A stretch is, within rounding, what the whole clip holds there. Opus is the exception: its decoder carries its
    rounding from frame to frame, and never quite forgets where it started. Measured on recorded speech: equal in more
    than half of all stretches of a second, and 0.004 of full scale apart in the worst of 150.
    """

    sample_rate: int
    channels: int

    def read(self, clip: Clip, start: int, num_samples: int) -> npt.NDArray[np.float32]:
        """Samples [C, num_samples] in [-1, 1] of a clip from `start` on, silence after its end.

        Raises:
            AudioError: the clip cannot be read, or ends before `start`.
        """
        with _opened(clip) as file:
            begin, end = _bounds(clip, file)
            common = math.gcd(file.samplerate, self.sample_rate)
            from_step, to_step = file.samplerate // common, self.sample_rate // common
            length = -(-(end - begin) * to_step // from_step)
            if start >= length:
                raise AudioError(f"{clip.name}: ends before {start / self.sample_rate:.2f} s")
            if from_step == to_step:
                waveform = self._window(file, (begin, end), begin + start, num_samples)
            else:
                sinc = sinc_filter(from_step, to_step)
                first = start // to_step * to_step  # after `to_step` outputs the filters of a table repeat
                count = start - first + num_samples
                low, high = sinc.window(first, count)
                window = self._window(file, (begin, end), begin + low, high - low)
                waveform = sinc.outputs(window, first, count)[:, start - first :]
                waveform[:, length - start :] = 0.0  # the filter rings on after the end
        samples: npt.NDArray[np.float32] = waveform.clamp(-1.0, 1.0).numpy()
        return samples

    def blocks(self, clip: Clip) -> Iterator[Tensor]:
        """The whole clip, block by block: [C, n] in [-1, 1].

        Raises:
            AudioError: the clip cannot be read; this may show only after some blocks.
        """
        resampler: StreamingResampler | None = None
        for block, rate in _source_blocks(clip):
            if resampler is None:
                resampler = StreamingResampler(rate, self.sample_rate)
                state = resampler.initial_state(self.channels)
            piece, state = resampler.step(mix_channels(block, self.channels), state)
            yield piece.clamp(-1.0, 1.0)
        if resampler is not None:
            yield resampler.finish(state).clamp(-1.0, 1.0)

    def _window(self, file: soundfile.SoundFile, bounds: tuple[int, int], low: int, count: int) -> Tensor:
        """Source samples [C, count] from `low` on, silence where they lie outside the clip."""
        first, last = (min(max(position, bounds[0]), bounds[1]) for position in (low, low + count))
        waveform = mix_channels(_read_part(file, first, last), self.channels)
        return functional.pad(waveform, (first - low, low + count - first - waveform.shape[-1]))


def probe_seconds(clip: Clip) -> float:
    """Length of a clip as its file's header tells it, or counted where the header does not say.

    Raises:
        AudioError: the clip cannot be read.
    """
    with _opened(clip) as file:
        begin, end = _bounds(clip, file)
        return (end - begin) / int(file.samplerate)


class _SeekableOnce(soundfile.SoundFile):
    """A sound file that does not seek after reading.

    soundfile seeks to where it is after every read of a seekable file: most of the cost of a short read of Opus, and
    an error at the end of a FLAC that does not say how long it is.
    """

    def seekable(self) -> bool:
        return False


class _Part(io.RawIOBase):
    """A stretch of a file as a file: the member of a tar shard."""

    def __init__(self, whole: io.FileIO, offset: int, size: int) -> None:
        self._whole, self._offset, self._size, self._position = whole, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._whole.seek(self._offset + self._position)
        count = self._whole.readinto(view) or 0
        self._position += count
        return count


@contextmanager
def _byte_stream(clip: Clip) -> Iterator[WatchedStream]:
    """The bytes of the clip's audio file; failures underneath become AudioErrors that name the clip."""
    try:
        with Path(clip.path).open("rb", buffering=0) as whole:
            size = os.fstat(whole.fileno()).st_size - clip.offset if clip.size is None else clip.size
            watched = WatchedStream(cast("BinaryIO", io.BufferedReader(_Part(whole, clip.offset, size), _BUFFER_BYTES)))
            try:
                yield watched
            finally:
                watched.check()
    except (soundfile.LibsndfileError, OSError) as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error.strerror
        raise AudioError(f"{clip.name}: {reason or error}") from error


@contextmanager
def _opened(clip: Clip) -> Iterator[soundfile.SoundFile]:
    with _byte_stream(clip) as stream, _SeekableOnce(stream) as file:
        yield file


def _bounds(clip: Clip, file: soundfile.SoundFile) -> tuple[int, int]:
    """First source sample of the clip and the one after its last."""
    rate, frames = int(file.samplerate), int(file.frames)
    begin = round(clip.begin_s * rate)
    if clip.duration_s is not None:
        end = min(frames, begin + round(clip.duration_s * rate))
    elif frames <= _LONGEST_FILE:
        end = frames
    else:
        end = begin + sum(block.shape[-1] for block, _ in _source_blocks(clip))
    if end <= begin:
        raise AudioError(f"{clip.name}: no samples")
    return begin, end


def _read_part(file: soundfile.SoundFile, first: int, last: int) -> Tensor:
    """Source samples [C, n] from one position up to another, fewer if the file ends before."""
    begin = max(0, first - round(_PREROLL_SECONDS * file.samplerate))
    if file.frames > _LONGEST_FILE or (file.format == "MP3" and first < _FORWARD_SECONDS * file.samplerate):
        begin = 0
    if begin:
        file.seek(begin)
    block = file.read(last - begin, dtype="float32", always_2d=True)[first - begin :]  # [n, C]
    if not np.isfinite(block).all():
        raise AudioError("holds NaN or infinite samples")
    return torch.from_numpy(block).T.contiguous()


def _source_blocks(clip: Clip) -> Iterator[tuple[Tensor, int]]:
    """Blocks [C, n] of the clip at its file's rate, and that rate."""
    if clip.begin_s:
        with _opened(clip) as file:
            yield _read_part(file, *_bounds(clip, file)), int(file.samplerate)
        return
    with _byte_stream(clip) as stream, open_audio(cast("BinaryIO", stream)) as reader:
        left = math.inf if clip.duration_s is None else round(clip.duration_s * reader.sample_rate)
        for block in reader.blocks():
            yield block[:, : int(min(left, block.shape[-1]))], reader.sample_rate
            left -= block.shape[-1]
            if left <= 0:
                return
