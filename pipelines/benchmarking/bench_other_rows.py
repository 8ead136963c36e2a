"""Rows of the benchmarks that have a room of their own: entropy coding, generation, the corpus job and the service."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lm_head import load_lm
from pipelines.benchmarking.bench_row import Result, Row

if TYPE_CHECKING:
    from pipelines.benchmarking.bench_plan import BenchRun


def lm_rows(kbps: float, run: BenchRun) -> Sequence[Row]:
    """Compressing and decompressing tokens, beside the `encodec` package with the same weights."""
    from pipelines.benchmarking.bench_lm import LMBenchSettings, bench_lm

    settings = run.settings
    against = importlib.util.find_spec("encodec") is not None
    if not against:
        run.say_missing("encodec is not installed, nothing to compare the entropy coder with: pip install encodec")
    chosen = LMBenchSettings(
        seconds=settings.seconds, bandwidths_kbps=(kbps,), rounds=settings.turns.rounds, against=against
    )
    rows = []
    for row in bench_lm(settings.lm, chosen):
        results = [Result("quantone", row.speed, (row.speed,), row.ratio)]
        if row.reference_speed is not None:
            results.append(Result("encodec", row.reference_speed, (row.reference_speed,), 1.0))
        baseline = "encodec" if against else None
        rows.append(Row(f"lm/{kbps:g}kbps", row.direction, "x real time", tuple(results), baseline))
    return rows


def generation_rows(run: BenchRun) -> Sequence[Row]:
    """Tokens a second of the language model, one stream and eight."""
    from pipelines.benchmarking.bench_generate import GenerationBench, bench_generate

    settings = run.settings
    levels = load_lm(settings.lm).config.num_codebooks
    chosen = GenerationBench(num_frames=settings.generation_frames, num_codebooks=levels, rounds=settings.turns.rounds)
    rows = []
    for speed in bench_generate(settings.lm, settings=chosen):
        result = Result(f"quantone, {speed.name}", speed.tokens_per_second, (speed.tokens_per_second,))
        rows.append(Row("generate", f"{speed.batch_size} streams, {levels} levels", "tokens/s", (result,)))
    return rows


def pipeline_rows(run: BenchRun) -> Sequence[Row]:
    """The corpus job beside the bare codec on the same cores."""
    from pipelines.benchmarking.bench_pipeline import bench_pipeline

    settings = run.settings
    measured = bench_pipeline(codec=settings.codec, minutes=settings.pipeline_minutes, rounds=settings.turns.rounds)
    speeds = tuple(one.audio_seconds / one.running_s for one in measured.runs)
    results = (
        Result("the corpus job", measured.job_speed, speeds, measured.ratio),
        Result("the bare codec", measured.bare_speed, (measured.bare_speed,), 1.0),
    )
    work_name = f"{measured.codec}, exact, {measured.num_encoders} encoders"
    return [Row("pipeline", work_name, "x real time", results, "the bare codec")]


def serve_rows(run: BenchRun) -> Sequence[Row]:
    """The service on one core: requests beside an application that does nothing, and streams."""
    from pipelines.benchmarking.bench_serve import ServeBench, bench_serve

    settings = run.settings
    figures = bench_serve(settings.codec, ServeBench.quick() if settings.serve_quick else ServeBench())
    rows = []
    by_kind = {(speed.request, speed.callers): speed.per_second for speed in figures.requests}
    for callers in sorted({speed.callers for speed in figures.requests}):
        empty, decoded = by_kind["empty", callers], by_kind["decode", callers]
        results = (
            Result("quantone serve", decoded, (decoded,), decoded / empty),
            Result("an empty application", empty, (empty,), 1.0),
        )
        work = f"{figures.utterance_s:g} s of sound a request, {callers} callers"
        rows.append(Row("serve", work, "requests/s", results, "an empty application"))
    for held in figures.real_time:
        result = Result("quantone serve", float(held.held), (float(held.held),))
        rows.append(Row("serve", f"{held.chunk_frames} frames a message", "listeners in real time", (result,)))
    for first in figures.first_packets:
        milliseconds = 1000 * first.p50_s
        work = f"first packet, {first.chunk_frames} frames a message, {first.streams} streams"
        rows.append(Row("serve", work, "ms", (Result("quantone serve", milliseconds, (milliseconds,)),)))
    return rows
