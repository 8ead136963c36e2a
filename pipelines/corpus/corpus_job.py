"""The corpus job: a plan of units, read ahead and encoded on Ray, committed one by one, resumed by the same command."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lm_head.lm_checkpoint import load_coder, read_lm_card
from pipelines import storage
from pipelines.corpus.bundle_reader import ReadSettings
from pipelines.corpus.carried_lm import CarriedLM
from pipelines.corpus.encoder import EncodeSettings
from pipelines.corpus.job_settings import JobSettings
from pipelines.corpus.job_summary import ErrorLimit, JobSummary
from pipelines.corpus.precision_agreement import measure_agreement
from pipelines.corpus.unit_commit import Target, UnitResult
from pipelines.datasets.dataset import list_parts
from pipelines.datasets.dataset_info import FILE_NAME, DatasetInfo, read_dataset_info, write_dataset_info
from pipelines.datasets.parts import PartFormat, part_name
from pipelines.datasets.plan import Plan, describe_difference, make_plan
from pipelines.inputs.sources import list_source
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
from tokenizer import RESAMPLER, Codec, DatasetError, load_codec
from tokenizer.checkpoint import TRANSFORMERS_PREFIX

if TYPE_CHECKING:
    from pipelines.corpus.conductor import Conductor
    from pipelines.corpus.job_metrics import JobMetrics

BUNDLE_BATCHES = 2  # batches of audio that one reader hands over at once
LEAST_BUNDLES = 64  # a small corpus is cut finer, so that every encoder gets some of it and the progress moves


def tokenize_corpus(
    source: str | Path,
    dataset: str | Path,
    *,
    codec: str | Path = "speech_24khz",
    progress: bool = True,
    **settings: Any,
) -> JobSummary:
    """Encode every input of a source into a token dataset; call it again to go on after any interruption.

    Every listed input ends in parts/ (as one row, or as its segments) or as one row of errors/. Units that are
    committed are not looked at again.

    Args:
        source: directory, file, glob, manifest, tar shards or Parquet files; local or s3://.
        dataset: directory or s3:// URI to write to.
        codec: name or directory for `load_codec`; the weights travel to the workers from here.
        progress: show it on stderr.
        **settings: `bandwidth_kbps=6.0`, `num_workers=4` ...: see `JobSettings`.

    Raises:
        DatasetError: nothing to encode; the dataset was made from something else, and the message says what; or more
            inputs failed than `max_error_rate` allows.
        CheckpointError: no such codec, or no such language model in integers.
        ValueError: a bandwidth that the codec lacks, a setting that cannot be meant, more GPUs than Ray has, or the
            language model of another codec or of fewer levels.
        QuantoneError: no encoder can start, or the cluster cannot be reached.
    """
    started = time.monotonic()
    job = open_job(source, dataset, codec, JobSettings(**settings))
    summary = JobSummary(num_files=job.plan.num_files)
    summary.num_skipped = summary.num_files - job.num_files
    done_before = job.root if summary.num_skipped else None
    limit = ErrorLimit(job.settings.max_error_rate, job.plan.num_files, done_before)
    if job.pending:
        for result in _run(job, shown=progress):
            summary.add(result)
            limit.check(summary.num_errors)
        _clean_up(job.root)  # what a killed job's last worker may have left after this one started
    summary.wall_seconds = time.monotonic() - started
    return summary


@dataclass(frozen=True, slots=True)
class CorpusJob:
    """A dataset that has been opened for the units that it lacks."""

    codec: Codec
    root: str  # of the dataset
    info: DatasetInfo  # as it was written by whoever began the dataset
    plan: Plan
    pending: Sequence[int]  # units
    settings: JobSettings

    @property
    def num_files(self) -> int:
        """Inputs in the pending units."""
        sizes = self.plan.unit_sizes()
        return sum(sizes[unit] for unit in self.pending)

    @property
    def read_settings(self) -> ReadSettings:
        """How readers read."""
        bundle_seconds = _bundle_seconds(self.plan, self.settings.batch_seconds)
        return ReadSettings(self.codec.spec, self.info.max_segment_s, bundle_seconds)

    def conductor(self, progress: Progress, metrics: JobMetrics) -> Conductor:
        """Who runs it, on the Ray that has been started."""
        import ray

        from pipelines.corpus.conductor import (  # Ray reads its settings, just made, while it is imported
            Conductor,
            Crew,
        )

        settings = self.settings
        if settings.address is None and not os.environ.get("RAY_ADDRESS"):
            _check_gpus(settings.gpus_per_worker)  # a cluster may yet grow some
        info = self.info
        lm = None if settings.compress_with is None else ray.put(CarriedLM.read(settings.compress_with))
        form = PartFormat(
            spec=self.codec.spec,
            num_codebooks=info.num_codebooks,
            card=info.codec,
            compressed=lm is not None,
            quality=info.quality,
        )
        crew = Crew(
            num_workers=settings.num_workers,
            gpus_per_worker=settings.gpus_per_worker,
            read=self.read_settings,
            encode=EncodeSettings(info.num_codebooks, settings.batch_seconds, info.quality, settings.precision),
            file_timeout_s=settings.file_timeout_s,
        )
        return Conductor(self.codec, Target(self.root, form, lm), crew, progress, metrics)


def open_job(source: str | Path, dataset: str | Path, codec: str | Path, settings: JobSettings) -> CorpusJob:
    """Begin a dataset, or open one to go on with; what it raises is said at `tokenize_corpus`."""
    model = load_codec(codec)
    info = _info(model, codec, settings)
    root = storage.absolute(dataset)
    plan = _open_or_create(root, list_source(source), settings.unit_seconds, info, model)
    done = set(list_parts(root))
    pending = [unit for unit in range(plan.num_units) if part_name(unit) not in done]
    return CorpusJob(model, root, read_dataset_info(root), plan, pending, settings)


def _run(job: CorpusJob, *, shown: bool) -> Iterator[UnitResult]:
    """Start Ray if it does not run, and do the pending units."""
    with (
        ray_session(address=job.settings.address),
        Progress("tokenizing", job.num_files, shown=shown) as progress,
    ):
        from pipelines.corpus.job_metrics import JobMetrics  # as the conductor

        metrics, num_done = JobMetrics(job.root, job.codec.name), job.plan.num_units - len(job.pending)
        metrics.units_done(num_done, job.plan.num_units)
        for result in job.conductor(progress, metrics).run(job.plan, job.pending):
            num_done += 1
            metrics.units_done(num_done, job.plan.num_units)
            yield result


def _check_gpus(gpus_per_worker: float) -> None:
    import ray

    gpus = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
    if gpus_per_worker > gpus:
        raise ValueError(f"{gpus_per_worker:g} GPUs per worker are asked for, and Ray has {gpus:g}")


def _bundle_seconds(plan: Plan, batch_seconds: float) -> float:
    """From the plan alone: a resumed job cuts the same bundles, and so composes the same batches."""
    return min(BUNDLE_BATCHES * batch_seconds, max(batch_seconds, plan.audio_seconds / LEAST_BUNDLES))


def _info(model: Codec, source: str | Path, settings: JobSettings) -> DatasetInfo:
    num_codebooks, lm = model.spec.num_codebooks_at(settings.bandwidth_kbps), settings.compress_with
    return DatasetInfo(
        codec={**model.card(), "source": _found_from_anywhere(str(source))},
        bandwidth_kbps=model.spec.level_kbps * num_codebooks,
        num_codebooks=num_codebooks,
        resampler=RESAMPLER,
        plan_sha256="",
        lm=None if lm is None else _lm_info(model, num_codebooks, lm),
        max_segment_s=settings.max_segment_s,
        quality=settings.quality,
        precision="bfloat16" if settings.precision == "fast" else "float32",
    )


def _lm_info(model: Codec, num_codebooks: int, source: str | Path) -> dict[str, Any]:
    """What dataset.json says of the language model, once it is clear that it fits the codec."""
    card, coder = read_lm_card(source), load_coder(source)
    if card.codec.get("sha256") != model.sha256:
        raise ValueError(f"language model {card.name!r} is for codes of {card.codec.get('name')!r}, not of this codec")
    if coder.num_codebooks < num_codebooks:
        raise ValueError(f"language model {card.name!r} has {coder.num_codebooks} levels, the codes {num_codebooks}")
    return {"name": card.name, "identity": coder.identity, "source": _found_from_anywhere(str(source))}


def _found_from_anywhere(source: str) -> str:
    """The codec's name, or the absolute path of its file or directory, with hf: in front where it was."""
    prefix = TRANSFORMERS_PREFIX if source.startswith(TRANSFORMERS_PREFIX) else ""
    path = Path(source.removeprefix(prefix))
    return f"{prefix}{path.absolute()}" if path.exists() else source


def _open_or_create(root: str, listing: pa.Table, unit_seconds: float, info: DatasetInfo, model: Codec) -> Plan:
    """The plan to follow: that of the dataset if there is one and it fits, a new one otherwise."""
    plan_uri, info_uri = storage.join(root, "plan.parquet"), storage.join(root, FILE_NAME)
    _clean_up(root)
    if storage.find_file(info_uri) is None:
        if list_parts(root):
            raise DatasetError(f"{root} has parts but no dataset.json: choose another directory")
        plan = make_plan(listing, unit_seconds)
        storage.commit(plan_uri, plan.to_parquet())
        agreement = None if info.precision == "float32" else measure_agreement(model, info.num_codebooks)
        # After the plan: a dataset.json says that the plan beside it is the one to follow.
        write_dataset_info(root, dataclasses.replace(info, plan_sha256=plan.sha256, agreement=agreement))
    # Read back even if just written: of two jobs that begin a dataset at the same time, one finds the other's.
    existing = read_dataset_info(root)
    plan = Plan.from_parquet(storage.read_bytes(plan_uri))
    if plan.sha256 != existing.plan_sha256:
        raise DatasetError(f"{root}: plan.parquet is not the one that dataset.json was written with")
    differences = [text for text in (existing.describe_difference(info),) if text]
    changed = describe_difference(plan, listing)
    if changed:
        differences.append(f"source files: {changed}")
    if differences:
        raise DatasetError(f"{root} was made from something else: {'; '.join(differences)}. Choose another directory")
    return plan


def _clean_up(root: str) -> None:
    for folder in (root, *(storage.join(root, name) for name in ("parts", "errors", "records"))):
        storage.remove_temporaries(folder)
