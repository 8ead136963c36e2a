"""Audio to train on: clips of known kinds and lengths, decoded once or read in place, whichever fits."""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.progress import Progress
from pipelines.training.clip_reader import ClipReader, probe_seconds
from pipelines.training.clip_store import ClipStore, listing_key, one_at_a_time, open_store
from pipelines.training.data_settings import DataSettings
from pipelines.training.training_clips import Clip, list_clips
from tokenizer import AudioError, CodecSpec, DatasetError

_PROBE_THREADS = 16  # waiting for disks, not computing


class CropReader(Protocol):
    """One way to read training audio."""

    def read(self, clip: int, start: int, num_samples: int) -> npt.NDArray[np.float32]:
        """Samples [C, num_samples] of a clip, by its number, from `start` on; silence after its end.

        Raises:
            AudioError: the clip cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class ClipsInPlace:
    """Crops read from the clips themselves: for corpora that are too large to store."""

    clips: tuple[Clip, ...]
    reader: ClipReader

    def read(self, clip: int, start: int, num_samples: int) -> npt.NDArray[np.float32]:
        """As in `CropReader`."""
        return self.reader.read(self.clips[clip], start, num_samples)


@dataclass(frozen=True, slots=True)
class TrainingAudio:
    """What there is to draw from."""

    crops: CropReader
    kinds: npt.NDArray[np.str_]  # of each clip
    lengths: npt.NDArray[np.int64]  # of each clip in samples; 0 where it cannot be read
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length of all clips together."""
        return float(self.lengths.sum()) / self.sample_rate

    @property
    def is_stored(self) -> bool:
        """Whether the clips were decoded once, instead of being read in place."""
        return isinstance(self.crops, ClipStore)

    @property
    def num_unreadable(self) -> int:
        """Clips that were listed, but cannot be read."""
        return int((self.lengths == 0).sum())

    @property
    def seconds_by_kind(self) -> dict[str, float]:
        """Length of the clips of each kind, the longest first."""
        totals = {
            str(kind): float(self.lengths[self.kinds == kind].sum()) / self.sample_rate
            for kind in np.unique(self.kinds)
        }
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def describe(self) -> str:
        """One line for people."""
        kinds = ", ".join(f"{kind} {seconds / 3600:.2f} h" for kind, seconds in self.seconds_by_kind.items())
        form = "decoded once" if self.is_stored else "read in place"
        unreadable = f"; {self.num_unreadable} clips cannot be read" if self.num_unreadable else ""
        return f"{len(self.lengths)} clips, {self.seconds / 3600:.2f} h ({kinds}), {form}{unreadable}"


def open_training_audio(
    data: list[Path],
    spec: CodecSpec,
    settings: DataSettings,
    *,
    cache_dir: Path,
    split: str = "train",
    num_workers: int = 0,
) -> TrainingAudio:
    """List the clips of the data, learn their lengths, and decode them once if they are not too many.

    Args:
        data: as in `list_clips`.
        spec: of the codec that will hear it.
        settings: `store_hours` decides between decoding once and reading in place.
        cache_dir: gets the decoded audio and the lengths of clips; later calls with the same clips reuse both.
        split: as in `list_clips`.
        num_workers: processes that decode; 0 decodes in this one.

    Raises:
        DatasetError: as in `list_clips`, or not one clip can be read.
    """
    clips = list_clips(data, split)
    reader = ClipReader(spec.sample_rate, spec.channels)
    seconds = _lengths(clips, cache_dir)
    if float(np.nansum(seconds)) <= settings.store_hours * 3600:
        store = open_store(clips, reader, cache_dir, num_workers)
        crops: CropReader = store
        lengths = store.lengths
    else:
        known = [replace(clip, duration_s=float(length)) for clip, length in zip(clips, seconds, strict=True)]
        crops = ClipsInPlace(tuple(known), reader)
        lengths = np.nan_to_num(np.round(seconds * spec.sample_rate)).astype(np.int64)
    kinds = np.array([clip.kind for clip in clips])
    return TrainingAudio(crops, kinds, lengths, spec.sample_rate, spec.channels)


def _lengths(clips: list[Clip], cache_dir: Path) -> npt.NDArray[np.float64]:
    """Seconds of each clip, NaN where it cannot be read; headers are read where the listing does not say."""
    seconds = np.array([np.nan if clip.duration_s is None else clip.duration_s for clip in clips])
    unknown = np.flatnonzero(np.isnan(seconds))
    if not len(unknown):
        return seconds
    path = cache_dir / f"lengths-{listing_key(clips)}.npy"
    with one_at_a_time(cache_dir):
        if path.exists():
            probed: npt.NDArray[np.float64] = np.load(path)
            return probed
        with (
            concurrent.futures.ThreadPoolExecutor(_PROBE_THREADS) as pool,
            Progress("listing", total_files=len(unknown)) as progress,
        ):
            for index, length in zip(unknown, pool.map(_probe, [clips[index] for index in unknown]), strict=True):
                seconds[index] = length
                progress.advance(files=1, seconds=float(np.nan_to_num(length)), errors=int(np.isnan(length)))
        if np.isnan(seconds).all():
            raise DatasetError(f"none of the {len(clips)} clips could be read")
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, seconds)
        temporary.replace(path)
    return seconds


def _probe(clip: Clip) -> float:
    try:
        return probe_seconds(clip)
    except AudioError:
        return float("nan")
