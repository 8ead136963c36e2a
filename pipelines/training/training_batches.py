"""Batches to train on: deterministic, resumable at any step, and read ahead of time by worker processes."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Generator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.reader_pool import reader_pool
from pipelines.training.augment import draw_gain, guard_peak, reverberate
from pipelines.training.data_settings import DataSettings
from pipelines.training.sampling import MUSIC, Group, Sampler
from pipelines.training.training_audio import TrainingAudio
from tokenizer import AudioError, DatasetError

_MAX_REDRAWS = 100


@dataclass(frozen=True, slots=True)
class Batch:
    """What a worker hands over: rows, and the numbers of clips that it could not read and drew others for."""

    waveform: npt.NDArray[np.float32]  # [B, C, S]
    unreadable: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Some rows of every step's batch: row i of step s follows from (seed, s, i) and the audio alone."""

    audio: TrainingAudio
    settings: DataSettings
    sampler: Sampler
    rows: range
    num_samples: int
    seed: int

    def read(self, step: int) -> Batch:
        """The rows of a step.

        Raises:
            DatasetError: a hundred clips in a row could not be read.
        """
        waveform = np.empty((len(self.rows), self.audio.channels, self.num_samples), np.float32)
        unreadable: list[int] = []
        for index, row in enumerate(self.rows):
            waveform[index] = self._draw(np.random.default_rng([self.seed, step, row]), unreadable)
        return Batch(waveform, tuple(unreadable))

    def _draw(self, rng: np.random.Generator, unreadable: list[int]) -> npt.NDArray[np.float32]:
        """One example [C, S]: sources, each with its gain, added up, perhaps in a room, and never clipped."""
        strategy = self.sampler.draw_strategy(rng)
        mixed = np.zeros((self.audio.channels, self.num_samples), np.float32)
        for _ in range(strategy.num_sources):
            clip, source = self._read(rng, strategy.group, unreadable)
            mixed += source * np.float32(draw_gain(rng, self.settings.gain_db))
        is_music = strategy.num_sources == 1 and self.audio.kinds[clip] == MUSIC  # has its own room, says the paper
        if rng.random() < self.settings.reverb_probability and not is_music:
            mixed = reverberate(rng, mixed, self.audio.sample_rate)
        return guard_peak(mixed)

    def _read(
        self, rng: np.random.Generator, group: Group, unreadable: list[int]
    ) -> tuple[int, npt.NDArray[np.float32]]:
        for _ in range(_MAX_REDRAWS):
            clip, start = self.sampler.draw_crop(rng, group, self.num_samples)
            try:
                return clip, self.audio.crops.read(clip, start, self.num_samples)
            except AudioError as error:
                unreadable.append(clip)
                last = error
        raise DatasetError(f"{_MAX_REDRAWS} clips in a row could not be read; the last: {last}")


class TrainingBatches:
    """An endless sequence of batches, of which this process sees its part.

    Row i of step s of the whole batch follows from (seed, s, i) and the audio alone. So a resumed run sees what an
    undisturbed one would, whatever the number of workers; and rank r of w sees rows r * B/w up to (r + 1) * B/w of
    what one process would.

    Args:
        audio: from `open_training_audio`.
        settings: of the recipe.
        batch_size: B, rows of all ranks together.
        num_samples: S, of one row.
        seed: not negative.
        rank: number of this process among those that train together.
        world_size: w, how many they are.
        num_workers: processes that read ahead, two batches each; 0 reads when asked, in this process.

    Attributes:
        wait_seconds: how long the consumer has waited for batches so far.
        unreadable: numbers of clips that could not be read where they lie; others were drawn instead.
        probabilities: of the sampling strategies in use, by name.
        left_out: strategies that need a kind of clips that the data lacks.

    Raises:
        ValueError: a number is out of range, or batch_size is not a multiple of world_size.
        DatasetError: the data lacks the kinds of clips of all strategies.
    """

    def __init__(
        self,
        audio: TrainingAudio,
        settings: DataSettings,
        *,
        batch_size: int,
        num_samples: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        if min(batch_size, num_samples, world_size) < 1 or min(seed, num_workers) < 0:
            raise ValueError("batch_size, num_samples and world_size are positive, seed and num_workers not negative")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} gets no equal part of a batch of {batch_size} rows")
        sampler = Sampler(audio.kinds, audio.lengths, settings.sampling)
        self.probabilities, self.left_out = sampler.probabilities, sampler.left_out
        part = batch_size // world_size
        rows = range(rank * part, (rank + 1) * part)
        self._rows = TrainingRows(audio, settings, sampler, rows, num_samples, seed)
        self._num_workers = num_workers
        self._running: weakref.WeakSet[Generator[Tensor]] = weakref.WeakSet()
        self.wait_seconds = 0.0
        self.unreadable: set[int] = set()

    def from_step(self, step: int) -> Generator[Tensor]:
        """Batches [B/w, C, S] float32 of this and all later steps, without end; pinned where there is a GPU.

        Workers start with the first batch. They end when the generator or this object is closed.

        Raises:
            DatasetError: a hundred clips in a row could not be read.
            RuntimeError: a worker died.
        """
        sequence = self._sequence(step)
        self._running.add(sequence)
        return sequence

    def close(self) -> None:
        """End all workers."""
        for sequence in list(self._running):
            sequence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _sequence(self, step: int) -> Generator[Tensor]:
        read = _in_this_process(self._rows, step) if self._num_workers == 0 else self._read_ahead(step)
        is_pinned = torch.cuda.is_available()
        with contextlib.closing(read):
            while True:
                asked = time.perf_counter()
                batch = next(read)
                waveform = torch.from_numpy(batch.waveform)
                if is_pinned:
                    waveform = waveform.pin_memory()
                self.wait_seconds += time.perf_counter() - asked
                self.unreadable.update(batch.unreadable)
                yield waveform

    def _read_ahead(self, step: int) -> Generator[Batch]:
        pool = reader_pool(self._num_workers, _prepare, self._rows)
        try:
            waiting = deque(pool.submit(_read, step + ahead) for ahead in range(2 * self._num_workers))
            for following in itertools.count(step + len(waiting)):
                batch = waiting.popleft().result()
                waiting.append(pool.submit(_read, following))
                yield batch
        except BrokenProcessPool as error:
            raise RuntimeError("a process that reads training audio died, perhaps for want of memory") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _in_this_process(rows: TrainingRows, step: int) -> Generator[Batch]:
    for following in itertools.count(step):
        yield rows.read(following)


_rows: TrainingRows  # in a worker, what it reads


def _prepare(rows: TrainingRows) -> None:
    global _rows  # noqa: PLW0603 - a pool's workers have no other place to keep what they were started with
    _rows = rows


def _read(step: int) -> Batch:
    return _rows.read(step)
