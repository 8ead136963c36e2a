"""Clips decoded once into one flat file of 16-bit samples, from which crops are read through a memory map.

Decoding and resampling cost more than a training step's share of time on a small machine, and a run sees every clip
many times.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.progress import Progress
from pipelines.reader_pool import reader_pool
from pipelines.training.clip_reader import ClipReader
from pipelines.training.training_clips import Clip
from tokenizer import AudioError, DatasetError

_FULL_SCALE = 32767.0


@dataclass(frozen=True)
class ClipStore:
    """All clips end to end; pickled by the name of the file, not by its samples."""

    path: Path
    channels: int
    starts: npt.NDArray[np.int64]  # one more than clips: the last is the end. An unreadable clip has no samples

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Samples of each clip."""
        return np.diff(self.starts)

    def read(self, clip: int, start: int, num_samples: int) -> npt.NDArray[np.float32]:
        """Samples [C, num_samples] in [-1, 1] of a clip, by its number, from `start` on; silence after its end."""
        first = int(self.starts[clip]) + start
        stop = min(first + num_samples, int(self.starts[clip + 1]))
        crop = np.zeros((self.channels, num_samples), np.float32)
        crop[:, : max(0, stop - first)] = self._samples[first:stop].T / np.float32(_FULL_SCALE)
        return crop

    def __reduce__(self) -> tuple[type[ClipStore], tuple[Path, int, npt.NDArray[np.int64]]]:
        return ClipStore, (self.path, self.channels, self.starts)

    @functools.cached_property
    def _samples(self) -> npt.NDArray[np.int16]:
        return np.memmap(self.path, np.int16, "r").reshape(-1, self.channels)


def open_store(clips: list[Clip], reader: ClipReader, folder: Path, num_workers: int) -> ClipStore:
    """Decode the clips into `folder`, or reuse what an earlier call with the same clips left there.

    Clips that cannot be read are counted in the progress line and have no samples in the store. Processes that open
    the same store at the same time decode it once.

    Args:
        clips: what to decode.
        reader: at the codec's rate and channel count.
        folder: on a disk that holds two bytes per sample.
        num_workers: processes that decode; 0 decodes in this one.

    Raises:
        DatasetError: not one clip could be read.
    """
    key = listing_key(clips, reader.sample_rate, reader.channels)
    samples, starts = folder / f"audio-{key}.i16", folder / f"audio-{key}.npy"
    with one_at_a_time(folder):
        if not starts.exists():  # written last: it stands for a complete file of samples
            _decode_all(clips, reader, samples, starts, num_workers)
    return ClipStore(samples, reader.channels, np.load(starts))


def listing_key(clips: list[Clip], *settings: int) -> str:
    """A name for what was made of these clips."""
    listing = json.dumps([settings, [astuple(clip) for clip in clips]])
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, until this one is done or dead."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _decode_all(clips: list[Clip], reader: ClipReader, samples: Path, starts: Path, num_workers: int) -> None:
    ends = [0]
    with samples.open("wb") as sink, Progress("decoding", total_files=len(clips)) as progress:
        for pcm in _each(functools.partial(_decode_clip, reader), clips, num_workers):
            num_samples = 0 if pcm is None else len(pcm)
            if pcm is not None:
                sink.write(pcm.tobytes())
            ends.append(ends[-1] + num_samples)
            progress.advance(files=1, seconds=num_samples / reader.sample_rate, errors=int(pcm is None))
    if ends[-1] == 0:
        raise DatasetError(f"none of the {len(clips)} clips could be read")
    temporary = starts.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, np.asarray(ends, np.int64))
    temporary.replace(starts)


def _each(
    decode: Callable[[Clip], npt.NDArray[np.int16] | None], clips: Iterable[Clip], num_workers: int
) -> Iterator[npt.NDArray[np.int16] | None]:
    if num_workers == 0:
        yield from map(decode, clips)
        return
    with reader_pool(num_workers) as pool:
        yield from pool.map(decode, clips, chunksize=16)


def _decode_clip(reader: ClipReader, clip: Clip) -> npt.NDArray[np.int16] | None:
    """One clip as [samples, C], or None if it cannot be read."""
    try:
        blocks = [(block * _FULL_SCALE).round().to(torch.int16).T.contiguous() for block in reader.blocks(clip)]
    except AudioError:
        return None
    pcm: npt.NDArray[np.int16] = torch.cat(blocks).numpy()
    return pcm
