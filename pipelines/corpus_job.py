"""The corpus job: a plan of units, read ahead and encoded on Ray, committed one by one, resumed by the same command."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.dataset import list_parts
from pipelines.dataset_info import FILE_NAME, DatasetInfo, read_dataset_info, write_dataset_info
from pipelines.parts import ErrorRow, part_name
from pipelines.plan import Plan, cut_bundles, describe_difference, make_plan
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
from pipelines.sources import SourceFile, list_source
from pipelines.workers import EncodedBundle, Encoder, ReadFile, Target, UnitResult, commit_unit, read_bundle
from tokenizer import RESAMPLER, Codec, DatasetError, load_codec

UNIT_SECONDS = 1800.0  # a part of half an hour keeps the dictionaries below 2 % of the codes (10.24 bits a code)
BATCH_SECONDS = 120.0
BUNDLE_BATCHES = 2  # batches of audio that one reader hands over at once
RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """How the work is spread; none of it changes a code beyond floating point."""

    num_workers: int
    gpus_per_worker: float
    batch_seconds: float


@dataclass(slots=True)
class JobSummary:
    """What a call of `tokenize_corpus` did."""

    num_files: int  # in the plan
    num_skipped: int = 0  # in units that were committed before
    num_ok: int = 0
    num_errors: int = 0
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    num_codes: int = 0
    code_bytes: int = 0
    padded_seconds: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio a second."""
        return self.audio_seconds / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def bits_per_code(self) -> float:
        """What a code takes on disk, dictionaries included; 0 where nothing was written."""
        return 8 * self.code_bytes / self.num_codes if self.num_codes else 0.0

    @property
    def padding_share(self) -> float:
        """Share of what went through the codec that was padding."""
        return 1 - self.audio_seconds / self.padded_seconds if self.padded_seconds else 0.0

    def add(self, result: UnitResult) -> None:
        """Count a committed unit."""
        self.num_ok += result.num_ok
        self.num_errors += result.num_errors
        self.audio_seconds += result.audio_seconds
        self.padded_seconds += result.padded_seconds
        self.num_codes += result.size.num_codes
        self.code_bytes += result.size.code_bytes


def tokenize_corpus(
    source: str | Path,
    dataset: str | Path,
    *,
    codec: str | Path = "speech_24khz",
    bandwidth_kbps: float | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    batch_seconds: float = BATCH_SECONDS,
    unit_seconds: float = UNIT_SECONDS,
    progress: bool = True,
) -> JobSummary:
    """Encode every audio file of a source into a token dataset; call it again to go on after any interruption.

    Every listed input ends in exactly one row of parts/ or errors/. Units that are committed are not looked at again.

    Args:
        source: directory, file or glob; local or s3://.
        dataset: directory or s3:// URI to write to.
        codec: name or directory for `load_codec`; the weights travel to the workers from here.
        bandwidth_kbps: None for all that the codec has.
        num_workers: encoding actors; None for one a core, or one a GPU.
        gpus_per_worker: share of a GPU that each takes; 0 encodes on CPUs.
        batch_seconds: of audio with padding in one pass of the codec.
        unit_seconds: of audio, about, in one part. An existing dataset keeps its plan.
        progress: show it on stderr.

    Raises:
        DatasetError: nothing to encode; or the dataset was made from something else, and the message says what.
        CheckpointError: no such codec.
        ValueError: a bandwidth that the codec lacks, or a number that is not positive.
    """
    started = time.monotonic()
    for name, value in (("batch_seconds", batch_seconds), ("unit_seconds", unit_seconds)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    model = load_codec(codec)
    num_codebooks = model.spec.num_codebooks_at(bandwidth_kbps)
    root = storage.absolute(dataset)
    plan = _open_or_create(root, list_source(source), unit_seconds, _info(model, codec, num_codebooks))
    done = set(list_parts(root))
    pending = [unit for unit in range(len(plan.units)) if part_name(unit) not in done]
    summary = JobSummary(num_files=len(plan.files))
    summary.num_skipped = summary.num_files - sum(len(plan.units[unit]) for unit in pending)
    if pending:
        workers = num_workers or _default_workers(gpus_per_worker)
        settings = JobSettings(num_workers=workers, gpus_per_worker=gpus_per_worker, batch_seconds=batch_seconds)
        target = Target(root, read_dataset_info(root).codec, num_codebooks)
        with (
            ray_session(),
            Progress("tokenizing", summary.num_files - summary.num_skipped, shown=progress) as shown,
        ):
            _run(_Job(model, target, settings), plan, pending, summary, shown)
    summary.wall_seconds = time.monotonic() - started
    return summary


def _default_workers(gpus_per_worker: float) -> int:
    cores = os.cpu_count() or 1
    return max(1, int(1 / gpus_per_worker)) if gpus_per_worker > 0 else cores


def _info(model: Codec, source: str | Path, num_codebooks: int) -> DatasetInfo:
    found = str(Path(source).absolute()) if Path(source).is_dir() else str(source)
    return DatasetInfo(
        codec={**model.card(), "source": found},
        bandwidth_kbps=model.spec.level_kbps * num_codebooks,
        num_codebooks=num_codebooks,
        resampler=RESAMPLER,
        plan_sha256="",
    )


def _open_or_create(root: str, files: list[SourceFile], unit_seconds: float, info: DatasetInfo) -> Plan:
    """The plan to follow: that of the dataset if there is one and it fits, a new one otherwise."""
    plan_uri, info_uri = storage.join(root, "plan.parquet"), storage.join(root, FILE_NAME)
    for folder in (root, storage.join(root, "parts"), storage.join(root, "errors")):
        storage.remove_temporaries(folder)
    if storage.find_file(info_uri) is None:
        if list_parts(root):
            raise DatasetError(f"{root} has parts but no dataset.json: choose another directory")
        plan = make_plan(files, unit_seconds)
        storage.commit(plan_uri, plan.to_parquet())
        # After the plan: a dataset.json says that the plan beside it is the one to follow.
        write_dataset_info(root, dataclasses.replace(info, plan_sha256=plan.sha256))
        return plan
    existing = read_dataset_info(root)
    plan = Plan.from_parquet(storage.read_bytes(plan_uri))
    if plan.sha256 != existing.plan_sha256:
        raise DatasetError(f"{root}: plan.parquet is not the one that dataset.json was written with")
    differences = [text for text in (existing.describe_difference(info),) if text]
    listing = describe_difference(plan.files, files)
    if listing:
        differences.append(f"source files: {listing}")
    if differences:
        raise DatasetError(f"{root} was made from something else: {'; '.join(differences)}. Choose another directory")
    return plan


class _RayEncoder:
    """An encoder as a Ray actor. It finds its codec in the object store at its first bundle, also after a restart.

    Not in the constructor: Ray warns there, since it cannot know that the driver keeps the codec for as long as it runs.
    """

    def __init__(self, num_codebooks: int, batch_seconds: float) -> None:
        self._arguments = (num_codebooks, batch_seconds)
        self._encoder: Encoder | None = None

    def encode_bundle(self, shared: list[Any], items: Sequence[ReadFile | ErrorRow]) -> EncodedBundle:
        """See `Encoder.encode_bundle`; `shared` holds the reference of the codec."""
        if self._encoder is None:
            import ray

            self._encoder = Encoder(ray.get(shared[0]), *self._arguments)
        return self._encoder.encode_bundle(items)


@dataclass(slots=True)
class _Job:
    """Ray's side of a run: readers, encoders, and where the results go."""

    codec: Codec
    target: Target
    settings: JobSettings
    shared: Any = None  # reference of the codec: held here, so that it outlives every restart of an actor
    actors: list[Any] = field(default_factory=list)
    next_actor: int = 0

    def start(self) -> None:
        """Start the encoders. Half a core each, like a reader: on two cores both kinds always find room."""
        import ray

        actor = ray.remote(
            num_cpus=0.5, num_gpus=self.settings.gpus_per_worker, max_restarts=-1, max_task_retries=RETRIES
        )(_RayEncoder)
        self.shared = ray.put(self.codec)
        arguments = (self.target.num_codebooks, self.settings.batch_seconds)
        self.actors = [actor.remote(*arguments) for _ in range(self.settings.num_workers)]

    def submit(self, unit: int, files: Sequence[SourceFile]) -> Any:
        """Read, encode and commit one unit; returns the reference of its result."""
        import ray

        read = ray.remote(num_cpus=0.5, max_retries=RETRIES)(read_bundle)
        commit = ray.remote(num_cpus=0, max_retries=RETRIES)(commit_unit)
        cut = cut_bundles(files, BUNDLE_BATCHES * self.settings.batch_seconds)
        bundles = [self._encode(read.remote(bundle, self.codec.spec)) for bundle in cut]
        return commit.remote(unit, [file.id for file in files], self.target, *bundles)

    def rescue(self, unit: int, files: Sequence[SourceFile]) -> UnitResult:
        """Do a unit whose workers died again, file by file: what kills its worker alone becomes an error row."""
        import ray

        read = ray.remote(num_cpus=0.5, max_retries=0)(read_bundle)
        bundles = []
        for file in files:
            try:
                bundles.append(ray.get(self._encode(read.remote([file], self.codec.spec))))
            except ray.exceptions.RayError as error:
                reason = f"the worker died on this file: {type(error).__name__}"
                bundles.append(EncodedBundle([ErrorRow(file.id, file.uri, "killed_worker", reason)], 0.0))
        return commit_unit(unit, [file.id for file in files], self.target, *bundles)

    def _encode(self, read: Any) -> Any:
        actor = self.actors[self.next_actor % len(self.actors)]
        self.next_actor += 1
        return actor.encode_bundle.remote([self.shared], read)


def _run(job: _Job, plan: Plan, pending: list[int], summary: JobSummary, progress: Progress) -> None:
    """Keep a bounded number of units in flight, so that memory does not grow with the corpus."""
    import ray

    job.start()
    waiting = list(reversed(pending))
    in_flight: dict[Any, int] = {}
    while waiting or in_flight:
        while waiting and len(in_flight) <= job.settings.num_workers:
            unit = waiting.pop()
            in_flight[job.submit(unit, plan.units[unit])] = unit
        finished, _ = ray.wait(list(in_flight), num_returns=1)
        unit = in_flight.pop(finished[0])
        try:
            result: UnitResult = ray.get(finished[0])
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, ray.exceptions.RayError):
                raise  # ours: a full disk, refused keys, a mistake; more files would meet it too
            result = job.rescue(unit, plan.units[unit])
        except ray.exceptions.RayError:  # a worker or an actor died more often than it is retried
            result = job.rescue(unit, plan.units[unit])
        summary.add(result)
        progress.advance(result.num_ok + result.num_errors, result.audio_seconds, result.num_errors)
