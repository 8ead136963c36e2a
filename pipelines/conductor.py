"""The conductor of a corpus job: keeps Ray readers and encoders busy, and finds out which file a worker died of.

Units go through in order, bundle by bundle: a reader task reads ahead, whichever encoder is free encodes, and a unit
whose bundles are all encoded is committed by a task of its own. A worker that dies costs its bundle another try, on a
new worker. After `TRIES` deaths the bundle is taken apart, and a file that kills its worker all alone, as often,
becomes one error row. All retries are counted here and none by Ray, which would repeat some deaths for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from pipelines import workers
from pipelines.parts import ErrorRow
from pipelines.plan import cut_bundles
from pipelines.progress import Progress
from pipelines.sources import SourceFile
from pipelines.workers import BundleCount, Target, UnitResult
from tokenizer import Codec, DatasetError, QuantoneError

TRIES = 3
# Half a core for an encoder and half for a reader: with fewer than two encoders a core, a reader always finds room.
ENCODER_CPUS = READER_CPUS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Who does the work, and in what portions; none of it changes a code beyond floating point."""

    num_workers: int  # encoders
    gpus_per_worker: float
    batch_seconds: float  # of audio with padding in one pass of the codec
    bundle_seconds: float  # of audio, estimated, that one reader hands to one encoder


@dataclass(slots=True, eq=False)
class _Unit:
    number: int
    files: Sequence[SourceFile]
    open_bundles: int = 0
    encoded: list[Any] = field(default_factory=list)  # references of EncodedBundle
    tries: int = 0


@dataclass(slots=True, eq=False)
class _Bundle:
    unit: _Unit
    files: Sequence[SourceFile]
    num_reading: int = 0
    read: list[Any] = field(default_factory=list)  # references of lists of ReadFile and ErrorRow
    tries: int = 0  # of encoding


class Conductor:
    """Runs the units of one job on Ray; the number of bundles in flight is bounded, and memory with it."""

    def __init__(self, codec: Codec, target: Target, crew: Crew, progress: Progress) -> None:
        self._spec, self._target, self._crew, self._progress = codec.spec, target, crew, progress
        self._codec = ray.put(codec)  # held here, so that a new encoder can start anywhere at any time
        self._reader: Any = ray.remote(num_cpus=READER_CPUS, max_retries=0, num_returns=2)(workers.read_bundle)
        self._committer: Any = ray.remote(num_cpus=0, max_retries=0)(workers.commit_unit)
        self._encoder: Any = ray.remote(
            num_cpus=ENCODER_CPUS, num_gpus=crew.gpus_per_worker, max_restarts=0, scheduling_strategy="SPREAD"
        )(workers.Encoder)
        self._encoders: set[Any] = set()  # alive or starting
        self._idle: deque[Any] = deque()
        self._readable: deque[_Bundle] = deque()  # read, waiting for an encoder
        self._again: deque[_Bundle] = deque()
        self._in_flight = 0  # bundles being read, waiting or being encoded
        self._committing = 0
        self._failed_starts = 0
        self._running: dict[Any, Callable[[Any], UnitResult | None]] = {}  # reference -> what to do when it is there

    def run(self, units: Iterable[tuple[int, Sequence[SourceFile]]]) -> Iterator[UnitResult]:
        """Read, encode and commit units, given as (number, files); yields the result of each as it is committed.

        Raises:
            DatasetError: a part cannot be written.
            QuantoneError: no encoder can start.
        """
        waiting = self._cut(units)
        try:
            for _ in range(self._crew.num_workers):
                self._start_encoder()
            while self._feed(waiting):
                finished, _ = ray.wait(list(self._running), num_returns=1, fetch_local=False)
                result = self._running.pop(finished[0])(finished[0])
                if result is not None:
                    yield result
        finally:
            for encoder in self._encoders:
                ray.kill(encoder)

    def _cut(self, units: Iterable[tuple[int, Sequence[SourceFile]]]) -> Iterator[_Bundle]:
        for number, files in units:
            yield from self._bundles(_Unit(number, files))

    def _bundles(self, unit: _Unit) -> list[_Bundle]:
        bundles = [_Bundle(unit, files) for files in cut_bundles(unit.files, self._crew.bundle_seconds)]
        unit.open_bundles = len(bundles)
        return bundles

    def _feed(self, waiting: Iterator[_Bundle]) -> bool:
        """Give everybody something to do; False when all is done."""
        while self._in_flight < 2 * self._crew.num_workers + 2:
            bundle = self._again.popleft() if self._again else next(waiting, None)
            if bundle is None:
                break
            self._in_flight += 1
            bundle.read.clear()
            self._read(bundle, bundle.files)
        while self._readable and self._idle:
            self._encode(self._readable.popleft(), self._idle.popleft())
        # What else may be running is encoders that start too late to be of use.
        return self._in_flight + self._committing > 0

    def _start_encoder(self) -> None:
        encoder = self._encoder.remote(
            self._codec,
            self._target.num_codebooks,
            self._crew.batch_seconds,
            lm=self._target.lm,
            device="cuda" if self._crew.gpus_per_worker > 0 else "cpu",
        )
        self._encoders.add(encoder)
        self._running[encoder.ready.remote()] = partial(self._encoder_started, encoder)

    def _encoder_started(self, encoder: Any, ready: Any) -> None:
        try:
            ray.get(ready)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= TRIES:  # no GPU, a missing package: every file would meet it alike
                raise QuantoneError(f"an encoder cannot start: {_reason(error)}") from error
            self._drop(encoder)
            self._start_encoder()
        else:
            self._failed_starts = 0
            self._idle.append(encoder)

    def _drop(self, encoder: Any) -> None:
        self._encoders.discard(encoder)
        ray.kill(encoder)

    def _read(self, bundle: _Bundle, files: Sequence[SourceFile], tries: int = 0) -> None:
        done, read = self._reader.remote(files, self._spec)
        bundle.num_reading += 1
        self._running[done] = partial(self._read_done, bundle, files, read, tries + 1)

    def _read_done(self, bundle: _Bundle, files: Sequence[SourceFile], read: Any, tries: int, done: Any) -> None:
        bundle.num_reading -= 1
        try:
            ray.get(done)
            bundle.read.append(read)
        except RayError as error:
            if not _worker_died(error):
                raise  # a mistake of ours or of the installation: other files would meet it too
            if tries < TRIES:
                self._read(bundle, files, tries)
            elif len(files) > 1:
                for file in files:
                    self._read(bundle, [file])
            else:
                bundle.read.append([_death(files[0], "reading", error)])
        if bundle.num_reading == 0:
            self._readable.append(bundle)

    def _encode(self, bundle: _Bundle, encoder: Any) -> None:
        done, encoded = encoder.encode_bundle.options(num_returns=2).remote(*bundle.read)
        self._running[done] = partial(self._encode_done, bundle, encoder, encoded)

    def _encode_done(self, bundle: _Bundle, encoder: Any, encoded: Any, done: Any) -> None:
        self._in_flight -= 1
        try:
            count: BundleCount = ray.get(done)
        except RayError as error:
            self._drop(encoder)  # even where it lives: an error inside the codec may leave a device unusable
            self._start_encoder()
            self._encode_failed(bundle, error)
            return
        self._idle.append(encoder)
        self._close(bundle, encoded, count)

    def _encode_failed(self, bundle: _Bundle, error: RayError) -> None:
        bundle.tries += 1
        if bundle.tries < TRIES:
            self._again.append(bundle)
        elif len(bundle.files) > 1:
            bundle.unit.open_bundles += len(bundle.files) - 1
            self._again.extend(_Bundle(bundle.unit, [file]) for file in bundle.files)
        else:
            row = _death(bundle.files[0], "encoding", error)
            self._close(bundle, workers.EncodedBundle([row], 0.0), BundleCount(0, 1, 0.0))

    def _close(self, bundle: _Bundle, encoded: Any, count: BundleCount) -> None:
        self._progress.advance(count.num_ok + count.num_errors, count.audio_seconds, count.num_errors)
        bundle.read.clear()
        unit = bundle.unit
        unit.encoded.append(encoded)
        unit.open_bundles -= 1
        if unit.open_bundles == 0:
            self._commit(unit)

    def _commit(self, unit: _Unit) -> None:
        order = [file.id for file in unit.files]
        done = self._committer.remote(unit.number, order, self._target, *unit.encoded)
        self._committing += 1
        self._running[done] = partial(self._committed, unit)

    def _committed(self, unit: _Unit, done: Any) -> UnitResult | None:
        self._committing -= 1
        try:
            result: UnitResult = ray.get(done)
        except RayError as error:
            unit.tries += 1
            if unit.tries >= TRIES:
                raise DatasetError(f"{self._target.dataset}: a part cannot be written: {_reason(error)}") from error
            if isinstance(_cause(error), ObjectLostError):  # a machine is gone, with codes on it
                unit.encoded.clear()
                self._again.extend(self._bundles(unit))
            else:
                self._commit(unit)
            return None
        return result


def _cause(error: RayError) -> BaseException:
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error


def _worker_died(error: RayError) -> bool:
    """Whether the process or machine went away under the task, as against an exception that its code raised."""
    return isinstance(_cause(error), (RayActorError, WorkerCrashedError, OutOfMemoryError, ObjectLostError))


def _reason(error: RayError) -> str:
    cause = _cause(error)
    lines = str(cause).strip().splitlines() or [repr(cause)]
    return f"{type(cause).__name__}: {lines[-1]}"  # of a remote traceback, the last line says what happened


def _death(file: SourceFile, doing: str, error: RayError) -> ErrorRow:
    cause = _cause(error)
    if _worker_died(error):
        message = f"the worker {doing} it died {TRIES} times: {type(cause).__name__}"
        return ErrorRow(file.id, file.uri, "killed_worker", message)
    return ErrorRow(file.id, file.uri, type(cause).__name__, str(cause) or repr(cause))
