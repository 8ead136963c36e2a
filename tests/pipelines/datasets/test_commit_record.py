"""Commit records: exact, self-checking, and found by unit."""

import hashlib
import io
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.datasets.commit_record import (
    CommitRecord,
    list_records,
    parse_record_name,
    read_record,
    record_name,
    record_of,
)
from tokenizer import DatasetError


def parquet(**columns):
    """The bytes of a file with these columns."""
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content, compression="zstd", row_group_size=2)
    return content.getvalue()


@pytest.fixture
def part():
    """Three rows in two row groups, a list, a struct, and a column with a dot in its name."""
    return parquet(
        **{"id": ["a", "b", "c"], "codes_00": [[1], [2, 3], []], "a.b": [1, 2, 3], "s": [{"x": 1, "y": 2}] * 3}
    )


def test_a_record_survives_json(part):
    """What was written is what is read, with and without errors."""
    for errors, rows in ((None, 0), (b"errors", 2)):
        record = record_of(part, 3, errors, rows, 1.25)
        assert CommitRecord.from_json(record.to_json()) == record
        assert (record.part.num_rows, record.part.num_bytes, record.audio_seconds) == (3, len(part), 1.25)
        assert (record.errors is None) == (errors is None)
        assert record.part.sha256 == hashlib.sha256(part).hexdigest()


def test_the_footer_and_every_column_chunk_are_described(part):
    """The footer hash is of the file's end; chunks of all columns lie end to end between the magic and the footer."""
    record = record_of(part, 3, None, 0, 1.0).part
    assert hashlib.sha256(part[-record.footer_bytes :]).hexdigest() == record.footer_sha256
    assert {name: len(chunks) for name, chunks in record.chunks.items()} == {"id": 2, "codes_00": 2, "a.b": 2, "s": 4}
    chunks = sorted((chunk for own in record.chunks.values() for chunk in own), key=lambda chunk: chunk.offset)
    position = 4
    for chunk in chunks:
        assert chunk.offset == position
        position += chunk.num_bytes
        assert zlib.crc32(part[chunk.offset : position]) == chunk.crc32
    assert position == len(part) - record.footer_bytes


def test_every_flipped_bit_of_a_record_is_found(part):
    """It vouches for a part, so it must not be believed when it is damaged itself."""
    content = record_of(part, 3, b"errors", 2, 1.0).to_json().encode()
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(DatasetError, match="record"):
                CommitRecord.from_json(bytes(damaged))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 2}', '{"format": 1, "part": 3}', "[" * 100_000])
def test_what_is_no_record_is_a_typed_error(text):
    """Whatever lies in the directory under a record's name."""
    with pytest.raises(DatasetError, match="record"):
        CommitRecord.from_json(text)


def test_names_say_unit_and_part(tmp_path, part):
    """A listing tells which units have records; other files are no records."""
    record = record_of(part, 3, None, 0, 1.0)
    name = record_name(7, record.part.sha256)
    assert name == f"part-00007.{record.part.sha256[:16]}.json"
    assert parse_record_name(name) == (7, record.part.sha256[:16])
    for other in ("part-7.json", name + "x", "part-000007.0123456789abcdef.json", "part-00007.0123456789ABCDEF.json"):
        assert parse_record_name(other) is None
    assert list_records(str(tmp_path)) == {}
    storage.commit(f"{tmp_path}/records/{name}", record.to_json().encode())
    storage.commit(f"{tmp_path}/records/{record_name(7, 'f' * 64)}", b"")
    storage.commit(f"{tmp_path}/records/notes.txt", b"")
    expected = {7: sorted([(name, record.part.sha256[:16]), (record_name(7, "f" * 64), "f" * 16)])}
    assert list_records(str(tmp_path)) == expected
    assert read_record(f"{tmp_path}/records/{name}") == record
    with pytest.raises(DatasetError, match="ffff"):
        read_record(f"{tmp_path}/records/{record_name(7, 'f' * 64)}")
