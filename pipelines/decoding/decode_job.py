"""The decode job: a token dataset back to audio files, streamed through decode actors."""

from __future__ import annotations

import math
import os
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from pipelines.datasets.dataset import open_dataset
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.datasets.stored_codes import StoredUtterance, load_dataset_codec, num_codebooks_at, read_utterances
from pipelines.decoding.decode_actor import DecodeActor
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
from tokenizer import CodesError, DatasetError, QuantoneError, write_audio

AUDIO_FORMATS = ("wav", "flac", "ogg", "opus", "mp3")
BUNDLE_SECONDS = 60.0  # of audio in one call of an actor: 6 MB of samples at 24 kHz
BUNDLES_IN_FLIGHT = 2  # per actor: one in work, one waiting, so that writing files never leaves an actor idle
SECONDS_PER_WORKER = 120.0  # an actor takes seconds to start: with less than this to do it only costs

Result = NDArray[np.float32] | CodesError


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSummary:
    """What a decode job did."""

    num_files: int  # written
    audio_seconds: float
    wall_seconds: float
    bandwidth_kbps: float
    paths: Mapping[str, Path]  # id -> file, of those written
    errors: Mapping[str, str] = field(default_factory=dict)  # id -> why its codes could not be decoded


@dataclass(frozen=True, slots=True)
class _Selection:
    """The rows to decode, and where each goes."""

    paths: dict[str, Path]
    seconds: float


def decode_dataset(
    dataset: str | Path,
    out_dir: str | Path,
    *,
    bandwidth_kbps: float | None = None,
    codec: str | None = None,
    audio_format: str = "wav",
    ids: Collection[str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> DecodeSummary:
    """Decode a token dataset to audio files in the folder tree of its ids.

    Args:
        dataset: a token dataset, local or s3://.
        out_dir: local folder for the files; `a/b.flac` is written to `a/b.wav` (to `a/b.flac.wav` where two inputs
            would share that name). Existing files are replaced.
        bandwidth_kbps: at most what is stored; None for all of it. Only the levels that it needs are read.
        codec: where the dataset's codec is now; None for where it was.
        audio_format: wav, flac, ogg, opus or mp3.
        ids: only these utterances; None for all.
        num_workers: decode actors; None for as many as the cores and the work are good for.
        progress: show it on stderr.

    Returns:
        Counts, and the rows whose codes could not be decoded.

    Raises:
        ValueError: a bandwidth, format or number of workers that does not exist.
        DatasetError: no dataset, another codec, unknown ids, ids that would leave out_dir, a damaged part.
        CheckpointError: the codec is not there.
        AudioError: the format cannot hold the codec's sample rate.
    """
    started = time.monotonic()
    _check_arguments(audio_format, num_workers)
    info = read_dataset_info(dataset)
    loaded = load_dataset_codec(info, codec)
    num_codebooks = num_codebooks_at(info, loaded, bandwidth_kbps)
    selection = _select(dataset, Path(out_dir), audio_format, ids)
    written: dict[str, Path] = {}
    errors: dict[str, str] = {}
    seconds = 0.0
    with ray_session(), Progress("decode", len(selection.paths), selection.seconds, shown=progress) as shown:
        shared = ray.put(loaded)  # held here: an actor may start late, and on a machine without the codec's files
        actors = _start_actors(shared, _count_workers(num_workers, selection.seconds))
        rows = read_utterances(dataset, num_codebooks, None if ids is None else selection.paths)
        for utterance, result in _decode(actors, _bundles(rows, info.sample_rate)):
            duration = utterance.num_samples / info.sample_rate
            if isinstance(result, CodesError):
                errors[utterance.id] = str(result)
            else:
                written[utterance.id] = _write(selection.paths[utterance.id], result, info.sample_rate)
                seconds += duration
            shown.advance(files=1, seconds=duration, errors=int(isinstance(result, CodesError)))
    return DecodeSummary(
        num_files=len(written),
        audio_seconds=seconds,
        wall_seconds=time.monotonic() - started,
        bandwidth_kbps=loaded.spec.level_kbps * num_codebooks,
        paths=written,
        errors=errors,
    )


def output_paths(ids: Sequence[str], out_dir: Path, audio_format: str) -> dict[str, Path]:
    """Where each id's audio goes: its path under out_dir with the extension replaced.

    Ids that differ only in their extension keep it (`a.flac.wav`), all of them, so that names do not depend on order.

    Raises:
        DatasetError: an id is no relative path below out_dir, or two still meet in one file.
    """
    root = Path(os.path.realpath(out_dir))
    stems = Counter(str(PurePosixPath(name).with_suffix("")) for name in ids if PurePosixPath(name).name)
    paths: dict[str, Path] = {}
    for name in ids:
        relative = PurePosixPath(name)
        parts = name.split("/")
        if "\\" in name or "\0" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
            raise DatasetError(f"id {name!r} is not a plain relative path: no file is written for it")
        stem = str(relative.with_suffix(""))
        final = Path(out_dir, f"{stem if stems[stem] == 1 else name}.{audio_format}")
        if not Path(os.path.realpath(final.parent)).is_relative_to(root):
            raise DatasetError(f"id {name!r} leads out of {out_dir} through a link: no file is written for it")
        paths[name] = final
    if len(set(paths.values())) != len(paths):
        twice = next(str(path) for path, count in Counter(paths.values()).items() if count > 1)
        raise DatasetError(f"two ids would both be written to {twice}")
    return paths


def _check_arguments(audio_format: str, num_workers: int | None) -> None:
    if audio_format not in AUDIO_FORMATS:
        raise ValueError(f"audio format {audio_format!r} is not one of {', '.join(AUDIO_FORMATS)}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")


def _select(dataset: str | Path, out_dir: Path, audio_format: str, ids: Collection[str] | None) -> _Selection:
    rows = open_dataset(dataset).select("id", "duration_s").collect()
    seconds: dict[str, float] = dict(zip(rows["id"].to_list(), rows["duration_s"].to_list(), strict=True))
    paths = output_paths(list(seconds), out_dir, audio_format)
    if ids is None:
        return _Selection(paths, sum(seconds.values()))
    unknown = [name for name in ids if name not in seconds]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise DatasetError(f"not in the dataset: {', '.join(unknown[:3])}{more}")
    return _Selection({name: paths[name] for name in ids}, sum(seconds[name] for name in set(ids)))


def _count_workers(num_workers: int | None, seconds: float) -> int:
    if num_workers is not None:
        return num_workers
    return max(1, min(int(_num_cpus()), int(seconds // SECONDS_PER_WORKER)))


def _num_cpus() -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("CPU", 1.0)


def _start_actors(codec: Any, count: int) -> list[Any]:
    # More actors than cores share them: one that finds no core would never start, and its bundles would wait for ever.
    share = min(1.0, math.floor(1000 * _num_cpus() / count) / 1000)
    return [DecodeActor.options(num_cpus=share).remote(codec) for _ in range(count)]


def _bundles(rows: Iterable[StoredUtterance], sample_rate: int) -> Iterator[list[StoredUtterance]]:
    """Consecutive rows with at most BUNDLE_SECONDS of audio together, longer ones alone."""
    bundle: list[StoredUtterance] = []
    samples = 0
    for row in rows:
        if bundle and samples + row.num_samples > BUNDLE_SECONDS * sample_rate:
            yield bundle
            bundle, samples = [], 0
        bundle.append(row)
        samples += row.num_samples
    if bundle:
        yield bundle


def _decode(
    actors: Sequence[Any], bundles: Iterable[list[StoredUtterance]]
) -> Iterator[tuple[StoredUtterance, Result]]:
    """Send bundles to whichever actor has room, and yield results as they come."""
    free = deque(list(actors) * BUNDLES_IN_FLIGHT)
    in_flight: dict[Any, tuple[Any, list[StoredUtterance]]] = {}
    for bundle in bundles:
        if not free:
            yield from _collect(in_flight, free)
        actor = free.popleft()
        columns = zip(*((row.codes, row.num_samples, row.scales) for row in bundle), strict=True)
        call = actor.decode_batch.remote(*columns)
        in_flight[call] = (actor, bundle)
    while in_flight:
        yield from _collect(in_flight, free)


def _collect(
    in_flight: dict[Any, tuple[Any, list[StoredUtterance]]], free: deque[Any]
) -> Iterator[tuple[StoredUtterance, Result]]:
    """Wait for one bundle and hand out its results."""
    (call,), _ = ray.wait(list(in_flight), num_returns=1)
    actor, bundle = in_flight.pop(call)
    free.append(actor)
    try:
        results: list[Result] = ray.get(call)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
        raise QuantoneError(f"a decode actor failed at {bundle[0].id}: {reason}") from error
    yield from zip(bundle, results, strict=True)


def _write(path: Path, waveform: NDArray[np.float32], sample_rate: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, torch.from_numpy(np.array(waveform)), sample_rate)  # a copy: Ray's arrays are read-only
    return path
