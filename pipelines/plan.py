"""The plan of a corpus job: which files make up a unit, which are read together, which go through the codec together.

All three cuts follow from the listing and the lengths alone, never from timing, so a resumed job makes the same ones.
A unit is what is committed at once; a bundle is what one reader hands to one encoder; a batch is one pass of the codec.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources import SourceFile
from tokenizer.errors import DatasetError

# Opening a million files to learn their lengths would take longer than reading a thousand hours of audio. Lengths are
# estimated: 16 bits at 16 kHz mono, and what speech corpora commonly have in the compressed formats. An estimate that
# is off makes units and bundles longer or shorter than asked, nothing else: batches are cut by true lengths.
_BYTES_PER_SECOND = {
    ".wav": 32_000,
    ".aif": 32_000,
    ".aiff": 32_000,
    ".flac": 17_000,
    ".mp3": 8_000,
    ".ogg": 8_000,
    ".oga": 8_000,
    ".opus": 4_000,
}
_LEAST_SECONDS = 0.25  # opening a file costs something too: a unit never holds more than 4 files per second asked for

_SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("id", pa.string()),
        ("uri", pa.string()),
        ("member", pa.string()),  # name inside an archive; null for plain files
        ("offset", pa.int64()),  # of the member in its archive; null for plain files
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Units of files, numbered from 0 in listing order."""

    units: tuple[tuple[SourceFile, ...], ...]

    @property
    def files(self) -> list[SourceFile]:
        """All files in listing order."""
        return [file for unit in self.units for file in unit]

    @property
    def sha256(self) -> str:
        """Identity of the listing and of its cut into units."""
        digest = hashlib.sha256()
        for number, unit in enumerate(self.units):
            for file in unit:
                digest.update(json.dumps([number, file.id, file.uri, file.size]).encode() + b"\n")
        return digest.hexdigest()

    def to_parquet(self) -> bytes:
        """The content of plan.parquet."""
        files = self.files
        table = pa.table(
            {
                "unit": [number for number, unit in enumerate(self.units) for _ in unit],
                "id": [file.id for file in files],
                "uri": [file.uri for file in files],
                "member": pa.nulls(len(files), pa.string()),
                "offset": pa.nulls(len(files), pa.int64()),
                "size": [file.size for file in files],
            },
            schema=_SCHEMA,
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, content: bytes) -> Plan:
        """Read back what `to_parquet` wrote.

        Raises:
            DatasetError: it is damaged.
        """
        try:
            rows = pq.read_table(io.BytesIO(content), page_checksum_verification=True).to_pylist()
            units: dict[int, list[SourceFile]] = {}
            for row in rows:
                units.setdefault(row["unit"], []).append(SourceFile(row["id"], row["uri"], row["size"]))
            return cls(tuple(tuple(units[number]) for number in range(len(units))))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DatasetError(f"plan.parquet is damaged: {error}") from error


def make_plan(files: Sequence[SourceFile], unit_seconds: float) -> Plan:
    """Cut a listing into units of consecutive files with about `unit_seconds` of audio each."""
    return Plan(tuple(map(tuple, _cut(files, [estimate_seconds(file) for file in files], unit_seconds))))


def estimate_seconds(file: SourceFile) -> float:
    """Length of a file's audio, guessed from its size and extension alone."""
    rate = _BYTES_PER_SECOND.get(PurePosixPath(file.id).suffix.lower(), 32_000)
    return max(_LEAST_SECONDS, file.size / rate)


def cut_bundles(files: Sequence[SourceFile], bundle_seconds: float) -> list[list[SourceFile]]:
    """Cut a unit into bundles of files of similar length, about `bundle_seconds` of audio with padding in each."""
    by_length = sorted(files, key=lambda file: (estimate_seconds(file), file.id))
    bundles: list[list[SourceFile]] = []
    for file in by_length:
        if not bundles or (len(bundles[-1]) + 1) * estimate_seconds(file) > bundle_seconds:
            bundles.append([])
        bundles[-1].append(file)
    return bundles


def compose_batches(lengths: Sequence[int], max_samples: int) -> list[list[int]]:
    """Group waveforms of similar length, at most `max_samples` with padding in a batch.

    Args:
        lengths: samples of each waveform.
        max_samples: limit on (waveforms in the batch) x (longest of them). A longer waveform gets a batch of its own.

    Returns:
        Positions in `lengths`, each exactly once, shortest first.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: (lengths[position], position)):
        if not batches or (len(batches[-1]) + 1) * lengths[position] > max_samples:
            batches.append([])
        batches[-1].append(position)
    return batches


def describe_difference(planned: Sequence[SourceFile], listed: Sequence[SourceFile]) -> str | None:
    """How a listing differs from the planned one in words, or None where it does not."""
    if list(planned) == list(listed):
        return None
    before, now = {file.id: file for file in planned}, {file.id: file for file in listed}
    kinds = {
        "new": sorted(now.keys() - before.keys()),
        "gone": sorted(before.keys() - now.keys()),
        "of another size or place": sorted(name for name in before.keys() & now.keys() if before[name] != now[name]),
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    )


def _cut(files: Sequence[SourceFile], seconds: Sequence[float], most: float) -> list[list[SourceFile]]:
    pieces: list[list[SourceFile]] = []
    total = 0.0
    for file, length in zip(files, seconds, strict=True):
        if not pieces or total + length > most:
            pieces.append([])
            total = 0.0
        pieces[-1].append(file)
        total += length
    return pieces
