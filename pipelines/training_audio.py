"""Audio for training: clips decoded once to a flat file of 16-bit samples, and random crops from it.

Decoding and resampling cost more than a training step's share of time on a small machine, and a run sees every clip
many times; so they are done once, in worker processes, and each crop is a read from a memory-mapped file.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.progress import Progress
from tokenizer import AudioError, CodecSpec, DatasetError, mix_channels, read_audio, resample

EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".opus")


@dataclass(frozen=True, slots=True)
class ClipSource:
    """Where the bytes of one clip lie: a file, or a stretch of a tar shard read in place."""

    path: str
    offset: int
    size: int


def list_clips(data: list[Path], split: str = "train") -> list[ClipSource]:
    """Clips of folders (every audio file below) and of manifests (.jsonl with shard, offset, bytes and split).

    Raises:
        DatasetError: nothing to train on, or a manifest that cannot be read.
    """
    clips: list[ClipSource] = []
    for source in data:
        if source.is_dir():
            files = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS)
            clips += [ClipSource(str(path), 0, path.stat().st_size) for path in files]
        elif source.suffix == ".jsonl" and source.is_file():
            clips += _manifest_clips(source, split)
        else:
            raise DatasetError(f"{source}: neither a folder nor a .jsonl manifest")
    if not clips:
        raise DatasetError(f"no audio to train on in {', '.join(map(str, data))}")
    return clips


def _manifest_clips(manifest: Path, split: str) -> Iterator[ClipSource]:
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if row.get("split", split) == split:
                yield ClipSource(str(manifest.parent / row["shard"]), int(row["offset"]), int(row["bytes"]))
        except (ValueError, KeyError, AttributeError) as error:
            raise DatasetError(f"{manifest}, line {number}: {error!r}") from error


@dataclass(frozen=True, slots=True)
class TrainingAudio:
    """All clips end to end, [samples, C] int16, and where each one starts."""

    samples: npt.NDArray[np.int16]
    starts: npt.NDArray[np.int64]  # one more than clips: the last is the end
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Length of all clips together."""
        return float(self.starts[-1]) / self.sample_rate

    def batch(self, batch_size: int, num_samples: int, rng: np.random.Generator) -> Tensor:
        """Random crops at random levels.

        Every second of audio is as likely as any other; a crop that would run past its clip starts earlier, and a
        clip shorter than the crop is followed by silence. Gain -10 to +6 dB, less where it would clip. Source:
        EnCodec, arXiv:2210.13438, 4.

        Returns:
            [B, C, num_samples] float32.
        """
        crops = np.zeros((batch_size, self.samples.shape[1], num_samples), np.float32)
        positions = rng.integers(0, self.starts[-1], batch_size)
        gains = 10.0 ** (rng.uniform(-10.0, 6.0, batch_size) / 20.0)
        for row, position in enumerate(positions):
            clip = int(np.searchsorted(self.starts, position, side="right")) - 1
            start = max(int(self.starts[clip]), min(int(position), int(self.starts[clip + 1]) - num_samples))
            stop = min(start + num_samples, int(self.starts[clip + 1]))
            crop = self.samples[start:stop].T.astype(np.float32) / 32768.0
            loudest = float(np.abs(crop).max(initial=0.0))
            crops[row, :, : crop.shape[1]] = crop * min(gains[row], 0.99 / max(loudest, 1e-3))
        return torch.from_numpy(crops)


def prepare_audio(clips: list[ClipSource], spec: CodecSpec, folder: Path, num_workers: int = 2) -> TrainingAudio:
    """Decode the clips into `folder`, or reuse what an earlier call with the same clips left there.

    Clips that cannot be read are left out and counted in the message; training on the rest goes on.

    Raises:
        DatasetError: not one clip could be read.
    """
    listing = json.dumps([spec.sample_rate, spec.channels, [[c.path, c.offset, c.size] for c in clips]])
    key = hashlib.sha256(listing.encode()).hexdigest()[:16]
    samples_path, starts_path = folder / f"audio-{key}.i16", folder / f"audio-{key}.npy"
    if not starts_path.exists():  # written last: it stands for a complete file of samples
        _decode_all(clips, spec, samples_path, starts_path, num_workers)
    starts = np.load(starts_path)
    samples = np.memmap(samples_path, np.int16, "r").reshape(-1, spec.channels)
    return TrainingAudio(samples, starts, spec.sample_rate)


def _decode_all(clips: list[ClipSource], spec: CodecSpec, samples_path: Path, starts_path: Path, workers: int) -> None:
    samples_path.parent.mkdir(parents=True, exist_ok=True)
    starts = [0]
    context = multiprocessing.get_context("spawn")  # a fork would carry the threads of torch along
    jobs = [(clip, spec.sample_rate, spec.channels) for clip in clips]
    with (
        samples_path.open("wb") as sink,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress("decoding", total_files=len(clips), total_seconds=None) as progress,
    ):
        for pcm in pool.map(_decode_clip, jobs, chunksize=16):
            if pcm is not None:
                sink.write(pcm.tobytes())
                starts.append(starts[-1] + pcm.shape[0])
            seconds = 0.0 if pcm is None else pcm.shape[0] / spec.sample_rate
            progress.advance(files=1, seconds=seconds, errors=int(pcm is None))
    if len(starts) == 1:
        raise DatasetError(f"none of the {len(clips)} clips could be read")
    np.save(starts_path, np.asarray(starts, np.int64))


def _decode_clip(job: tuple[ClipSource, int, int]) -> npt.NDArray[np.int16] | None:
    """One clip as [samples, C] int16 at the codec's rate, or None if it cannot be read."""
    clip, sample_rate, channels = job
    torch.set_num_threads(1)
    try:
        with Path(clip.path).open("rb") as source:
            source.seek(clip.offset)
            waveform, source_rate = read_audio(io.BytesIO(source.read(clip.size)))
    except (AudioError, OSError):
        return None
    waveform = resample(mix_channels(waveform, channels), source_rate, sample_rate)
    pcm: npt.NDArray[np.int16] = (waveform.clamp(-1, 1) * 32767).round().to(torch.int16).T.contiguous().numpy()
    return pcm
