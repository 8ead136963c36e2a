"""Rows of a token dataset for language models: codes and text, part by part from any row on, or in any order."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lm_head.block_coder import BlockCoder
from lm_head.compression import CodecIdentity
from lm_head.decompression import decompress_many
from pipelines.datasets.dataset_info import DatasetInfo, read_dataset_info
from pipelines.datasets.part_file import CheckedPart, PartFile, part_files
from pipelines.datasets.parts import QTN_COLUMN, level_column
from pipelines.datasets.stored_codes import list_items, load_dataset_coder
from tokenizer import BitstreamError, DatasetError

Codes = npt.NDArray[np.uint16]  # [K, T]
ROWS_AT_A_TIME = 64
_FOOTERS_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance."""

    id: str
    codes: Codes
    text: str | None


class RowReader:
    """Reads the rows of one dataset, only the columns that are needed, and every byte of them checked.

    Args:
        dataset: a local directory or s3://.
        num_codebooks: K, at most what is stored.
        text_column: where text is read from; None reads none, and so does a part without the column.

    Attributes:
        parts: of the dataset, in order.

    Raises:
        DatasetError: no dataset, or it has no part yet.
    """

    def __init__(self, dataset: str | Path, num_codebooks: int, text_column: str | None = None) -> None:
        self.dataset, self.info = str(dataset), read_dataset_info(dataset)
        self._num_codebooks, self._text_column = num_codebooks, text_column
        self.parts = part_files(dataset)
        if not self.parts:
            raise DatasetError(f"{dataset} has no parts yet: run `quantone tokenize` to the end")

    def num_rows(self) -> list[int]:
        """Of each part; reads all their footers.

        Raises:
            DatasetError: a part is damaged.
        """
        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
            return list(pool.map(_num_rows, self.parts))

    def rows_of(self, part: int, start: int = 0) -> Iterator[Row]:
        """The rows of a part in order from number `start` on, some dozens at a time decoded.

        Raises:
            DatasetError: the part is damaged or lacks a column, or the language model that compressed it is not there.
        """
        opened = self.parts[part].open()
        for batch in opened.batches(self._columns(opened), ROWS_AT_A_TIME):
            if start < batch.num_rows:
                rows = self._rows(batch.slice(start), opened.uri)
                yield from rows.read(range(len(rows)))
            start = max(0, start - batch.num_rows)

    def read_part(self, part: int) -> PartRows:
        """A whole part, one that has rows, in memory: two bytes a code, to be read in any order.

        Raises:
            DatasetError: as `rows_of`.
        """
        opened = self.parts[part].open()
        table = opened.read(self._columns(opened)).combine_chunks()
        return self._rows(table.to_batches()[0], opened.uri)

    def _columns(self, part: CheckedPart) -> list[str]:
        codes = [QTN_COLUMN] if self.info.lm else [level_column(level) for level in range(self._num_codebooks)]
        text = [name for name in part.schema.names if name == self._text_column]
        return ["id", *codes, *text]

    def _rows(self, batch: pa.RecordBatch, uri: str) -> PartRows:
        ids = batch.column("id").to_pylist()
        texts: list[Any] = [None] * len(ids)
        if self._text_column in batch.schema.names:
            texts = batch.column(self._text_column).to_pylist()
        for text in texts:
            if not isinstance(text, str | None):
                raise DatasetError(f"{uri}: column {self._text_column!r} holds {text!r:.60}, no text")
        codes: _PartCodes
        if self.info.lm is None:
            codes = _Levels(batch, self._num_codebooks, uri)
        else:
            codes = _Streams(batch, self._num_codebooks, uri, self._coder, self.info)
        return PartRows(ids, texts, codes)

    @functools.cached_property
    def _coder(self) -> BlockCoder:
        return load_dataset_coder(self.info)

    def __getstate__(self) -> dict[str, Any]:
        """Without the language model, which every process loads for itself when it needs it."""
        return {name: value for name, value in self.__dict__.items() if name != "_coder"}


class _PartCodes(Protocol):
    def read(self, rows: Sequence[int]) -> list[Codes]: ...


class PartRows:
    """Rows in memory."""

    def __init__(self, ids: list[str], texts: list[str | None], codes: _PartCodes) -> None:
        self._ids, self._texts, self._codes = ids, texts, codes

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, rows: Sequence[int]) -> Iterator[Row]:
        """Rows by their numbers, in the order asked for."""
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            some = rows[start : start + ROWS_AT_A_TIME]
            for number, codes in zip(some, self._codes.read(some), strict=True):
                yield Row(self._ids[number], codes, self._texts[number] or None)


class _Levels:
    """Codes in one column a level."""

    def __init__(self, batch: pa.RecordBatch, num_codebooks: int, uri: str) -> None:
        columns = [list_items(batch, level_column(level), uri) for level in range(num_codebooks)]
        lengths = columns[0][1]
        for level, (_, own_lengths) in enumerate(columns):
            if not np.array_equal(own_lengths, lengths):
                raise DatasetError(
                    f"{uri}: {level_column(level)} does not have as many frames as {level_column(0)} in every row"
                )
        self._codes = np.stack([flat for flat, _ in columns])
        self._ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def read(self, rows: Sequence[int]) -> list[Codes]:
        return [self._codes[:, self._ends[row] : self._ends[row + 1]] for row in rows]


class _Streams:
    """Codes that a language model compressed, one .qtn stream a row."""

    def __init__(
        self, batch: pa.RecordBatch, num_codebooks: int, uri: str, coder: BlockCoder, info: DatasetInfo
    ) -> None:
        self._streams = batch.column(QTN_COLUMN)
        self._num_codebooks, self._uri, self._coder = num_codebooks, uri, coder
        self._codec = CodecIdentity.from_card(info.codec)

    def read(self, rows: Sequence[int]) -> list[Codes]:
        try:
            streams = [self._streams[row].as_py() for row in rows]
            decoded = decompress_many(streams, self._coder, codec=self._codec)
        except (BitstreamError, TypeError) as error:  # TypeError: a row without a stream
            raise DatasetError(f"{self._uri}: {QTN_COLUMN}: {error}") from error
        return [encoded.codes[0, : self._num_codebooks].numpy().astype(np.uint16) for encoded in decoded]


def _num_rows(part: PartFile) -> int:
    return int(part.open().metadata.num_rows)
