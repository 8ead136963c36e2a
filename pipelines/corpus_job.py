"""The corpus job: a plan of units, read ahead and encoded on Ray, committed one by one, resumed by the same command."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_head.lm_checkpoint import load_coder, read_lm_card
from pipelines import storage
from pipelines.carried_lm import CarriedLM
from pipelines.dataset import list_parts
from pipelines.dataset_info import FILE_NAME, DatasetInfo, read_dataset_info, write_dataset_info
from pipelines.parts import part_name
from pipelines.plan import Plan, describe_difference, estimate_seconds, make_plan
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
from pipelines.sources import SourceFile, list_source
from pipelines.workers import Target, UnitResult
from tokenizer import RESAMPLER, Codec, DatasetError, load_codec
from tokenizer.checkpoint import TRANSFORMERS_PREFIX

# Measured with random codes, 16 levels of 1024: 10.17 bits a code in a part of an hour, 10.24 in half an hour, 10.48 in
# ten minutes. Lengths are estimated from bytes, and 48 kHz stereo has six times what the estimate takes for granted.
UNIT_SECONDS = 3600.0
BATCH_SECONDS = 120.0
BUNDLE_BATCHES = 2  # batches of audio that one reader hands over at once
LEAST_BUNDLES = 16  # a small corpus is cut finer, so that every encoder gets some of it and the progress moves


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
    compress_with: str | Path | None = None,
    progress: bool = True,
) -> JobSummary:
    """Encode every audio file of a source into a token dataset; call it again to go on after any interruption.

    Every listed input ends in exactly one row of parts/ or errors/. Units that are committed are not looked at again.

    Args:
        source: directory, file or glob; local or s3://.
        dataset: directory or s3:// URI to write to.
        codec: name or directory for `load_codec`; the weights travel to the workers from here.
        bandwidth_kbps: None for all that the codec has.
        num_workers: encoding actors; None for one a core, or what the GPUs hold. Never more than leave readers room.
        gpus_per_worker: GPUs, or the share of one, that each takes; 0 encodes on CPUs.
        batch_seconds: of audio with padding in one pass of the codec.
        unit_seconds: of audio, about, in one part. An existing dataset keeps its plan.
        compress_with: name or directory of the language model that compresses the codes, one .qtn stream a row in place
            of one column a level; None leaves them as they are.
        progress: show it on stderr.

    Raises:
        DatasetError: nothing to encode; or the dataset was made from something else, and the message says what.
        CheckpointError: no such codec, or no such language model in integers.
        ValueError: a bandwidth that the codec lacks, a number that is not positive, more GPUs than Ray has, or the
            language model of another codec or of fewer levels.
        QuantoneError: no encoder can start.
    """
    started = time.monotonic()
    _check_numbers(num_workers, gpus_per_worker, batch_seconds=batch_seconds, unit_seconds=unit_seconds)
    model = load_codec(codec)
    num_codebooks = model.spec.num_codebooks_at(bandwidth_kbps)
    root = storage.absolute(dataset)
    info = _info(model, codec, num_codebooks, compress_with)
    plan = _open_or_create(root, list_source(source), unit_seconds, info)
    done = set(list_parts(root))
    pending = [unit for unit in range(len(plan.units)) if part_name(unit) not in done]
    summary = JobSummary(num_files=len(plan.files))
    summary.num_skipped = summary.num_files - sum(len(plan.units[unit]) for unit in pending)
    if pending:
        with (
            ray_session(),
            Progress("tokenizing", summary.num_files - summary.num_skipped, shown=progress) as shown,
        ):
            import ray

            from pipelines.conductor import Conductor, Crew  # Ray reads its settings, just made, while it is imported

            lm = None if compress_with is None else ray.put(CarriedLM.read(compress_with))
            target = Target(root, read_dataset_info(root).codec, num_codebooks, lm)
            crew = Crew(
                num_workers=_count_workers(num_workers, gpus_per_worker),
                gpus_per_worker=gpus_per_worker,
                batch_seconds=batch_seconds,
                bundle_seconds=_bundle_seconds(plan, batch_seconds),
            )
            for result in Conductor(model, target, crew, shown).run((unit, plan.units[unit]) for unit in pending):
                summary.add(result)
        _clean_up(root)  # what a killed job's last worker may have left after this one started
    summary.wall_seconds = time.monotonic() - started
    return summary


def _check_numbers(num_workers: int | None, gpus_per_worker: float, **seconds: float) -> None:
    for name, value in seconds.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive, not {value}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    if not (math.isfinite(gpus_per_worker) and gpus_per_worker >= 0):
        raise ValueError(f"gpus_per_worker must be 0 or more, not {gpus_per_worker}")


def _count_workers(num_workers: int | None, gpus_per_worker: float) -> int:
    """How many encoders to start, on the machines that Ray has."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    if gpus_per_worker > gpus:
        raise ValueError(f"{gpus_per_worker:g} GPUs per worker are asked for, and Ray has {gpus:g}")
    if num_workers is None:
        num_workers = int(gpus / gpus_per_worker) if gpus_per_worker > 0 else int(cpus)
    return max(1, min(num_workers, int(2 * cpus) - 1))  # half a core each, and half a core for a reader


def _bundle_seconds(plan: Plan, batch_seconds: float) -> float:
    """From the plan alone: a resumed job cuts the same bundles, and so composes the same batches."""
    total = sum(map(estimate_seconds, plan.files))
    return min(BUNDLE_BATCHES * batch_seconds, max(batch_seconds, total / LEAST_BUNDLES))


def _info(model: Codec, source: str | Path, num_codebooks: int, lm: str | Path | None) -> DatasetInfo:
    return DatasetInfo(
        codec={**model.card(), "source": _found_from_anywhere(str(source))},
        bandwidth_kbps=model.spec.level_kbps * num_codebooks,
        num_codebooks=num_codebooks,
        resampler=RESAMPLER,
        plan_sha256="",
        lm=None if lm is None else _lm_info(model, num_codebooks, lm),
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


def _open_or_create(root: str, files: list[SourceFile], unit_seconds: float, info: DatasetInfo) -> Plan:
    """The plan to follow: that of the dataset if there is one and it fits, a new one otherwise."""
    plan_uri, info_uri = storage.join(root, "plan.parquet"), storage.join(root, FILE_NAME)
    _clean_up(root)
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


def _clean_up(root: str) -> None:
    for folder in (root, storage.join(root, "parts"), storage.join(root, "errors")):
        storage.remove_temporaries(folder)
