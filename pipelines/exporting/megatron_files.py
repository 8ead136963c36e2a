"""Megatron's indexed dataset: ids end to end in tokens.bin, and in tokens.idx where each sequence begins.

Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py. All integers are little-endian:

    9 bytes   b"MMIDIDX" and two zero bytes
    uint64    version, 1
    uint8     type of the ids: 8 is uint16, 4 is int32
    uint64    N, number of sequences
    uint64    D + 1, for D documents; here every sequence is one, D = N
    int32[N]  length of each sequence
    int64[N]  byte of tokens.bin at which each begins
    int64[D + 1]  the sequence that each document begins with, and N
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipelines.exporting.export_records import ExportRecord
from pipelines.exporting.export_shards import ExportedSequence
from tokenizer import DatasetError

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
TYPE_CODES = {"<u2": 8, "<i4": 4}
BIN, IDX = "tokens.bin", "tokens.idx"
_UNFINISHED_BIN, _UNFINISHED_LENGTHS = "tokens.bin.unfinished", "tokens.lengths.unfinished"
_LENGTHS_AT_A_TIME = 2**20


class MegatronFiles:
    """A target of one pair of files, however large: ids and lengths are appended on disk, and indexed at the end.

    Args:
        out: a local directory.
        dtype: of the ids.

    Raises:
        DatasetError: another process is writing there.
    """

    def __init__(self, out: str, dtype: np.dtype[Any]) -> None:
        self._folder, self._dtype = Path(out), dtype
        self._ids: BinaryIO | None = None
        self._lengths: BinaryIO | None = None

    def resume(self, record: ExportRecord | None) -> None:
        """Open both files and cut off what is behind the record."""
        if (self._folder / BIN).exists():  # only `finish` was interrupted, or what follows it
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        committed = {} if record is None else record.files
        self._ids = self._reopen(_UNFINISHED_BIN, committed)
        self._lengths = self._reopen(_UNFINISHED_LENGTHS, committed)

    def add(self, sequence: ExportedSequence) -> None:
        """Take a sequence."""
        ids, lengths = self._open_files()
        ids.write(sequence.ids.tobytes())
        lengths.write(struct.pack("<i", sequence.ids.size))

    def commit(self, number: int) -> dict[str, dict[str, Any]]:  # noqa: ARG002 - there is one pair only
        """Bring what has been added to the disk."""
        for file in self._open_files():
            file.flush()
            os.fsync(file.fileno())
        return {Path(file.name).name: {"bytes": file.tell()} for file in self._open_files()}

    def finish(self) -> None:
        """Write the index, and give the ids their name."""
        lengths = self._folder / _UNFINISHED_LENGTHS
        if self._ids is not None and self._lengths is not None:
            self._write_index(lengths)
            Path(self._ids.name).replace(self._folder / BIN)
            self._ids.close()
            self._lengths.close()
        lengths.unlink(missing_ok=True)

    def _reopen(self, name: str, committed: dict[str, dict[str, Any]]) -> BinaryIO:
        path, size = self._folder / name, int(committed.get(name, {}).get("bytes", 0))
        path.touch()
        file = path.open("r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatasetError(f"{self._folder}: another export is writing there") from error
        if file.seek(0, os.SEEK_END) < size:
            raise DatasetError(f"{path} is shorter than {size} bytes: export into another directory")
        file.truncate(size)
        file.seek(size)
        return file

    def _open_files(self) -> tuple[BinaryIO, BinaryIO]:
        if self._ids is None or self._lengths is None:
            raise DatasetError(f"{self._folder}: {BIN} is there already: export into another directory")
        return self._ids, self._lengths

    def _write_index(self, lengths: Path) -> None:
        num_sequences = lengths.stat().st_size // 4
        unfinished = self._folder / f"{IDX}.unfinished"
        with unfinished.open("wb") as index:
            index.write(MAGIC + struct.pack("<QB", VERSION, TYPE_CODES[self._dtype.str]))
            index.write(struct.pack("<QQ", num_sequences, num_sequences + 1))
            for some in _blocks(lengths):
                index.write(some.tobytes())
            start = 0
            for some in _blocks(lengths):
                ends = start + np.cumsum(some, dtype="<i8") * self._dtype.itemsize
                index.write(np.concatenate([[start], ends[:-1]]).astype("<i8").tobytes())
                start = int(ends[-1])
            for first in range(0, num_sequences + 1, _LENGTHS_AT_A_TIME):
                last = min(first + _LENGTHS_AT_A_TIME, num_sequences + 1)
                index.write(np.arange(first, last, dtype="<i8").tobytes())
            index.flush()
            os.fsync(index.fileno())
        unfinished.replace(self._folder / IDX)


def _blocks(lengths: Path) -> Iterator[npt.NDArray[np.int32]]:
    """The lengths of all sequences, some at a time."""
    with lengths.open("rb") as file:
        while content := file.read(4 * _LENGTHS_AT_A_TIME):
            yield np.frombuffer(content, "<i4")
