"""The codec and nothing else, to measure a corpus job against: as many processes, and batches that lie in memory."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from pipelines.corpus.kept_heap import keep_heap
from pipelines.reader_pool import reader_pool
from tokenizer import Codec, load_codec
from tokenizer.engine import Precision


@dataclass(frozen=True, slots=True)
class BareBatch:
    """Where the waveforms of one pass of the codec lie, one behind the other."""

    begin: int  # samples of one channel, from the beginning of the file
    lengths: Sequence[int]  # samples of one channel


class BareEncoders:
    """Processes with one thread each that encode the same batches again and again.

    Args:
        codec: name or directory for `load_codec`.
        bandwidth_kbps: as in `Codec.encode`.
        waveforms: a file of float32 samples, waveform by waveform [C, S]; it is mapped, and so read once.
        batches: all that lie in it.
        precision: as in `Codec.with_precision`.
        count: of processes.
    """

    def __init__(
        self,
        codec: str,
        bandwidth_kbps: float,
        waveforms: Path,
        batches: Sequence[BareBatch],
        *,
        precision: Precision,
        count: int,
    ) -> None:
        # The longest first, whoever is free takes the next: all end at about the same time.
        self._batches = sorted(batches, key=lambda batch: -len(batch.lengths) * max(batch.lengths))
        together = multiprocessing.get_context("spawn").Barrier(count)
        self._pool = reader_pool(count, _prepare, codec, precision, bandwidth_kbps, str(waveforms), together)
        for loaded in [self._pool.submit(_wait_for_all) for _ in range(count)]:
            loaded.result()

    def run(self) -> float:
        """Encode everything once; returns seconds."""
        begin = time.perf_counter()
        for _ in self._pool.map(_encode, self._batches):
            pass
        return time.perf_counter() - begin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


class _BareEncoder:
    def __init__(self, codec: Codec, bandwidth_kbps: float, waveforms: npt.NDArray[np.float32]) -> None:
        self._codec, self._bandwidth_kbps, self._waveforms = codec, bandwidth_kbps, waveforms

    def encode(self, batch: BareBatch) -> None:
        channels, at = self._codec.spec.channels, batch.begin * self._codec.spec.channels
        waveforms = []
        for length in batch.lengths:
            waveform = self._waveforms[at : at + channels * length].reshape(channels, length)
            waveforms.append(torch.from_numpy(waveform.copy()))
            at += channels * length
        self._codec.encode_batch(waveforms, bandwidth_kbps=self._bandwidth_kbps)


_own: list[_BareEncoder] = []  # of this process
_all: list[Barrier] = []


def _prepare(codec: str, precision: Precision, bandwidth_kbps: float, waveforms: str, together: Barrier) -> None:
    keep_heap()  # as the job's encoders
    _own.append(
        _BareEncoder(load_codec(codec).with_precision(precision), bandwidth_kbps, np.memmap(waveforms, np.float32, "r"))
    )
    _all.append(together)


def _wait_for_all() -> None:
    _all[0].wait()


def _encode(batch: BareBatch) -> None:
    _own[0].encode(batch)
