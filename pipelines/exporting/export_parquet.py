"""Sequences as Parquet: `id` and `input_ids`, a list of integers, or of lists of K integers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.exporting.export_shards import ExportedSequence

CARD_KEY = b"quantone_tokens"  # the card stands in every file, so that one file alone can be turned back
_ROW_GROUP_IDS = 2**22


class ParquetShard:
    """A Parquet file that grows by row groups of some million ids, so that readers need not hold it whole.

    Args:
        dtype: of the ids.
        num_codebooks: K where sequences are [N, K], None where they are [N].
        card: JSON, for the metadata.
    """

    def __init__(self, dtype: np.dtype[Any], num_codebooks: int | None, card: str) -> None:
        item = pa.from_numpy_dtype(dtype)
        self._num_codebooks = num_codebooks
        step = item if num_codebooks is None else pa.list_(item, num_codebooks)
        fields = [("id", pa.string()), ("input_ids", pa.list_(step))]
        self._schema = pa.schema(fields, metadata={CARD_KEY: card.encode()})
        self._buffer = io.BytesIO()
        leaf = "input_ids.list.element" + ("" if num_codebooks is None else ".list.element")
        # Parquet knows no 16-bit integers: split into bytes, the empty upper ones cost nothing. Measured on speech
        # against dictionaries and against plain values: smallest, and fastest to write and to read.
        self._writer = pq.ParquetWriter(
            self._buffer,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={leaf: "BYTE_STREAM_SPLIT"},
            write_page_checksum=True,
        )
        self._sequences: list[ExportedSequence] = []
        self._num_ids = 0

    def add(self, sequence: ExportedSequence) -> None:
        """Take a sequence."""
        self._sequences.append(sequence)
        self._num_ids += sequence.ids.size
        if self._num_ids >= _ROW_GROUP_IDS:
            self._write_group()

    def content(self) -> bytes:
        """The bytes of the finished file."""
        self._write_group()
        self._writer.close()
        return self._buffer.getvalue()

    def _write_group(self) -> None:
        if not self._sequences:
            return
        lengths = [len(sequence.ids) for sequence in self._sequences]
        values = pa.array(np.concatenate([sequence.ids.reshape(-1) for sequence in self._sequences]))
        if self._num_codebooks is not None:
            values = pa.FixedSizeListArray.from_arrays(values, self._num_codebooks)
        offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
        ids = pa.array([sequence.id for sequence in self._sequences], pa.string())
        rows = [ids, pa.ListArray.from_arrays(offsets, values)]
        self._writer.write_table(pa.table(rows, schema=self._schema), row_group_size=len(lengths))
        self._sequences, self._num_ids = [], 0
