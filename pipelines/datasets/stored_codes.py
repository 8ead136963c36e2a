"""Codes at rest: the codec that a dataset was made with, its parts, what each level costs, and its rows in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from lm_head.block_coder import BlockCoder
from lm_head.compression import CodecIdentity
from lm_head.decompression import decompress_many
from lm_head.lm_checkpoint import load_coder
from pipelines import storage
from pipelines.datasets.dataset_info import DatasetInfo, read_dataset_info
from pipelines.datasets.part_file import part_files
from pipelines.datasets.parts import QTN_COLUMN, SCALES_COLUMN, is_level_column, level_column
from tokenizer import BitstreamError, Codec, CodecSpec, DatasetError, Encoded, load_codec

ROWS_PER_READ = 64


@dataclass(frozen=True, slots=True)
class StoredUtterance:
    """What decoding needs of one row."""

    id: str
    num_samples: int
    codes: NDArray[np.uint16]  # [K, T]
    scales: NDArray[np.float32] | None = None  # [N], of codecs that normalise their segments

    def encoded(self) -> Encoded:
        """As `Codec.decode` takes it, in a batch of one; the codec checks it."""
        scales = None if self.scales is None else torch.from_numpy(self.scales)[None]
        return Encoded(torch.from_numpy(self.codes.astype(np.int64))[None], scales, self.num_samples)


def load_dataset_codec(info: DatasetInfo, codec: str | None = None) -> Codec:
    """Load the codec that made a dataset, and refuse every other one.

    Args:
        info: of the dataset.
        codec: name or directory where it is now; None looks where the dataset says it came from.

    Returns:
        The codec on the CPU.

    Raises:
        CheckpointError: there is no codec at that place.
        DatasetError: the codec there is another one.
    """
    source = codec or str(info.codec.get("source") or info.codec["name"])
    loaded = load_codec(source)
    expected = str(info.codec["sha256"])
    if loaded.sha256 != expected:
        raise DatasetError(
            f"codec {source!r} has sha256 {loaded.sha256[:12]}, but the dataset was made with {info.codec['name']!r}, "
            f"sha256 {expected[:12]}: its codes mean nothing to another codec"
        )
    return loaded


def num_codebooks_at(info: DatasetInfo, codec: Codec, bandwidth_kbps: float | None) -> int:
    """Levels to read for a bandwidth; None asks for all that are stored.

    Raises:
        ValueError: the codec does not have the bandwidth, or the dataset stores less.
    """
    if bandwidth_kbps is None:
        return info.num_codebooks
    num_codebooks = codec.spec.num_codebooks_at(bandwidth_kbps)
    if num_codebooks > info.num_codebooks:
        raise ValueError(f"bandwidth {bandwidth_kbps:g} kbps: the dataset stores {info.bandwidth_kbps:g} kbps")
    return num_codebooks


def level_bytes(dataset: str | Path) -> tuple[list[int], int]:
    """Bytes on disk of each level's codes, coarsest first, and of the parts as a whole; reads footers only.

    Raises:
        DatasetError: a part is damaged, or the dataset is compressed: it has all levels in one column.
    """
    if read_dataset_info(dataset).lm is not None:
        raise DatasetError(
            f"{dataset} is compressed: its codes are in {QTN_COLUMN} only, without a column for each level"
        )
    levels: dict[str, int] = {}
    total = 0
    for file in part_files(dataset):
        metadata = file.open().metadata
        found = storage.find_file(file.uri)
        total += 0 if found is None else found.size
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                name = str(column.path_in_schema).split(".", 1)[0]
                if is_level_column(name):
                    levels[name] = levels.get(name, 0) + column.total_compressed_size
    return [levels[name] for name in sorted(levels)], total


def read_utterances(
    dataset: str | Path, num_codebooks: int, ids: Collection[str] | None = None
) -> Iterator[StoredUtterance]:
    """The rows of a dataset, only the columns that `num_codebooks` levels need, some dozens at a time in memory.

    Of a compressed dataset all levels are decoded, with the language model that compressed them.

    Every byte that is used is checked first (`part_file`): most flipped bits would otherwise be other codes.

    Args:
        dataset: a local directory or s3://.
        num_codebooks: K, at most what is stored.
        ids: only these rows; None for all.

    Raises:
        DatasetError: a part is damaged, or lacks a column; or the language model at hand is another one.
        CheckpointError: a compressed dataset whose language model is not there.
    """
    info = read_dataset_info(dataset)
    if info.lm is not None:
        yield from _read_streams(dataset, info, num_codebooks, ids)
        return
    levels = [level_column(level) for level in range(num_codebooks)]
    scales = [SCALES_COLUMN] if _has_scales(dataset) else []
    for batch, uri in _batches(dataset, ["id", "num_samples", *levels, *scales], ids):
        yield from _utterances(batch, levels, uri)


def load_dataset_coder(info: DatasetInfo) -> BlockCoder:
    """Load the language model that compressed a dataset, from where the dataset says that it was.

    Raises:
        CheckpointError: there is none.
        DatasetError: the one there is another one, or the dataset is not compressed.
    """
    if info.lm is None:
        raise DatasetError("the dataset is not compressed")
    coder = load_coder(str(info.lm["source"]))
    if coder.identity != info.lm["identity"]:
        raise DatasetError(
            f"language model {info.lm['source']!r} is {coder.identity[:8]}, but the dataset was compressed by "
            f"{info.lm['name']!r}, {str(info.lm['identity'])[:8]}: no other one reads it"
        )
    return coder


def _read_streams(
    dataset: str | Path, info: DatasetInfo, num_codebooks: int, ids: Collection[str] | None
) -> Iterator[StoredUtterance]:
    coder, codec = load_dataset_coder(info), CodecIdentity.from_card(info.codec)
    for batch, uri in _batches(dataset, ["id", "num_samples", QTN_COLUMN], ids):
        rows = batch.to_pylist()
        try:
            decoded = decompress_many([row[QTN_COLUMN] for row in rows], coder, codec=codec)
        except (BitstreamError, TypeError) as error:  # TypeError: a row without a stream
            raise DatasetError(f"{uri}: {QTN_COLUMN}: {error}") from error
        for row, encoded in zip(rows, decoded, strict=True):
            codes = encoded.codes[0, :num_codebooks].numpy().astype(np.uint16)
            scales = None if encoded.scales is None else encoded.scales[0].numpy()
            yield StoredUtterance(row["id"], row["num_samples"], codes, scales)


def _batches(
    dataset: str | Path, columns: list[str], ids: Collection[str] | None
) -> Iterator[tuple[pa.RecordBatch, str]]:
    """The wanted rows of all parts, each batch with the part that it is of."""
    wanted = None if ids is None else pa.array(sorted(set(ids)), pa.string())
    for file in part_files(dataset):
        part = file.open()
        if wanted is not None and not pc.any(pc.is_in(part.read(["id"]).column("id"), value_set=wanted)).as_py():
            continue  # without having read its codes
        for batch in part.batches(columns, ROWS_PER_READ):
            kept = batch if wanted is None else batch.filter(pc.is_in(batch.column("id"), value_set=wanted))
            if kept.num_rows:
                yield kept, file.uri


def _has_scales(dataset: str | Path) -> bool:
    try:
        return CodecSpec.from_dict(read_dataset_info(dataset).codec["spec"]).has_scales
    except ValueError as error:
        raise DatasetError(f"{dataset}: its codec is not one that this version knows: {error}") from error


def _utterances(batch: pa.RecordBatch, levels: list[str], uri: str) -> Iterator[StoredUtterance]:
    columns = [list_items(batch, name, uri) for name in levels]
    lengths = columns[0][1]
    for name, (_, own_lengths) in zip(levels, columns, strict=True):
        if not np.array_equal(own_lengths, lengths):
            raise DatasetError(f"{uri}: {name} does not have as many frames as {levels[0]} in every row")
    codes = _rows(np.stack([flat for flat, _ in columns]), lengths)
    scales: list[NDArray[Any] | None] = [None] * batch.num_rows
    if SCALES_COLUMN in batch.schema.names:
        flat, lengths = list_items(batch, SCALES_COLUMN, uri)
        scales = [*_rows(flat.astype(np.float32), lengths)]
    fields = batch.select(["id", "num_samples"]).to_pylist()
    for field, levels_of_row, scales_of_row in zip(fields, codes, scales, strict=True):
        yield StoredUtterance(field["id"], field["num_samples"], levels_of_row, scales_of_row)


def list_items(batch: pa.RecordBatch, name: str, uri: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A list column's items, all rows one after another, and the length of each row."""
    column: Any = batch.column(name)  # a list array: Arrow's stubs know arrays only
    if column.null_count:
        raise DatasetError(f"{uri}: {name} is missing in some rows")
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):  # Polars writes the large ones
        raise DatasetError(f"{uri}: {name} is {column.type}, not lists")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False), lengths


def _rows(flat: NDArray[Any], lengths: NDArray[Any]) -> list[NDArray[Any]]:
    """Items [..., n] cut into rows of these lengths."""
    return np.split(flat, np.cumsum(lengths)[:-1], axis=-1)
