"""What tokenizing a corpus costs: from a measured rate and prices to machine-hours, storage and money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.corpus.job_settings import UNIT_SECONDS
from pipelines.corpus.job_summary import JobSummary
from tokenizer.spec import CodecSpec

FILES_PER_UNIT = 3.0  # a commit record, a part, and at times errors
_MORE_THAN_BITS = 10.18 / 10  # stored bits of a code of 10 bits, dictionaries included: docs/dataset.md
_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRates:
    """What a job on one machine (or GPU, or core: whatever has a price by the hour) was measured to do."""

    audio_per_second: float  # seconds of audio a second, start excluded
    stored_per_hour: float  # bytes for an hour of audio
    start_s: float = 0.0  # of a machine, until it works

    def __post_init__(self) -> None:
        if self.audio_per_second <= 0 or self.stored_per_hour < 0 or self.start_s < 0:
            raise ValueError("a rate must be positive, and neither storage nor a start can be negative")

    @classmethod
    def of_codec(
        cls, spec: CodecSpec, audio_per_second: float, num_codebooks: int, start_s: float = 0.0
    ) -> MeasuredRates:
        """With the storage that so many levels of a codec take."""
        bits = num_codebooks * float(spec.frame_rate) * spec.bits_per_code * _MORE_THAN_BITS
        return cls(audio_per_second=audio_per_second, stored_per_hour=3600 * bits / 8, start_s=start_s)

    @classmethod
    def of_run(cls, summary: JobSummary, num_machines: int = 1, start_s: float = 0.0) -> MeasuredRates:
        """What a run of the corpus job showed.

        Args:
            summary: of a run that did something.
            num_machines: that took part.
            start_s: seconds of its wall time that were the start.
        """
        if summary.audio_seconds <= 0 or summary.wall_seconds <= start_s:
            raise ValueError("a run that tokenized nothing, or only started, has no rate")
        return cls(
            audio_per_second=summary.audio_seconds / (summary.wall_seconds - start_s) / num_machines,
            stored_per_hour=3600 * summary.code_bytes / summary.audio_seconds,
            start_s=start_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """In one currency."""

    machine_hour: float
    storage_gb_month: float = 0.023
    months: float = 1.0  # that tokens are kept
    thousand_reads: float = 0.0004  # requests of an object store
    thousand_writes: float = 0.005

    def __post_init__(self) -> None:
        if min(self.machine_hour, self.storage_gb_month, self.months, self.thousand_reads, self.thousand_writes) < 0:
            raise ValueError("prices and months cannot be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What is tokenized, and on how many machines at once."""

    hours: float = 1000.0
    num_inputs: int = 0  # files or shards that are read, for the price of requests
    num_machines: int = 1
    unit_seconds: float = UNIT_SECONDS

    def __post_init__(self) -> None:
        if self.hours <= 0 or self.num_machines < 1 or self.num_inputs < 0 or self.unit_seconds <= 0:
            raise ValueError("a corpus has hours, at least one machine, and no negative number of inputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """What it will take and cost."""

    hours_per_machine_hour: float  # of audio, at work
    wall_hours: float
    machine_hours: float  # starts included
    stored_gb: float
    machines: float  # money, as the next two
    storage: float
    requests: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.machines + self.storage + self.requests

    def lines(self) -> Iterator[tuple[str, str]]:
        """Names and figures for people."""
        yield "hours of audio in a machine-hour", f"{self.hours_per_machine_hour:,.0f}"
        yield "machine-hours", f"{self.machine_hours:,.2f}"
        yield "hours until it is done", f"{self.wall_hours:,.2f}"
        yield "tokens at rest, GB", f"{self.stored_gb:,.2f}"
        yield "machines", f"{self.machines:,.2f}"
        yield "storage", f"{self.storage:,.2f}"
        yield "requests", f"{self.requests:,.2f}"
        yield "all", f"{self.total:,.2f}"


def estimate_cost(corpus: Corpus, rates: MeasuredRates, prices: Prices) -> CostEstimate:
    """Machines at work, and each one's start; storage for the months; a read for each input, some writes a unit.

    Machines are taken to share the work evenly, which a queue of units of an hour does for corpora of many more hours
    than machines.
    """
    wall_hours = corpus.hours / (rates.audio_per_second * corpus.num_machines) + rates.start_s / 3600
    machine_hours = wall_hours * corpus.num_machines
    stored_gb = corpus.hours * rates.stored_per_hour / _GB
    writes = FILES_PER_UNIT * corpus.hours * 3600 / corpus.unit_seconds
    requests = corpus.num_inputs * prices.thousand_reads + writes * prices.thousand_writes
    return CostEstimate(
        hours_per_machine_hour=rates.audio_per_second,
        wall_hours=wall_hours,
        machine_hours=machine_hours,
        stored_gb=stored_gb,
        machines=machine_hours * prices.machine_hour,
        storage=stored_gb * prices.storage_gb_month * prices.months,
        requests=requests / 1000,
    )
