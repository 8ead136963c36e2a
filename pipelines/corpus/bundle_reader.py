"""What a reader of a corpus job does: inputs of one bundle, read, checked, cut, mixed down and resampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines import s3_server, storage
from pipelines.corpus.kept_heap import keep_heap
from pipelines.corpus.stage_seconds import StageSeconds
from pipelines.datasets.parts import ErrorRow
from pipelines.inputs.segment_reader import Cursor, SegmentRead, read_segments
from pipelines.inputs.source_reader import SourceReader
from pipelines.inputs.sources import SourceFile
from tokenizer import CodecSpec, DatasetError, QuantoneError

Pulse = Callable[[int], None]  # called with the position of what is worked on now
_KEPT_BYTES = 2**26  # some minutes of audio; what a longer file took goes back
_RETRY_AFTER_S = (0.5, 2.0, 8.0)  # a network that fails for longer than that is no hiccup


class SourceUnreachableError(DatasetError):
    """The place that the inputs come from is away for longer than readers wait."""


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How inputs are read, the same for all of a job."""

    spec: CodecSpec
    max_segment_s: float | None  # None: every input is one row
    bundle_seconds: float  # of audio, about, that one call hands over; the rest of longer inputs is for the next call


@dataclass(frozen=True, slots=True)
class Continuation:
    """An input of which the beginning has been read."""

    file: SourceFile
    cursor: Cursor
    num_segments: int  # so far


@dataclass(frozen=True, slots=True)
class ReadAudio:
    """An input or a segment of one, at the codec's rate and channel count."""

    id: str
    input_id: str
    uri: str
    start_sample: int
    source_sample_rate: int
    source_channels: int
    waveform: npt.NDArray[np.float32]  # [C, S]


@dataclass(frozen=True, slots=True)
class ReadCount:
    """What the conductor needs to know of what was read, while the audio stays where it is."""

    num_items: int
    unfinished: tuple[Continuation, ...]
    stages: StageSeconds  # that it took


Work = SourceFile | Continuation


def file_of(item: Work) -> SourceFile:
    """The input that is worked on."""
    return item.file if isinstance(item, Continuation) else item


def read_bundle(
    work: Sequence[Work], settings: ReadSettings, pulse: Pulse | None = None
) -> tuple[ReadCount, list[ReadAudio | ErrorRow]]:
    """Read inputs one after another; what cannot be read becomes an error row.

    What is read in one call follows from the inputs alone, so a resumed job reads the same.

    Returns:
        What the conductor needs to know, and the items.

    Raises:
        SourceUnreachableError: the server of the inputs does not answer: no input is to blame.
    """
    torch.set_num_threads(1)
    keep_heap(_KEPT_BYTES)
    stages = StageSeconds()
    with stages.rest_timed("reading"):
        items, unfinished = _read_all(work, settings, stages, pulse)
    return ReadCount(len(items), unfinished, stages), items


def _read_all(
    work: Sequence[Work], settings: ReadSettings, stages: StageSeconds, pulse: Pulse | None
) -> tuple[list[ReadAudio | ErrorRow], tuple[Continuation, ...]]:
    items: list[ReadAudio | ErrorRow] = []
    unfinished: list[Continuation] = []
    seconds_left = settings.bundle_seconds
    with SourceReader() as reader:
        for position, item in enumerate(work):
            if pulse is not None:
                pulse(position)
            file = file_of(item)
            try:
                # Lengths were estimated: nothing may be left, and yet every input is read.
                least_s = settings.bundle_seconds if settings.max_segment_s is None else settings.max_segment_s
                found = _read_patiently(reader, item, settings, max(seconds_left, least_s))
            except Exception as error:
                # Whatever a decoder raises belongs to its file, not to the job.
                if _may_pass(error) and _is_away(file.uri):
                    raise SourceUnreachableError(f"{file.uri}: the server does not answer: {error}") from error
                items.append(ErrorRow(file.id, file.uri, error_class(error), str(error) or repr(error)))
                continue
            stages.resampling += found.resampling_s
            segments = list(_segments(item, found))
            items += segments
            seconds_left -= sum(segment.waveform.shape[-1] for segment in segments) / settings.spec.sample_rate
            if found.rest is not None:
                unfinished.append(Continuation(file, found.rest, _num_before(item) + len(segments)))
    return items, tuple(unfinished)


def error_class(error: BaseException) -> str:
    """What an error row calls it: few names, so that rows can be grouped by them."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out_of_memory"
    public = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ in ("tokenizer.errors", "builtins"))
    return next(public) if isinstance(error, QuantoneError) else type(error).__name__


def _read_patiently(reader: SourceReader, item: Work, settings: ReadSettings, at_most_s: float) -> SegmentRead:
    """Read an input, again after a while where the disk or the network failed: that is no fault of the input."""
    for pause in (*_RETRY_AFTER_S, None):
        try:
            return _read(reader, item, settings, at_most_s)
        except Exception as error:
            if pause is None or not _may_pass(error):
                raise
            time.sleep(pause)
    raise AssertionError  # the last round returns or raises


def _read(reader: SourceReader, item: Work, settings: ReadSettings, at_most_s: float) -> SegmentRead:
    file = file_of(item)
    with reader.open(file) as stream:
        return read_segments(
            stream,
            settings.spec,
            start_s=file.start_s,
            duration_s=file.duration_s,
            max_segment_s=settings.max_segment_s,
            at_most_s=at_most_s,
            cursor=item.cursor if isinstance(item, Continuation) else None,
        )


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed a moment later: the network, not the file."""
    final = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    of_the_network = type(error).__module__.split(".")[0] in ("aiohttp", "aiobotocore", "botocore")
    return (isinstance(error, OSError) and not isinstance(error, final)) or of_the_network


def _is_away(uri: str) -> bool:
    return storage.is_s3(uri) and not s3_server.is_reachable(uri)


def _segments(item: Work, found: SegmentRead) -> Iterator[ReadAudio]:
    file, before = file_of(item), _num_before(item)
    uncut = before == 0 and len(found.segments) == 1 and found.rest is None
    for index, segment in enumerate(found.segments, start=before):
        yield ReadAudio(
            id=file.id if uncut else f"{file.id}#{index:04d}",
            input_id=file.id,
            uri=file.uri,
            start_sample=segment.start_sample,
            source_sample_rate=found.source_sample_rate,
            source_channels=found.source_channels,
            waveform=segment.waveform,
        )


def _num_before(item: Work) -> int:
    return item.num_segments if isinstance(item, Continuation) else 0
