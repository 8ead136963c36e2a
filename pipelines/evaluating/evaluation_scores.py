"""Scores: of one clip in one system, their means over a set with intervals, and the file that keeps them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lm_head.entropy import code_histogram
from pipelines.evaluating.bootstrap import CONFIDENCE, NUM_RESAMPLES, Interval, mean_interval
from pipelines.evaluating.evaluation_clips import EvaluationClip
from pipelines.evaluating.round_trips import Contestant, RoundTrip
from tokenizer.metrics import mel_distance, pesq_wb, si_snr, stoi, visqol

METRICS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "si_snr_db": si_snr,
    "mel_distance": mel_distance,
    "stoi": stoi,
    "pesq_wb": pesq_wb,
    "visqol": visqol,
}


@dataclass(frozen=True, slots=True)
class ClipScore:
    """What one clip gave in one system."""

    system: str
    bandwidth_kbps: float
    num_bits: int
    seconds: float  # of the clip
    encode_s: float
    decode_s: float
    scores: dict[str, float | None]  # by metric; None where it says nothing about this clip


@dataclass(frozen=True, slots=True)
class Row:
    """A system at one bandwidth, over all clips."""

    system: str
    bandwidth_kbps: float  # what was asked for
    measured_kbps: float  # bits of codes and scales by seconds of clips; no entropy coding, no containers
    num_clips: int
    scores: dict[str, Interval | None]  # over the clips that the metric could judge; None if there were none
    failures: dict[str, int]  # metric -> number of clips that it could not judge
    encode_x_real_time: float  # seconds of audio per second of one thread, beside whatever else ran
    decode_x_real_time: float


@dataclass(frozen=True, slots=True)
class CodebookUse:
    """How much of its codebooks a codec used over the set, at its highest bandwidth."""

    system: str
    codebook_size: int
    codes_per_level: int
    shares: tuple[float, ...]  # of the entries, by level


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything that an evaluation found out."""

    contestants: tuple[Contestant, ...]  # as they were when it began
    source: str
    sample_rate: int  # Hz of the comparison
    max_clip_s: float
    opus: str | None  # version
    listed: tuple[EvaluationClip, ...]  # those that could be read
    clips: dict[str, list[ClipScore]]  # by the id of the clip; in the order of the rows
    unreadable: dict[str, str]  # id of a clip -> what was wrong
    rows: list[Row]
    codebook_use: list[CodebookUse]


def judge(trip: RoundTrip, reference: Tensor, sample_rate: int) -> ClipScore:
    """Every metric on one round trip; `reference` is [S] at `sample_rate`."""
    scores: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        try:
            scores[name] = metric(reference, trip.waveform, sample_rate)
        except ValueError:  # no speech found, too short: this metric says nothing about this clip
            scores[name] = None
    seconds = len(reference) / sample_rate
    return ClipScore(trip.system, trip.bandwidth_kbps, trip.num_bits, seconds, trip.encode_s, trip.decode_s, scores)


def average(clips: Sequence[ClipScore]) -> Row:
    """One system at one bandwidth, over its clips."""
    scores: dict[str, Interval | None] = {}
    failures = {}
    for name in METRICS:
        known = [score for clip in clips if (score := clip.scores[name]) is not None]
        scores[name] = mean_interval(known) if known else None
        failures[name] = len(clips) - len(known)
    seconds = sum(clip.seconds for clip in clips)
    return Row(
        system=clips[0].system,
        bandwidth_kbps=clips[0].bandwidth_kbps,
        measured_kbps=sum(clip.num_bits for clip in clips) / seconds / 1000,
        num_clips=len(clips),
        scores=scores,
        failures=failures,
        encode_x_real_time=seconds / sum(clip.encode_s for clip in clips),
        decode_x_real_time=seconds / sum(clip.decode_s for clip in clips),
    )


class CodebookCounter:
    """Counts codes by entry, clip after clip."""

    def __init__(self, contestants: Sequence[Contestant]) -> None:
        self._sizes = {one.system: one.codec.spec.codebook_size for one in contestants}
        self._histograms: dict[str, npt.NDArray[np.int64]] = {}

    def add(self, codes: dict[str, npt.NDArray[np.integer]]) -> None:
        """Count the codes [K, T] of every system."""
        for system, own in codes.items():
            counts = code_histogram(own, self._sizes[system])
            self._histograms[system] = self._histograms.get(system, 0) + counts

    def use(self) -> list[CodebookUse]:
        """What has been used so far."""
        return [
            CodebookUse(system, counts.shape[1], int(counts[0].sum()), tuple(((counts > 0).mean(axis=1)).tolist()))
            for system, counts in self._histograms.items()
        ]


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """Everything as JSON: what was compared on what, the rows, codebook use, and every clip's own scores."""
    report: dict[str, Any] = {
        "codecs": [{"system": one.system, **one.codec.card()} for one in evaluation.contestants],
        "source": evaluation.source,
        "sample_rate": evaluation.sample_rate,
        "max_clip_s": evaluation.max_clip_s,
        "opus": evaluation.opus,
        "intervals": f"{CONFIDENCE:.0%} percentile bootstrap over clips, {NUM_RESAMPLES} resamples",
        "unreadable": evaluation.unreadable,
        "rows": [asdict(row) for row in evaluation.rows],
        "codebook_use": [asdict(use) for use in evaluation.codebook_use],
        "clips": {name: [asdict(score) for score in scores] for name, scores in evaluation.clips.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
