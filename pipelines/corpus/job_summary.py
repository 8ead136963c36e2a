"""What a corpus job did, counted unit by unit, and how much of it may fail."""

from __future__ import annotations

import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.corpus.stage_seconds import StageSeconds
from pipelines.corpus.unit_commit import UnitResult
from pipelines.datasets.dataset import list_parts
from tokenizer import DatasetError

_READERS = 16  # threads: in S3, each small file is a wait


@dataclass(slots=True)
class JobSummary:
    """What a call of `tokenize_corpus` did."""

    num_files: int  # inputs in the plan
    num_skipped: int = 0  # in units that were committed before
    num_ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # inputs that failed, by class
    num_rows: int = 0  # more than num_ok where inputs were cut into segments
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    num_codes: int = 0
    code_bytes: int = 0
    padded_seconds: float = 0.0
    stages: StageSeconds = field(default_factory=StageSeconds)  # of all workers, for the units that were committed

    @property
    def num_errors(self) -> int:
        """Inputs that failed."""
        return self.errors.total()

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

    def lines(self, dataset: str) -> list[str]:
        """What is said at the end, for people."""
        cut = f" in {self.num_rows} segments" if self.num_rows > self.num_ok else ""
        hours, rate = self.audio_seconds / 3600, f"{self.real_time_factor:.0f}x real time"
        did = f"{self.num_ok} inputs tokenized{cut}, {self.num_errors} errors, {self.num_skipped} done before"
        took = f"{hours:.2f} h of audio in {self.wall_seconds:.1f} s ({rate}), {self.padding_share:.1%} padding"
        lines = [f"{dataset}: {did}; {took}"]
        if self.num_codes:
            lines.append(f"{self.num_codes:,} codes at {self.bits_per_code:.2f} bits each on disk")
        if self.num_errors:
            classes = ", ".join(f"{count} {name}" for name, count in self.errors.most_common())
            query = "'SELECT id, message FROM errors'"
            lines.append(f"what failed: {classes}; quantone query {dataset} {query}")
        return lines

    def add(self, result: UnitResult) -> None:
        """Count a committed unit."""
        self.num_ok += result.num_ok
        self.errors += result.errors
        self.num_rows += result.num_rows
        self.audio_seconds += result.audio_seconds
        self.padded_seconds += result.padded_seconds
        self.num_codes += result.size.num_codes
        self.code_bytes += result.size.code_bytes
        self.stages += result.stages


class ErrorLimit:
    """Stops a job in which too much fails: a wrong mount or a wrong key, rather than bad files.

    Args:
        rate: share of the inputs that may fail; None: all may.
        num_files: inputs in the plan.
        dataset: whose errors count already; None where nothing has been done before.
    """

    def __init__(self, rate: float | None, num_files: int, dataset: str | None) -> None:
        self._rate, self._num_files, self._before = rate, num_files, 0
        if rate is not None and dataset is not None:
            self._before = _count_errors(dataset)
        self.check(0)

    def check(self, num_errors: int) -> None:
        """Raise DatasetError once more inputs have failed than may."""
        failed = self._before + num_errors
        if self._rate is not None and failed > self._rate * self._num_files:
            raise DatasetError(
                f"{failed} of {self._num_files} inputs failed, more than the share of {self._rate:g} that "
                "max_error_rate allows; what is done stays, and errors/ says why each failed"
            )


def _count_errors(dataset: str) -> int:
    """Inputs that failed in the units that are done, by the footers of their files: there may be 10,000 of them."""
    root = storage.absolute(dataset)
    done = set(list_parts(root))
    uris = [storage.join(root, "errors", name) for name in list_parts(root, "errors") if name in done]
    with ThreadPoolExecutor(_READERS) as pool:
        return sum(pool.map(_count_rows, uris))


def _count_rows(uri: str) -> int:
    try:
        return int(pq.read_metadata(io.BytesIO(storage.read_bytes(uri))).num_rows)
    except pa.ArrowException as error:
        raise DatasetError(f"{uri}: damaged: {error}; `quantone verify` says what to do") from error
