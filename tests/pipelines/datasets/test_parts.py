"""Parts: rows to Parquet and back."""

import dataclasses
import io

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.datasets.parts import ErrorRow, PartFormat, encode_errors, encode_part, measure_part
from pipelines.datasets.reconstruction_quality import Quality
from tests.conftest import tiny_spec
from tests.pipelines.token_rows import token_row

SPEC = tiny_spec()
FORMAT = PartFormat(spec=SPEC, num_codebooks=4, card={"name": "tiny", "sha256": "0" * 64, "spec": SPEC.to_dict()})


def row(name, num_frames, seed=0):
    """A row with random codes."""
    codes = np.random.default_rng(seed).integers(0, 16, (4, num_frames)).astype(np.uint16)
    return token_row(name, codes, num_samples=num_frames * 8 - 3)


def test_codes_survive_parquet():
    """Every level of every row, empty rows included, in polars and in pyarrow."""
    rows = [row("a.wav", 5), row("b.wav", 0, 1), row("c.wav", 7, 2)]
    content = encode_part(rows, FORMAT)
    frame = pl.read_parquet(content)
    assert frame.columns[-4:] == ["codes_00", "codes_01", "codes_02", "codes_03"]
    assert frame.schema["codes_00"] == pl.List(pl.UInt16)
    for index, expected in enumerate(rows):
        for level in range(4):
            assert frame[f"codes_{level:02d}"][index].to_list() == expected.codes[level].tolist()
    assert frame["num_frames"].to_list() == [5, 0, 7]
    assert pq.read_table(io.BytesIO(content), page_checksum_verification=True).num_rows == 3


def test_scales_stand_behind_the_codes_of_codecs_that_have_them():
    """One float32 per segment, bit by bit as it was; no such column for other codecs."""
    segmented = dataclasses.replace(FORMAT, spec=tiny_spec("segmented"))
    scales = [np.array([0.1, 1e-8, 3.4e38], np.float32), np.array([], np.float32), np.array([1 / 3], np.float32)]
    rows = [dataclasses.replace(row(f"{i}.wav", i), scales=values) for i, values in enumerate(scales)]
    frame = pl.read_parquet(encode_part(rows, segmented))
    assert frame.columns[-2:] == ["codes_03", "scales"]
    assert frame.schema["scales"] == pl.List(pl.Float32)
    for found, expected in zip(frame["scales"], scales, strict=True):
        assert found.to_numpy().tobytes() == expected.tobytes()
    assert "scales" not in pl.read_parquet(encode_part([row("a.wav", 5)], FORMAT)).columns
    assert pl.read_parquet(encode_part([], segmented)).schema["scales"] == pl.List(pl.Float32)


def test_one_part_alone_says_what_made_it():
    """The codec card lies in the metadata, the constants in every row."""
    content = encode_part([row("a.wav", 5)], FORMAT)
    assert '"name": "tiny"' in pl.read_parquet_metadata(io.BytesIO(content))["quantone"]
    frame = pl.read_parquet(content)
    assert frame.select("sample_rate", "hop_length", "codebook_size").row(0) == (24000, 8, 16)


def test_flipped_bits_are_found_by_a_reader_that_verifies():
    """Page checksums are on: of flips inside the pages, none is read silently wrong."""
    content = encode_part([row(f"{i}.wav", 400, i) for i in range(20)], FORMAT)
    whole = pq.read_table(io.BytesIO(content))
    rng, silent = np.random.default_rng(0), 0
    for position in rng.integers(4, len(content) - 8, 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        try:
            table = pq.read_table(io.BytesIO(bytes(damaged)), page_checksum_verification=True)
        except (OSError, pa.ArrowException, UnicodeDecodeError):
            continue
        silent += any(table.column(name) != whole.column(name) for name in table.column_names if "codes" in name)
    assert silent == 0


def test_codes_at_rest_cost_little_more_than_their_bits():
    """Half an hour of uniform 10-bit codes takes at most 10.5 bits each, dictionaries included."""
    rng = np.random.default_rng(0)
    rows = [token_row(f"{i}.wav", rng.integers(0, 1024, (2, 600)), num_samples=600 * 320) for i in range(225)]
    size = measure_part(encode_part(rows, dataclasses.replace(FORMAT, num_codebooks=2)), rows)
    assert size.num_codes == 225 * 600 * 2
    assert 10.0 <= 8 * size.code_bytes / size.num_codes <= 10.5


def test_columns_of_the_source_travel_behind_the_codes():
    """With their own types, nested ones and missing values included."""
    extra = pa.table({"text": ["one", None], "tags": [{"a": [1, 2]}, {"a": []}], "score": pa.array([1, 2], pa.int8())})
    content = encode_part([row("a.wav", 5), row("b.wav", 2)], FORMAT, extra)
    table = pq.read_table(io.BytesIO(content))
    assert table.column_names[-3:] == ["text", "tags", "score"]
    assert table.select(extra.column_names).equals(extra)
    assert pl.read_parquet(encode_part([], FORMAT, extra.slice(0, 0)))["score"].dtype == pl.Int8


def test_quality_has_columns_where_it_was_measured():
    """Null where it could not be; no columns in other datasets."""
    rows = [dataclasses.replace(row("a.wav", 5), quality=Quality(12.5, 0.25)), row("b.wav", 2)]
    frame = pl.read_parquet(encode_part(rows, dataclasses.replace(FORMAT, quality=True)))
    assert frame.select("si_snr_db", "mel_distance").rows() == [(12.5, 0.25), (None, None)]
    assert "si_snr_db" not in pl.read_parquet(encode_part(rows, FORMAT)).columns


def test_error_rows_keep_their_reason():
    """Id, uri, class and message as they were."""
    error = ErrorRow("a.wav", "/x/a.wav", "AudioError", "not audio: <b>")
    assert pl.read_parquet(encode_errors([error])).row(0) == ("a.wav", "/x/a.wav", "AudioError", "not audio: <b>")


@pytest.mark.parametrize("rows", [[], [row("a.wav", 0)]], ids=["no rows", "no frames"])
def test_parts_without_codes_are_parts(rows):
    """Nothing worked: still a readable file with all columns."""
    frame = pl.read_parquet(encode_part(rows, FORMAT))
    assert frame.height == len(rows)
    assert frame.schema["codes_03"] == pl.List(pl.UInt16)
