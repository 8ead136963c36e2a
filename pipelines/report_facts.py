"""What a report states: plain facts about a dataset, gathered by report.py and drawn by report_page.py."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from pipelines.dataset_info import DatasetInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sizes of the whole dataset."""

    num_files: int
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
    """How one codebook is used over the whole dataset."""

    entries_used: int
    perplexity: float
    entropy_bits: float
    bits_at_rest: float  # per code


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
    duration_s: float
    shown_s: float
    source_sample_rate: int
    source_channels: int
    codes_picture: bytes  # PNG, one cell a code
    num_frames_shown: int
    renditions: tuple[Rendition, ...]  # the original first, where it could be read
    original_problem: str | None  # why it could not


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page shows."""

    title: str
    info: DatasetInfo
    frame_rate: Fraction
    totals: Totals
    levels: tuple[Level, ...]
    bandwidths_kbps: tuple[float, ...]  # rendered, ascending
    examples: tuple[Example, ...]
    errors: tuple[dict[str, str], ...]
