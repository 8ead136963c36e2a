"""Shards: sequences gathered to a size, and written so that each file appears whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipelines import storage
from pipelines.exporting.export_records import ExportRecord
from tokenizer import DatasetError


@dataclass(frozen=True, slots=True)
class ExportedSequence:
    """What one row became."""

    number: int  # from 0 on, over the whole export
    id: str
    ids: npt.NDArray[np.uint16] | npt.NDArray[np.int32]  # [N] or [N, K]


class Target(Protocol):
    """Where sequences go."""

    def resume(self, record: ExportRecord | None) -> None:
        """Go on behind a record, or begin.

        Raises:
            DatasetError: what the record says is not there.
        """

    def add(self, sequence: ExportedSequence) -> None:
        """Take a sequence."""

    def commit(self, number: int) -> dict[str, dict[str, Any]]:
        """Write what has been added, to stay; what was written, by the names of files."""

    def finish(self) -> None:
        """Everything has been committed."""


class Shard(Protocol):
    """One file that grows in memory."""

    def add(self, sequence: ExportedSequence) -> None:
        """Take a sequence."""

    def content(self) -> bytes:
        """The bytes of the finished file."""


class ShardedFiles:
    """A target of files that each fit into memory: tokens-000000.parquet, tokens-000001.parquet ...

    Args:
        out: where to write.
        suffix: of the files.
        open_shard: begins one.
    """

    def __init__(self, out: str, suffix: str, open_shard: Callable[[], Shard]) -> None:
        self._out, self._suffix, self._open_shard = out, suffix, open_shard
        self._shard = open_shard()

    def resume(self, record: ExportRecord | None) -> None:
        """Check that all shards up to the record are there; what is behind it will be written again, the same."""
        present = set(storage.list_names(self._out))
        expected = [self._name(number) for number in range(0 if record is None else record.number + 1)]
        gone = [name for name in expected if name not in present]
        if gone:
            raise DatasetError(f"{self._out}: {gone[0]} is gone: export into another directory")

    def add(self, sequence: ExportedSequence) -> None:
        """Take a sequence."""
        self._shard.add(sequence)

    def commit(self, number: int) -> dict[str, dict[str, Any]]:
        """Write the shard in one atomic step, and begin another."""
        content, name = self._shard.content(), self._name(number)
        storage.commit(storage.join(self._out, name), content)
        self._shard = self._open_shard()
        return {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}

    def finish(self) -> None:
        """Nothing is left to do."""

    def _name(self, number: int) -> str:
        return f"tokens-{number:06d}{self._suffix}"
