"""What a report states: plain facts about a dataset, gathered by report_*.py and drawn by the report's page."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pipelines.datasets.dataset_info import DatasetInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sizes of the whole dataset."""

    num_rows: int  # utterances: inputs, or segments of longer ones
    num_inputs: int
    num_errors: int
    audio_seconds: float
    num_frames: int
    num_codes: int
    parts_bytes: int  # everything, with ids and other columns
    codes_bytes: int
    pcm_bytes: int  # the same audio as 16-bit PCM, at the codec's rate and channels

    @property
    def frames_per_second(self) -> float:
        """Measured: last frames that are not full, and segments that overlap, put it above the codec's frame rate."""
        return self.num_frames / self.audio_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How one codebook is used."""

    entries_used: int
    perplexity: float
    entropy_bits: float
    bits_at_rest: float  # per code


@dataclass(frozen=True, slots=True, kw_only=True)
class PartUse:
    """How one part uses the coarsest codebook."""

    name: str
    perplexity: float
    divergence_bits: float  # from all parts that were looked at
    chance_bits: float  # that so few codes would give by chance alone, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookFacts:
    """How codebooks are used, in the parts that were looked at."""

    levels: tuple[Level, ...]
    parts: tuple[PartUse, ...]  # all, or some dozens at equal distances
    num_parts: int  # of the dataset


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How a number is spread over the rows of a dataset."""

    edges: npt.NDArray[np.float64]  # [N + 1]; the outer bins hold what lies beyond them, too
    counts: npt.NDArray[np.int64]  # [N]

    @property
    def total(self) -> int:
        """Rows in it."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The middle of the bin that the given share of the rows is reached in."""
        index = int(np.searchsorted(np.cumsum(self.counts), share * self.total, side="left"))
        return float((self.edges[index] + self.edges[index + 1]) / 2)


@dataclass(frozen=True, slots=True)
class Group:
    """All rows that share a value."""

    value: str
    num_rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Grouping:
    """Hours by the values of a column."""

    column: str
    groups: tuple[Group, ...]  # the largest ones
    rest: Group | None  # all others together; the value says how many they are


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows whose sound is that of another row."""

    num_groups: int  # of equal rows
    num_surplus: int  # rows beyond the first of each group
    surplus_seconds: float
    examples: tuple[tuple[float, int, tuple[str, ...]], ...]  # seconds of a row, rows, some ids; the costliest groups
    looked_at: float = 1.0  # share of all hashes; where it is below 1, the numbers above are estimates


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What the rows say, beside their codes. Of datasets without a column, its facts are not there."""

    histograms: dict[str, Histogram]  # by column
    worst: dict[str, tuple[tuple[str, float], ...]]  # by column: ids and values, the worst first
    num_silent: int  # rows of digital silence
    num_clipped: int | None
    num_without_speech: int | None
    num_unmeasured: int | None  # rows without an SI-SNR, where others have one
    groupings: tuple[Grouping, ...]
    duplicates: Duplicates | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendition:
    """One way an example sounds: the original, or decoded at a bandwidth."""

    bandwidth_kbps: float | None  # None: the original
    flac: bytes
    spectrogram: bytes  # PNG
    si_snr_db: float | None = None  # against the original
    mel_distance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One utterance to listen to."""

    id: str
    remark: str | None  # why it was chosen, where not for variety
    duration_s: float
    shown_s: float
    source_sample_rate: int
    source_channels: int
    codes_picture: bytes  # PNG, one cell a code
    num_frames_shown: int
    renditions: tuple[Rendition, ...]  # the original first, where it could be read
    original_problem: str | None  # why it could not


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """Inputs that failed in one way."""

    error: str
    num_inputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page shows."""

    title: str
    info: DatasetInfo
    frame_rate: Fraction
    totals: Totals
    codebooks: CodebookFacts
    corpus: Corpus
    bandwidths_kbps: tuple[float, ...]  # rendered, ascending
    examples: tuple[Example, ...]
    error_classes: tuple[ErrorClass, ...]
    errors: tuple[dict[str, str], ...]  # the first ones
