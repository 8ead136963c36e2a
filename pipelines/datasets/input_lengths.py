"""How long the audio of an input may be, guessed from the listing alone: nothing is opened."""

from __future__ import annotations

import posixpath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.listing import SourceFile

# Opening a million files to learn their lengths would take longer than reading a thousand hours of audio. Lengths are
# estimated: 16 bits at 16 kHz mono, and what speech corpora commonly have in the compressed formats. An estimate that
# is off makes units and bundles longer or shorter than asked, nothing else: batches are cut by true lengths.
_BYTES_PER_SECOND = {
    ".flac": 17_000,
    ".mp3": 8_000,
    ".ogg": 8_000,
    ".oga": 8_000,
    ".opus": 4_000,
    ".m4a": 12_000,
    ".aac": 12_000,
    ".wma": 12_000,
    ".amr": 1_600,
    ".webm": 60_000,  # this and the next three: mostly pictures
    ".mp4": 120_000,
    ".mkv": 120_000,
    ".mov": 120_000,
}
_OTHER_BYTES_PER_SECOND = 32_000
_UNKNOWN_SECONDS = 10.0
_BATCH = 2**16  # rows
_LEAST_SECONDS = 0.25  # opening a file costs something too: a unit never holds more than 4 files per second asked for


def estimate_seconds(file: SourceFile) -> float:
    """Length of an input's audio: what a manifest says, else guessed from its size and extension."""
    if file.duration_s is not None:
        return max(_LEAST_SECONDS, file.duration_s)
    if file.size is None:
        return _UNKNOWN_SECONDS
    name = file.id if file.member is None and file.offset is not None else file.member or file.uri
    rate = _BYTES_PER_SECOND.get(posixpath.splitext(name)[1].lower(), _OTHER_BYTES_PER_SECOND)
    return max(_LEAST_SECONDS, file.size / rate - file.start_s)


def estimate_lengths(listing: pa.Table) -> npt.NDArray[np.float64]:
    """`estimate_seconds` of every row of a listing, [num_rows], without an object a row."""
    batches = [
        _estimate(batch) for batch in listing.to_batches(max_chunksize=_BATCH)
    ]  # names are copied: not all at once
    return np.concatenate([np.empty(0), *batches])


def _estimate(rows: pa.RecordBatch) -> npt.NDArray[np.float64]:
    is_row = pc.and_(pc.is_null(rows.column("member")), pc.is_valid(rows.column("offset")))
    place = pc.coalesce(rows.column("member"), rows.column("uri"))
    names = pc.if_else(is_row, rows.column("id"), place)
    extensions = pc.struct_field(pc.extract_regex(names, r"[^./][^/]*(?P<extension>\.[^./]*)$"), "extension")
    extensions = pc.utf8_lower(extensions).dictionary_encode()
    rates = [_BYTES_PER_SECOND.get(name, _OTHER_BYTES_PER_SECOND) for name in extensions.dictionary.to_pylist()]
    positions = extensions.indices.fill_null(len(rates)).to_numpy(zero_copy_only=False)
    sizes = _floats(rows.column("size"))
    guessed = sizes / np.array([*rates, _OTHER_BYTES_PER_SECOND])[positions] - _floats(rows.column("start_s"))
    told = _floats(rows.column("duration_s"))
    lengths = np.where(np.isnan(told), np.where(np.isnan(sizes), _UNKNOWN_SECONDS, guessed), told)
    return np.maximum(_LEAST_SECONDS, lengths)


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    """The values, NaN for null."""
    values: npt.NDArray[np.float64] = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return values
