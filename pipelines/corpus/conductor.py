"""The conductor of a corpus job: keeps Ray readers and encoders busy, and finds out which input a worker died of.

Units go through in order, bundle by bundle: a reader task reads ahead, whichever encoder is free encodes, and a unit
whose bundles are all encoded is committed by a task of its own. A worker that dies costs its bundle another try, on a
new worker. After `TRIES` deaths the bundle is taken apart, and an input that kills its worker all alone, as often,
becomes one error row; so does one that a worker does not get done with. All retries are counted here and none by Ray,
which would repeat some deaths for ever.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError

from pipelines.corpus import bundle_reader, encoder, unit_commit
from pipelines.corpus.bundle_reader import ReadSettings, SourceUnreachableError, Work, file_of
from pipelines.corpus.encoder import BundleCount, EncodedBundle, EncodeSettings
from pipelines.corpus.encoder_pool import ENCODER_CPUS, READER_CPUS, EncoderPool, EncoderSeconds
from pipelines.corpus.job_metrics import JobMetrics
from pipelines.corpus.stage_seconds import StageSeconds
from pipelines.corpus.unit_commit import Target, UnitInputs, UnitResult
from pipelines.corpus.worker_deaths import cause_of, death_row, raised_in_start, reason_of, worker_died
from pipelines.corpus.worker_watch import WorkerWatch
from pipelines.datasets.parts import ErrorRow
from pipelines.datasets.plan import Plan, cut_bundles
from pipelines.progress import Progress
from tokenizer import Codec, DatasetError, QuantoneError

TRIES = 3
METRICS_EVERY_S = 2.0
FALSE_STARTS = 10  # calls that were lost before they began, as when a machine goes away with many


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Who does the work, and in what portions; none of it changes a code beyond floating point."""

    num_workers: int | None  # encoders; None for as many as the cluster holds, at any time
    gpus_per_worker: float
    read: ReadSettings
    encode: EncodeSettings
    file_timeout_s: float  # for one input to be read, and for one batch to be encoded beyond its length


@dataclass(slots=True, eq=False)
class _Unit:
    number: int
    inputs: UnitInputs
    work: Sequence[Work]
    open_bundles: int = 0
    encoded: list[Any] = field(default_factory=list)  # references of EncodedBundle
    stages: StageSeconds = field(default_factory=StageSeconds)
    tries: int = 0


@dataclass(slots=True, eq=False)
class _Bundle:
    unit: _Unit
    work: Sequence[Work]
    num_reading: int = 0
    read: list[Any] = field(default_factory=list)  # references of lists of ReadAudio and ErrorRow
    num_unfinished: int = 0
    tries: int = 0  # of encoding
    false_starts: int = 0


@dataclass(slots=True)
class _Reading:
    """A stretch of a bundle that one reader task has."""

    bundle: _Bundle
    work: Sequence[Work]
    tries: int = 0
    false_starts: int = 0


class Conductor:
    """Runs the units of one job on Ray; the number of bundles in flight is bounded, and memory with it."""

    def __init__(self, codec: Codec, target: Target, crew: Crew, progress: Progress, metrics: JobMetrics) -> None:
        self._target, self._crew, self._progress, self._metrics = target, crew, progress, metrics
        self._codec = ray.put(codec)  # held here, so that a new encoder can start anywhere at any time
        self._reader: Any = ray.remote(num_cpus=READER_CPUS, num_returns=2, max_retries=0)(bundle_reader.read_bundle)
        # On the cores of readers, and so in their processes: each new one costs seconds.
        self._committer: Any = ray.remote(num_cpus=READER_CPUS, max_retries=0)(unit_commit.commit_unit)
        self._encoder: Any = ray.remote(
            num_cpus=ENCODER_CPUS, num_gpus=crew.gpus_per_worker, max_restarts=0, scheduling_strategy="SPREAD"
        )(encoder.Encoder)
        self._pool = EncoderPool(self._new_encoder, crew.num_workers, crew.gpus_per_worker, progress)
        self._watch = WorkerWatch(crew.file_timeout_s)
        self._readable: deque[_Bundle] = deque()  # read, waiting for an encoder
        self._again: deque[_Bundle] = deque()
        self._complete: deque[_Unit] = deque()  # waiting to be committed
        self._in_flight = 0  # bundles being read, waiting or being encoded
        self._committing = 0
        self._failed_starts = self._lost_starts = 0
        self._tell_at = 0.0
        self._exhausted = False  # no bundle is left that has never been read
        self._running: dict[Any, Callable[[Any], UnitResult | None]] = {}  # reference -> what to do when it is there

    def encoder_seconds(self) -> EncoderSeconds:
        """What became of the encoders' time so far."""
        return self._pool.seconds()

    def start_encoders(self) -> None:
        """Start the encoders and wait for them: before `run`, which does not wait, for whoever measures it."""
        for started, ready in self._pool.start_missing():
            self._encoder_started(started, ready)

    def run(self, plan: Plan, pending: Iterable[int]) -> Iterator[UnitResult]:
        """Read, encode and commit units of a plan; yields the result of each as it is committed.

        Raises:
            DatasetError: a part cannot be written.
            SourceUnreachableError: the server of the inputs is away; all that is committed stays.
            QuantoneError: no encoder can start.
        """
        waiting = self._cut(plan, pending)
        try:
            while self._feed(waiting):
                finished, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0, fetch_local=False)
                for done in finished:
                    result = self._running.pop(done)(done)
                    if result is not None:
                        yield result
                self._watch.stop_late_calls()
                self._tell()
        finally:
            self._pool.end()

    def _cut(self, plan: Plan, pending: Iterable[int]) -> Iterator[_Bundle]:
        for number in pending:
            files = plan.unit(number)
            names, uris = [file.id for file in files], [file.uri for file in files]
            extra = plan.extra(number)  # noqa: S610 - a method of Plan, not of Django
            yield from self._bundles(_Unit(number, UnitInputs(number, names, uris, extra), files))
        self._exhausted = True

    def _bundles(self, unit: _Unit) -> list[_Bundle]:
        files = [file_of(item) for item in unit.work]
        bundles = [_Bundle(unit, some) for some in cut_bundles(files, self._crew.read.bundle_seconds)]
        unit.open_bundles = len(bundles)
        return bundles

    def _feed(self, waiting: Iterator[_Bundle]) -> bool:
        """Give everybody something to do; False when all is done."""
        for started, ready in self._pool.start_missing():
            self._running[ready] = partial(self._encoder_started, started)
        while self._in_flight < 2 * len(self._pool) + 2:
            bundle = self._again.popleft() if self._again else next(waiting, None)
            if bundle is None:
                break
            self._in_flight += 1
            bundle.read.clear()
            self._read(_Reading(bundle, bundle.work))
        if self._exhausted and not self._again:
            self._pool.let_go(self._in_flight)
        while self._readable:
            free = self._pool.take()
            if free is None:
                break
            self._encode(self._readable.popleft(), free)
        self._pool.expect(more=self._in_flight > self._pool.num_busy)
        self._commit_some()
        # What else may be running is encoders that start too late to be of use.
        return self._in_flight + self._committing > 0

    def _new_encoder(self) -> Any:
        device = "cuda" if self._crew.gpus_per_worker > 0 else "cpu"
        return self._encoder.remote(self._codec, self._crew.encode, lm=self._target.lm, device=device)

    def _encoder_started(self, started: Any, ready: Any) -> None:
        try:
            ray.get(ready)
        except RayError as error:
            raised = raised_in_start(error)
            self._failed_starts += raised
            self._lost_starts += not raised  # with its machine, say
            if self._failed_starts >= TRIES or self._lost_starts >= FALSE_STARTS + 2 * len(self._pool):
                # No GPU, a missing package: every file would meet it alike.
                raise QuantoneError(f"an encoder cannot start: {reason_of(error)}") from error
            self._pool.drop(started)
        else:
            self._failed_starts = self._lost_starts = 0
            self._pool.rest(started)

    def _read(self, reading: _Reading) -> None:
        call = self._watch.new_call(len(reading.work))
        done, read = self._reader.remote(reading.work, self._crew.read, call.sender)
        call.stop = partial(ray.cancel, done, force=True)
        reading.bundle.num_reading += 1
        self._running[done] = partial(self._read_done, reading, read, call.name)

    def _read_done(self, reading: _Reading, read: Any, call: str, done: Any) -> None:
        bundle = reading.bundle
        bundle.num_reading -= 1
        begun, late_at = self._watch.ended(call, done)
        try:
            count: bundle_reader.ReadCount = ray.get(done)
            bundle.read.append(read)
            bundle.unit.stages += count.stages
            self._go_on_with(bundle, count.unfinished)
        except RayError as error:
            if isinstance(cause_of(error), SourceUnreachableError):
                raise cause_of(error) from None
            if late_at is None and not worker_died(error):
                raise  # a mistake of ours or of the installation: other files would meet it too
            self._read_failed(reading, error, begun=begun, late_at=late_at)
        if bundle.num_reading == 0:
            self._readable.append(bundle)

    def _go_on_with(self, bundle: _Bundle, unfinished: Sequence[Work]) -> None:
        """The rest of long inputs is a bundle of its own, and the next one."""
        if unfinished:
            bundle.num_unfinished += len(unfinished)
            bundle.unit.open_bundles += 1
            self._again.appendleft(_Bundle(bundle.unit, unfinished))

    def _read_failed(self, reading: _Reading, error: RayError, *, begun: bool, late_at: int | None) -> None:
        bundle, work = reading.bundle, reading.work
        if late_at is not None:
            self._read_late(bundle, work, late_at)
            return
        reading.tries += begun
        reading.false_starts += not begun
        if reading.tries < TRIES and reading.false_starts < FALSE_STARTS:
            self._read(reading)
        elif len(work) > 1:
            for item in work:
                self._read(_Reading(bundle, [item]))
        else:
            bundle.read.append([death_row(file_of(work[0]), "reading", error, TRIES)])

    def _read_late(self, bundle: _Bundle, work: Sequence[Work], late_at: int) -> None:
        """What comes before the last beat is not to blame; after it, each input gets a call of its own."""
        if len(work) == 1:
            bundle.read.append([self._late_row(work[0], "reading")])
            return
        if late_at > 0:
            self._read(_Reading(bundle, work[:late_at]))
        for item in work[late_at:]:
            self._read(_Reading(bundle, [item]))

    def _encode(self, bundle: _Bundle, free: Any) -> None:
        call = self._watch.new_call(len(bundle.work))
        done, encoded = free.encode_bundle.options(num_returns=2).remote(call.sender, *bundle.read)
        call.stop = partial(self._pool.drop, free)
        self._running[done] = partial(self._encode_done, bundle, free, encoded, call.name)

    def _encode_done(self, bundle: _Bundle, used: Any, encoded: Any, call: str, done: Any) -> None:
        self._in_flight -= 1
        begun, late_at = self._watch.ended(call, done)
        try:
            count: BundleCount = ray.get(done)
        except RayError as error:
            self._pool.drop(used)  # even where it lives: an error inside the codec may leave a device unusable
            self._encode_failed(bundle, error, begun=begun, late=late_at is not None)
            return
        self._pool.rest(used)
        self._close(bundle, encoded, count)

    def _encode_failed(self, bundle: _Bundle, error: RayError, *, begun: bool, late: bool) -> None:
        raised = not worker_died(error)
        bundle.tries += TRIES if late or (raised and len(bundle.work) > 1) else begun or raised
        bundle.false_starts += not begun
        if bundle.tries < TRIES and bundle.false_starts < FALSE_STARTS:
            self._again.append(bundle)  # to be read again: what had been read may have gone away with a machine
        elif len(bundle.work) > 1:
            bundle.unit.open_bundles += len(bundle.work) - 1
            self._again.extend(_Bundle(bundle.unit, [item]) for item in bundle.work)
        else:
            file = file_of(bundle.work[0])
            row = self._late_row(file, "encoding") if late else death_row(file, "encoding", error, TRIES)
            self._close(bundle, EncodedBundle([row]), BundleCount(0, Counter([row.error]), 0.0))

    def _late_row(self, item: Work, doing: str) -> ErrorRow:
        file = file_of(item)
        return ErrorRow(file.id, file.uri, "timed_out", f"{doing} it took longer than {self._crew.file_timeout_s:g} s")

    def _close(self, bundle: _Bundle, encoded: Any, count: BundleCount) -> None:
        num_errors = sum(count.errors.values())
        self._progress.advance(len(bundle.work) - bundle.num_unfinished, count.audio_seconds, num_errors)
        self._metrics.files_done(count.num_ok, count.errors, count.audio_seconds)
        bundle.read.clear()
        unit = bundle.unit
        unit.stages += count.stages
        unit.encoded.append(encoded)
        unit.open_bundles -= 1
        if unit.open_bundles == 0:
            self._complete.append(unit)

    def _commit_some(self) -> None:
        """A few units at a time: each would start a process of its own."""
        while self._complete and self._committing < max(2, len(self._pool)):
            self._commit(self._complete.popleft())

    def _commit(self, unit: _Unit) -> None:
        done = self._committer.remote(unit.inputs, self._target, *unit.encoded)
        self._committing += 1
        self._running[done] = partial(self._committed, unit)

    def _committed(self, unit: _Unit, done: Any) -> UnitResult | None:
        self._committing -= 1
        try:
            result: UnitResult = ray.get(done)
        except RayError as error:
            unit.tries += 1
            if unit.tries >= TRIES:
                message = f"{self._target.dataset}: a part cannot be written: {reason_of(error)}"
                raise DatasetError(message) from error
            if isinstance(cause_of(error), ObjectLostError):  # a machine is gone, with codes on it
                unit.encoded.clear()
                self._again.extend(self._bundles(unit))
            else:
                self._complete.append(unit)
            return None
        return dataclasses.replace(result, stages=result.stages + unit.stages)

    def _tell(self) -> None:
        now = time.monotonic()
        if now < self._tell_at:
            return
        self._tell_at = now + METRICS_EVERY_S
        waiting, encoding = len(self._readable), self._pool.num_busy
        self._metrics.queue_depths(
            reading=self._in_flight - waiting - encoding,
            waiting=waiting,
            encoding=encoding,
            committing=self._committing,
        )
        self._metrics.encoders(alive=len(self._pool), busy_share=self._pool.busy_share())
        self._metrics.real_time_factor(self._progress.real_time_factor)
