"""Speed of the corpus job as a whole, beside the bare codec on the same cores, with the same batches."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.benchmarking.bare_encoders import BareBatch, BareEncoders
from pipelines.benchmarking.bench_turns import alternate
from pipelines.bundled_speech import DEMO_SPEECH
from pipelines.corpus.bundle_reader import ReadAudio, Work, read_bundle
from pipelines.corpus.corpus_job import CorpusJob, open_job
from pipelines.corpus.encoder import batches_of
from pipelines.corpus.job_settings import JobSettings
from pipelines.corpus.job_summary import JobSummary
from pipelines.corpus.stage_seconds import StageSeconds
from pipelines.datasets.parts import ErrorRow
from pipelines.datasets.plan import cut_bundles
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
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
    num_errors: int  # inputs that neither of the two could encode
    stages: StageSeconds  # of all workers
    encoders: dict[str, float]  # shares of their time while it ran


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpeed:
    """What was measured; speeds are medians, in seconds of audio a second."""

    codec: str
    bandwidth_kbps: float
    num_encoders: int
    num_inputs: int
    audio_seconds: float
    ray_s: float  # that Ray took to start
    job_speed: float  # without any start
    bare_speed: float
    ratio: float  # median of the rounds' ratios, each of two runs that followed one another
    runs: list[JobRun]

    @property
    def stages(self) -> dict[str, float]:
        """Median seconds of a run's workers, by stage."""
        every = [dataclasses.asdict(run.stages) for run in self.runs]
        return {name: statistics.median(stages[name] for stages in every) for name in every[0]}

    @property
    def encoders(self) -> dict[str, float]:
        """Median shares of the encoders' time."""
        return {name: statistics.median(run.encoders[name] for run in self.runs) for name in self.runs[0].encoders}


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
        num_encoders = _count_encoders(chosen)
        audio_seconds = sum(sum(batch.lengths) for batch in batches) / first.codec.spec.sample_rate
        bare = stack.enter_context(
            BareEncoders(
                codec,
                first.info.bandwidth_kbps,
                waveforms,
                batches,
                precision=chosen.precision,
                count=num_encoders,
            )
        )
        runs: list[JobRun] = []

        def run_job() -> float:
            runs.append(_run(speech, Path(folder, f"tokens-{len(runs)}"), codec, chosen, num_encoders))
            return runs[-1].audio_seconds / runs[-1].running_s

        (job_speed, bare_speed), ratio = alternate([run_job, lambda: audio_seconds / bare.run()], rounds)
    return PipelineSpeed(
        codec=first.codec.name,
        bandwidth_kbps=first.info.bandwidth_kbps,
        num_encoders=num_encoders,
        num_inputs=first.num_files,
        audio_seconds=audio_seconds,
        ray_s=ray_s,
        job_speed=job_speed,
        bare_speed=bare_speed,
        ratio=ratio or 0.0,
        runs=runs,
    )


def pipeline_tables(measured: PipelineSpeed) -> list[Table]:
    """Speeds, start, stages and encoders for a terminal."""
    speeds = _table("", "x real time")
    speeds.add_row("the job", f"{measured.job_speed:.1f}")
    speeds.add_row("the bare codec", f"{measured.bare_speed:.1f}")
    speeds.add_row("ratio", f"{measured.ratio:.3f}")
    start = _table("start", "seconds")
    start.add_row("Ray", f"{measured.ray_s:.1f}")
    start.add_row("codec, listing, plan", f"{statistics.median(run.opening_s for run in measured.runs):.1f}")
    start.add_row("encoders, readers", f"{statistics.median(run.starting_s for run in measured.runs):.1f}")
    stages = _table("workers", "seconds", "share", "ms a second of audio")
    total = sum(measured.stages.values())
    for name, seconds in measured.stages.items():
        milliseconds = 1000 * seconds / measured.audio_seconds
        stages.add_row(name, f"{seconds:.2f}", f"{seconds / total:.1%}", f"{milliseconds:.2f}")
    encoders = _table("encoders", "share of time")
    for name, share in measured.encoders.items():
        encoders.add_row(name, f"{share:.1%}")
    return [speeds, start, stages, encoders]


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _run(source: str, dataset: Path, codec: str, settings: JobSettings, num_encoders: int) -> JobRun:
    from pipelines.corpus.job_metrics import JobMetrics  # imports Ray, which reads its settings then

    begin = time.perf_counter()
    job = open_job(source, dataset, codec, settings)
    opened = time.perf_counter()
    conductor = job.conductor(Progress("measuring", shown=False), JobMetrics(job.root, job.codec.name))
    conductor.start_encoders()
    _start_readers(num_encoders)
    before = conductor.encoder_seconds()
    started = time.perf_counter()
    summary = JobSummary(num_files=job.num_files)
    for result in conductor.run(job.plan, job.pending):
        summary.add(result)
    running_s = time.perf_counter() - started
    at_work = sum(getattr(summary.stages, name) for name in ("encoding", "measuring", "compressing", "other"))
    after = conductor.encoder_seconds()
    waiting, called = after.waiting - before.waiting, after.busy - before.busy
    everything = num_encoders * running_s
    return JobRun(
        opening_s=opened - begin,
        starting_s=started - opened,
        running_s=running_s,
        audio_seconds=summary.audio_seconds,
        padded_seconds=summary.padded_seconds,
        num_errors=summary.num_errors,
        stages=summary.stages,
        encoders={
            "at work": at_work / everything,
            "between two calls": (called - at_work) / everything,
            "waiting for readers": waiting / everything,
            "nothing left to do": (everything - called - waiting) / everything,
        },
    )


def _count_encoders(settings: JobSettings) -> int:
    from pipelines.corpus.encoder_pool import count_encoders

    return count_encoders(settings.num_workers, settings.gpus_per_worker)


def _start_readers(num_encoders: int) -> None:
    """Start as many as there is room for beside the encoders, as the job would."""
    import ray

    from pipelines.corpus.encoder_pool import ENCODER_CPUS, READER_CPUS

    room = ray.cluster_resources().get("CPU", 1.0) - num_encoders * ENCODER_CPUS  # type: ignore[no-untyped-call]
    load: Any = ray.remote(num_cpus=READER_CPUS)(_load)
    ray.get([load.remote() for _ in range(max(1, int(room / READER_CPUS)))])


def _load() -> None:
    """To find this function, a worker has loaded what readers need."""
    time.sleep(_LOADING_S)


def _write_batches(job: CorpusJob, path: Path) -> list[BareBatch]:
    """Lay down all that the job is going to encode, as its encoders will put it together."""
    batches: list[BareBatch] = []
    begin = 0
    with path.open("wb") as file:
        for items in _read_all(job):
            for batch in batches_of(items, job.codec.spec, job.settings.batch_seconds):
                for item in batch:
                    file.write(item.waveform.tobytes())
                batches.append(BareBatch(begin, [item.waveform.shape[-1] for item in batch]))
                begin += sum(batches[-1].lengths)
    return batches


def _read_all(job: CorpusJob) -> Iterator[Sequence[ReadAudio | ErrorRow]]:
    """What each call of an encoder will get."""
    settings = job.read_settings
    for unit in job.pending:
        for bundle in cut_bundles(job.plan.unit(unit), settings.bundle_seconds):
            work: Sequence[Work] = bundle
            while work:
                count, items = read_bundle(work, settings)
                yield items
                work = count.unfinished


def _write_speech(folder: Path, seconds: float) -> str:
    """The bundled clips as FLAC, one after another and again, until there is so much of them."""
    folder.mkdir()
    paths = [path for path in sorted(DEMO_SPEECH.rglob("*")) if path.suffix in (".flac", ".opus")]
    clips = [resample(mix_channels(waveform, 1), rate, SPEECH_RATE) for waveform, rate in map(read_audio, paths)]
    spoken = 0.0
    for number, clip in enumerate(itertools.cycle(clips)):
        if spoken >= seconds:
            break
        write_audio(folder / f"{number:06d}.flac", clip, SPEECH_RATE)
        spoken += clip.shape[-1] / SPEECH_RATE
    return str(folder)
