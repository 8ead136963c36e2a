"""Codes at rest: the codec that a dataset was made with, its parts, what each level costs, and its rows in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.dataset import list_parts
from pipelines.dataset_info import DatasetInfo
from tokenizer import Codec, DatasetError, load_codec

ROWS_PER_READ = 64


@dataclass(frozen=True, slots=True)
class StoredUtterance:
    """What decoding needs of one row."""

    id: str
    num_samples: int
    codes: NDArray[np.uint16]  # [K, T]


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


def part_uris(dataset: str | Path) -> list[str]:
    """The parts of a dataset in order."""
    directory = storage.join(storage.absolute(dataset), "parts")
    return [storage.join(directory, name) for name in list_parts(dataset)]


def level_bytes(dataset: str | Path) -> tuple[list[int], int]:
    """Bytes on disk of each level's codes, coarsest first, and of the parts as a whole; reads footers only."""
    levels: dict[str, int] = {}
    total = 0
    for uri in part_uris(dataset):
        with storage.open_input(uri) as stream, _readable(uri):
            total += stream.seek(0, 2)
            metadata = pq.read_metadata(stream)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                name = str(column.path_in_schema).split(".", 1)[0]
                if name.startswith("codes_"):
                    levels[name] = levels.get(name, 0) + column.total_compressed_size
    return [levels[name] for name in sorted(levels)], total


def read_utterances(
    dataset: str | Path, num_codebooks: int, ids: Collection[str] | None = None
) -> Iterator[StoredUtterance]:
    """The rows of a dataset, `num_codebooks` levels of each and no other column, some dozens at a time in memory.

    Page checksums are verified, which Polars does not do: most flipped bits would otherwise be other codes.

    Args:
        dataset: a local directory or s3://.
        num_codebooks: K, at most what is stored.
        ids: only these rows; None for all.

    Raises:
        DatasetError: a part is damaged.
    """
    columns = ["id", "num_samples", *(f"codes_{level:02d}" for level in range(num_codebooks))]
    wanted = None if ids is None else frozenset(ids)
    for uri in part_uris(dataset):
        with storage.open_input(uri) as stream:
            for batch in _read_batches(stream, columns, uri):
                yield from _utterances(batch, columns[2:], wanted, uri)


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn what Arrow raises about a part into an error that names the part."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{uri}: damaged, or not a part: {error}") from error


def _read_batches(stream: BinaryIO, columns: list[str], uri: str) -> Iterator[pa.RecordBatch]:
    # Nothing is yielded inside _readable: an error of whoever consumes the rows is not one of the part.
    with _readable(uri):
        batches = pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(ROWS_PER_READ, columns=columns)
    while True:
        with _readable(uri):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _utterances(
    batch: pa.RecordBatch, levels: list[str], wanted: frozenset[str] | None, uri: str
) -> Iterator[StoredUtterance]:
    if wanted is not None:
        batch = batch.filter(pc.is_in(batch.column("id"), value_set=pa.array(sorted(wanted), pa.string())))
    if batch.num_rows == 0:
        return
    columns: list[Any] = [batch.column(name) for name in levels]  # list arrays: Arrow's stubs know arrays only
    lengths = pc.list_value_length(columns[0])
    for name, column in zip(levels, columns, strict=True):
        if column.null_count or not pc.list_value_length(column).equals(lengths):
            raise DatasetError(f"{uri}: {name} does not have as many frames as {levels[0]} in every row")
    flat = np.stack([column.flatten().to_numpy(zero_copy_only=False) for column in columns])
    rows = np.split(flat, np.cumsum(lengths.to_numpy(zero_copy_only=False))[:-1], axis=1)
    for fields, codes in zip(batch.select(["id", "num_samples"]).to_pylist(), rows, strict=True):
        yield StoredUtterance(fields["id"], fields["num_samples"], codes)
