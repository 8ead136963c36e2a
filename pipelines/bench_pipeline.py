"""Speed of the corpus job as a whole, beside the bare codec on the same cores, with the same batches."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.bare_encoders import BareBatch, BareEncoders
from pipelines.bench_turns import alternate
from pipelines.bundle_reader import ReadAudio, Work, read_bundle
from pipelines.corpus_job import CorpusJob, open_job
from pipelines.demo import DEMO_SPEECH
from pipelines.job_settings import JobSettings
from pipelines.plan import compose_batches, cut_bundles
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
from pipelines.stage_seconds import StageSeconds
from tokenizer import mix_channels, read_audio, resample, write_audio

SPEECH_RATE = 16000  # Hz, of what is made of the bundled speech: that of most speech corpora
_LOADING_S = 1.0  # a reader keeps its place for so long while it starts, so that another one starts beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One run of the job, on a Ray that runs already."""

    opening_s: float  # codec, listing and plan
    starting_s: float  # of encoders and readers
    running_s: float  # from then on, until all is committed
    audio_seconds: float
    padded_seconds: float
    num_encoders: int
    stages: StageSeconds  # of all workers
    encoder_idle_s: dict[str, float]  # of all encoders while it ran, by what they waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpeed:
    """What was measured; speeds are medians, in seconds of audio a second."""

    codec: str
    bandwidth_kbps: float
    num_inputs: int
    ray_s: float  # that Ray took to start
    job_speed: float  # without any start
    bare_speed: float
    ratio: float  # median of the rounds' ratios, each of two runs that followed one another
    runs: list[JobRun]

    def seconds(self) -> dict[str, float]:
        """Median seconds of a run's workers, by stage."""
        names = [item.name for item in dataclasses.fields(StageSeconds)]
        return {name: statistics.median(getattr(run.stages, name) for run in self.runs) for name in names}

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)


def bench_pipeline(
    source: str | None = None,
    *,
    codec: str = "speech_24khz",
    settings: JobSettings | None = None,
    minutes: float = 30.0,
    rounds: int = 3,
) -> PipelineSpeed:
    """Run the job and the bare codec in turns; each has all cores to itself.

    The bare codec is as many processes as the job has encoders, with one thread each and the very same batches, which
    lie in memory. The job's time begins when its workers have started, and ends when all parts are committed.

    Args:
        source: anything that can be tokenized; None for the bundled speech as FLAC at 16 kHz, again and again.
        codec: anything for `load_codec`.
        settings: of the job, on CPUs.
        minutes: of the bundled speech.
        rounds: medians are over so many.

    Raises:
        DatasetError, CheckpointError, QuantoneError: as `tokenize_corpus`.
        ValueError: likewise; and GPUs are asked for.
    """
    chosen = settings or JobSettings()
    if chosen.gpus_per_worker:
        raise ValueError("the bare codec is measured on CPUs: gpus_per_worker must be 0")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        speech = source or _write_speech(Path(folder, "speech"), 60 * minutes)
        first = open_job(speech, Path(folder, "first"), codec, chosen)
        begin = time.perf_counter()
        stack.enter_context(ray_session(address=chosen.address))
        ray_s = time.perf_counter() - begin
        waveforms = Path(folder, "waveforms")
        batches = _write_batches(first, waveforms)
        num_encoders = _num_encoders(chosen)
        audio_seconds = sum(sum(batch.lengths) for batch in batches) / first.codec.spec.sample_rate
        bare = stack.enter_context(
            BareEncoders(codec, first.info.bandwidth_kbps, waveforms, batches, count=num_encoders)
        )
        runs: list[JobRun] = []

        def run_job() -> float:
            runs.append(_run(speech, Path(folder, f"tokens-{len(runs)}"), codec, chosen))
            return runs[-1].audio_seconds / runs[-1].running_s

        (job_speed, bare_speed), ratio = alternate([run_job, lambda: audio_seconds / bare.run()], rounds)
    return PipelineSpeed(
        codec=first.codec.name,
        bandwidth_kbps=first.info.bandwidth_kbps,
        num_inputs=first.num_files,
        ray_s=ray_s,
        job_speed=job_speed,
        bare_speed=bare_speed,
        ratio=ratio or 0.0,
        runs=runs,
    )


def pipeline_tables(measured: PipelineSpeed) -> list[Table]:
    """Speeds, start and stages for a terminal."""
    return [_speed_table(measured), _stage_table(measured)]
