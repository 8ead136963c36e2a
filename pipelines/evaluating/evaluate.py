"""How good codecs are, in numbers: every clip of a set through all of them, and every metric on what came back.

    clip ─ one channel, first 8 s ─┬─ codec at each bandwidth, at its own rate ─┬─ at the first codec's rate: five
                                   ├─ other codecs, the same                    │  metrics, bits, seconds of the calls
                                   └─ opusenc, 6 and 12 kbps ───────────────────┘  mean over clips, with its interval

Scores do not depend on the number of workers or on the run; speeds do, as they are measured beside other work.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.evaluating.evaluation_clips import EvaluationClip, list_clips, read_clip, spread
from pipelines.evaluating.evaluation_scores import ClipScore, CodebookCounter, Evaluation, average, judge
from pipelines.evaluating.opus import opus_version
from pipelines.evaluating.round_trips import OPUS, OPUS_KBPS, Contestant, reference_of, round_trips, warm_up
from pipelines.progress import Progress
from tokenizer import AudioError, CodecSpec, load_codec, save_codec

MAX_CLIP_S = 8  # of every file, from its start: what PESQ was made for, and long files get no extra weight


@dataclass(frozen=True, slots=True)
class _Clipped:
    """What a worker sends back for one clip."""

    scores: list[ClipScore]
    codes: dict[str, npt.NDArray[np.integer]]  # system -> [K, T] at its highest bandwidth


@dataclass(frozen=True, slots=True)
class _Job:
    """What every worker needs to know; it loads the codecs once."""

    systems: tuple[tuple[str, str, tuple[float, ...]], ...]  # name, where the codec is, bandwidths
    opus_kbps: tuple[float, ...]
    sample_rate: int  # Hz of the comparison
    max_clip_s: float

    def load(self) -> list[Contestant]:
        return [Contestant(name, load_codec(source), kbps) for name, source, kbps in self.systems]


def evaluate_codec(
    codec: str,
    source: str | Path,
    *,
    against: Sequence[str] = (),
    bandwidths_kbps: Sequence[float] | None = None,
    split: str = "valid",
    kind: str | None = None,
    limit: int | None = None,
    with_opus: bool = True,
    num_workers: int = 2,
    progress: bool = True,
) -> Evaluation:
    """Measure a codec on clips, beside Opus and other codecs.

    Workers are fresh processes: a script that calls this keeps the call under `if __name__ == "__main__":`. With one
    worker everything runs here.

    Args:
        codec: a name or directory that `load_codec` knows; all are compared at its sample rate.
        source: a folder, searched to any depth, or a .jsonl manifest of tar shards (see `list_clips`).
        against: other codecs.
        bandwidths_kbps: None for the customary ones of each; others take part with those that they have.
        split: of a manifest.
        kind: of a manifest's clips, such as "speech"; None for all.
        limit: at most so many clips, spread evenly over the listing.
        with_opus: also run opusenc (Debian's opus-tools) at 6 and 12 kbps; left out where it is not installed.
        num_workers: processes, with one torch thread each.
        progress: show it on stderr.

    Returns:
        One row per bandwidth, low to high, codec by codec, then Opus. Clips that cannot be read are named and left out.

    Raises:
        DatasetError: no clips there.
        AudioError: none of them can be read.
        CheckpointError: no such codec.
        ValueError: a bandwidth that the codec does not have, a limit or number of workers below 1, a codec twice.
        ImportError: a metric's package is missing.
    """
    if num_workers < 1 or (limit is not None and limit < 1):
        raise ValueError(f"num_workers and limit must be at least 1, not {num_workers} and {limit}")
    contestants = _enter(codec, against, bandwidths_kbps)
    clips = spread(list_clips(source, split=split, kind=kind), limit)
    opus = opus_version() if with_opus else None
    counter = CodebookCounter(contestants)
    scores: dict[str, list[ClipScore]] = {}
    unreadable: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory() as copies,
        Progress("evaluate", total_files=len(clips), shown=progress) as shown,
    ):
        sample_rate = contestants[0].codec.spec.sample_rate
        systems = _copy_codecs(contestants, (codec, *against), Path(copies))
        job = _Job(systems, OPUS_KBPS if opus else (), sample_rate, MAX_CLIP_S)
        for clip, outcome in zip(clips, _run(job, clips, num_workers), strict=True):
            if isinstance(outcome, str):
                unreadable[clip.id] = outcome
                shown.advance(files=1, errors=1)
            else:
                scores[clip.id] = outcome.scores
                counter.add(outcome.codes)
                shown.advance(files=1, seconds=outcome.scores[0].seconds)
    if not scores:
        raise AudioError(f"{source}: none of {len(clips)} clips can be read: {next(iter(unreadable.values()))}")
    return Evaluation(
        contestants=tuple(contestants),
        source=str(source),
        sample_rate=sample_rate,
        max_clip_s=MAX_CLIP_S,
        opus=opus,
        listed=tuple(clip for clip in clips if clip.id in scores),
        clips=scores,
        unreadable=unreadable,
        rows=[average(column) for column in zip(*scores.values(), strict=True)],
        codebook_use=counter.use(),
    )


def _enter(codec: str, against: Sequence[str], asked: Sequence[float] | None) -> list[Contestant]:
    """The codecs under names of their own, with their bandwidths."""
    contestants: list[Contestant] = []
    taken = {OPUS}
    for number, source in enumerate((codec, *against)):
        loaded = load_codec(source)
        name = loaded.name if loaded.name not in taken else str(source)
        if name in taken:
            raise ValueError(f"{source}: a codec of this name takes part already")
        taken.add(name)
        contestants.append(Contestant(name, loaded, _bandwidths(loaded.spec, asked, needs_all=number == 0)))
    return contestants


def _bandwidths(spec: CodecSpec, asked: Sequence[float] | None, *, needs_all: bool) -> tuple[float, ...]:
    """Those asked for, low to high; codecs beside the first one do with those that they have."""
    if not asked:
        return spec.bandwidths_kbps
    if needs_all:
        for kbps in asked:
            spec.num_codebooks_at(kbps)
    wanted = tuple(kbps for kbps in sorted(set(asked)) if _has(spec, kbps))
    if not wanted:
        listed = ", ".join(f"{kbps:g}" for kbps in spec.bandwidths_kbps)
        raise ValueError(f"none of the bandwidths asked for is among those of a codec to compare with: {listed} kbps")
    return wanted


def _has(spec: CodecSpec, kbps: float) -> bool:
    try:
        spec.num_codebooks_at(kbps)
    except ValueError:
        return False
    return True


def _copy_codecs(
    contestants: Sequence[Contestant], sources: Sequence[str], folder: Path
) -> tuple[tuple[str, str, tuple[float, ...]], ...]:
    """Copies of our own for the workers: training may replace the originals at any time."""
    systems = []
    for number, (contestant, source) in enumerate(zip(contestants, sources, strict=True)):
        place = str(source)
        if (
            contestant.codec.spec.family != "transformers"
        ):  # those have a layout of their own, and are never trained here
            place = str(folder / str(number))
            save_codec(contestant.codec, place)
        systems.append((contestant.system, place, contestant.bandwidths_kbps))
    return tuple(systems)


_worker: tuple[_Job, list[Contestant]] | None = None  # this process's codecs, set once by _start_worker


def _start_worker(job: _Job) -> None:
    global _worker  # noqa: PLW0603 - a pool's initializer has nowhere else to leave what its tasks share
    torch.set_num_threads(1)
    _worker = job, job.load()
    warm_up(_worker[1])


def _run_in_worker(clip: EvaluationClip) -> _Clipped | str:
    if _worker is None:
        raise RuntimeError("the worker was not started with _start_worker")
    return _evaluate_clip(clip, *_worker)


def _run(job: _Job, clips: Sequence[EvaluationClip], num_workers: int) -> Iterator[_Clipped | str]:
    if num_workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            contestants = job.load()
            warm_up(contestants)
            yield from (_evaluate_clip(clip, job, contestants) for clip in clips)
        finally:
            torch.set_num_threads(threads)
        return
    # Forking a process whose torch already has threads can hang in them; a spawned one starts clean.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(job,)) as pool:
        yield from pool.map(_run_in_worker, clips)


def _evaluate_clip(clip: EvaluationClip, job: _Job, contestants: Sequence[Contestant]) -> _Clipped | str:
    """Every system's scores on one clip, in the order of the rows; or why there are none."""
    try:
        waveform, source_rate = read_clip(clip, job.max_clip_s)
        trips = list(round_trips(contestants, job.opus_kbps, waveform, source_rate, job.sample_rate))
    except (AudioError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    reference = reference_of(waveform, source_rate, job.sample_rate)
    codes = {trip.system: trip.codes for trip in trips if trip.codes is not None}  # the last one is the highest
    return _Clipped([judge(trip, reference, job.sample_rate) for trip in trips], codes)
