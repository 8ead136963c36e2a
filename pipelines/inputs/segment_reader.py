"""An audio input as the codec wants it: its rate and channels, whole or cut into segments, in bounded memory and work.

    file  --skip start_s-->  blocks  --mix, resample-->  samples at the codec's rate  --cut at silence-->  segments

A long input is read in several calls; between them, a `Cursor` holds where it stands. Segments do not depend on how the
calls were cut: the file is read in stretches of five minutes, each by a decoder of its own that starts there, whether
or not a call ends between two of them.

That is how it goes with formats whose decoder gets to a place without decoding all before it (`AudioReader.skips_fast`:
wav, flac, mp3, ogg, opus). The others (m4a, webm, video ...) are decoded from their start again in every call, at about
a thousand times real time: a file of ten hours in calls of ten minutes is decoded 30 times over.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.inputs.silence_cut import Segment, SilenceCutter
from tokenizer import AudioError, CodecSpec, StreamingResampler, mix_channels, open_audio
from tokenizer.audio_file import MAX_SAMPLES, AudioReader
from tokenizer.resampling import ResampleState

_STRETCH_S = 300
_MAX_RESAMPLED = 2**29  # samples of one segment over all channels, as in `resample`
_LOWEST_RATE = 1000  # Hz: below, there is no speech or music, and a megabyte would become hours of work
_SHORTEST_LIMIT_S = 1.0  # of max_segment_s: the stretch in which to look for silence is a third of it


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a read stands: all that the next call needs. Picklable; it holds at most one segment and some seconds."""

    sample_rate: int  # of the file
    channels: int
    position: int  # samples of the file that were read, from `start_s` on
    resampling: ResampleState
    pending: npt.NDArray[np.float32]  # [C, n] resampled, not yet in a segment
    start_sample: int  # of `pending`


@dataclass(frozen=True, slots=True)
class SegmentRead:
    """What one call read."""

    source_sample_rate: int
    source_channels: int
    segments: tuple[Segment, ...]  # none, where the next one did not become complete
    rest: Cursor | None  # None: the end of the input was reached
    resampling_s: float = field(default=0.0, compare=False)  # seconds of the call that went into it


@dataclass(frozen=True, slots=True)
class _Span:
    """The part of a file that is read, in its own samples."""

    begin: int
    length: int | None  # None: to the end


def read_segments(
    stream: BinaryIO,
    spec: CodecSpec,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    max_segment_s: float | None = None,
    at_most_s: float = 600.0,
    cursor: Cursor | None = None,
) -> SegmentRead:
    """Read an input, or the next part of it, at the codec's rate and channel count.

    Segments joined are the whole input, resampled at once: the same bits, except that of an MP3 of over five minutes
    they are within 1e-6. Each is cut in the last third before `max_segment_s`, where it is quietest, on a whole frame.

    Args:
        stream: a seekable binary file object, from its start on; left open.
        spec: of the codec.
        start_s: where in the file the input begins, in seconds.
        duration_s: how long it is; where the file ends before, to its end. None: to the end.
        max_segment_s: the longest segment, in seconds, at least 1. None: the whole input is one segment, read in one
            call, if it has at most 2**28 samples, and 2**29 resampled.
        at_most_s: return after about so many seconds of audio, rounded up to whole stretches of 5 minutes.
        cursor: from the last call, with all else the same; None to begin.

    Raises:
        AudioError: as in `read_audio`; also an input that begins after the end of the file or has no length, one
            below 1000 Hz, and one too long for a single segment.
        OSError: reading from `stream` failed: no fault of the audio.
        ValueError: a wrong `max_segment_s` or `at_most_s`.
    """
    _check_arguments(start_s, duration_s, max_segment_s, at_most_s)
    if max_segment_s is None:
        return _read_whole(stream, spec, start_s, duration_s)
    course: _Course | None = None
    segments: list[Segment] = []
    num_read = 0
    while True:
        with open_audio(stream) as reader:
            if course is None:
                span = _span(reader, start_s, duration_s)
                course = _Course(cursor or _start(reader, spec), spec, span, round(max_segment_s * spec.sample_rate))
            wanted = (_STRETCH_S if reader.skips_fast else at_most_s) * reader.sample_rate
            num_read += course.advance(reader, math.ceil(wanted), segments)
            source = reader.sample_rate, reader.channels
        if course.ended or num_read >= at_most_s * source[0]:
            rest = None if course.ended else course.cursor()
            return SegmentRead(*source, tuple(segments), rest, course.resampling_s)


class _TimedResampler:
    """A `StreamingResampler` that counts the seconds that it takes."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._resampler, self.seconds = StreamingResampler(from_rate, to_rate), 0.0

    def initial_state(self, channels: int) -> ResampleState:
        return self._resampler.initial_state(channels)

    def step(self, chunk: Tensor, state: ResampleState) -> tuple[Tensor, ResampleState]:
        begin = time.perf_counter()
        stepped = self._resampler.step(chunk, state)
        self.seconds += time.perf_counter() - begin
        return stepped

    def finish(self, state: ResampleState) -> Tensor:
        begin = time.perf_counter()
        last = self._resampler.finish(state)
        self.seconds += time.perf_counter() - begin
        return last


class _Course:
    """An input on its way through mixing, resampling and cutting, whichever reader its samples come from."""

    def __init__(self, cursor: Cursor, spec: CodecSpec, span: _Span, longest: int) -> None:
        self._cursor, self._spec, self._span = cursor, spec, span
        self._resampler = _TimedResampler(cursor.sample_rate, spec.sample_rate)
        self._state, self._position = cursor.resampling, cursor.position
        self._cutter = SilenceCutter(
            longest, spec.sample_rate, spec.hop_length, pending=cursor.pending, start_sample=cursor.start_sample
        )
        self.ended = False

    def advance(self, reader: AudioReader, wanted: int, segments: list[Segment]) -> int:
        """Read up to so many samples of the file, append the segments that they complete, and say how many came."""
        if (reader.sample_rate, reader.channels) != (self._cursor.sample_rate, self._cursor.channels):
            raise AudioError(f"{reader.name}: changed while it was read")
        if self._span.length is not None:
            wanted = min(wanted, self._span.length - self._position)
        count = 0
        reader.skip(self._span.begin + self._position)
        for block in reader.blocks(wanted):
            count += block.shape[-1]
            piece, self._state = self._resampler.step(mix_channels(block, self._spec.channels), self._state)
            segments += self._cutter.add(piece.numpy())
        self._position += count
        _check_not_empty(reader, self._position)
        self.ended = count < wanted or self._position == self._span.length
        if self.ended:
            segments += self._cutter.add(self._resampler.finish(self._state).numpy())
            segments += self._cutter.finish()
        return count

    @property
    def resampling_s(self) -> float:
        """Seconds that resampling took so far."""
        return self._resampler.seconds

    def cursor(self) -> Cursor:
        """Where it stands. The samples are copied: a view would be pickled with all that it was cut from."""
        return dataclasses.replace(
            self._cursor,
            position=self._position,
            resampling=self._state,
            pending=self._cutter.pending().copy(),
            start_sample=self._cutter.start_sample,
        )


def _start(reader: AudioReader, spec: CodecSpec) -> Cursor:
    state = StreamingResampler(reader.sample_rate, spec.sample_rate).initial_state(spec.channels)
    nothing = np.zeros((spec.channels, 0), np.float32)
    return Cursor(reader.sample_rate, reader.channels, 0, state, nothing, 0)


def _read_whole(stream: BinaryIO, spec: CodecSpec, start_s: float, duration_s: float | None) -> SegmentRead:
    with open_audio(stream) as reader:
        span = _span(reader, start_s, duration_s)
        resampled_at_most = _MAX_RESAMPLED // spec.channels * reader.sample_rate // spec.sample_rate
        most = min(MAX_SAMPLES // reader.channels, resampled_at_most)
        claimed = None if reader.num_frames is None else reader.num_frames - span.begin
        _check_length(reader, min((n for n in (claimed, span.length) if n is not None), default=0), most)
        resampler = _TimedResampler(reader.sample_rate, spec.sample_rate)
        state, count, pieces = resampler.initial_state(spec.channels), 0, []
        reader.skip(span.begin)
        for block in reader.blocks(span.length):
            count += block.shape[-1]
            _check_length(reader, count, most)
            piece, state = resampler.step(mix_channels(block, spec.channels), state)
            pieces.append(piece)
        _check_not_empty(reader, count)
        waveform = torch.cat([*pieces, resampler.finish(state)], dim=-1)
        whole = (Segment(0, waveform.numpy()),)
        return SegmentRead(reader.sample_rate, reader.channels, whole, None, resampler.seconds)


def _span(reader: AudioReader, start_s: float, duration_s: float | None) -> _Span:
    rate = reader.sample_rate
    if rate < _LOWEST_RATE:
        raise AudioError(f"{reader.name}: sample rate {rate} Hz: below {_LOWEST_RATE} Hz there is no speech or music")
    length = None if duration_s is None else round(duration_s * rate)
    if length == 0:
        raise AudioError(f"{reader.name}: {duration_s} s are not one sample at {rate} Hz")
    return _Span(round(start_s * rate), length)


def _check_arguments(start_s: float, duration_s: float | None, max_segment_s: float | None, at_most_s: float) -> None:
    if not 0 <= start_s < math.inf or not (duration_s is None or 0 < duration_s < math.inf):
        raise AudioError(f"no part of a file begins at {start_s} s and takes {duration_s} s")
    if max_segment_s is not None and not _SHORTEST_LIMIT_S <= max_segment_s < math.inf:
        raise ValueError(f"max_segment_s is at least {_SHORTEST_LIMIT_S:g} s, not {max_segment_s}")
    if not at_most_s > 0:
        raise ValueError(f"at_most_s is more than 0 s, not {at_most_s}")


def _check_length(reader: AudioReader, count: int, most: int) -> None:
    if count > most:
        raise AudioError(
            f"{reader.name}: too long to be one segment: {count} samples in {reader.channels} channel(s) at "
            f"{reader.sample_rate} Hz, at most {most} are accepted; --max-segment-s cuts it"
        )


def _check_not_empty(reader: AudioReader, count: int) -> None:
    if count == 0:  # a file without any sample was refused before
        raise AudioError(f"{reader.name}: ends where the part to be read begins")
