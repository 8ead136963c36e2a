"""Parquet with audio: a row is an input, listing does not read the audio, and damage stays where it is."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.datasets.listing import LISTING_SCHEMA, SourceFile, files_of
from pipelines.inputs.source_reader import SourceReader
from pipelines.inputs.sources import list_source
from tests.pipelines.inputs.archives import write_audio_parquet
from tokenizer import AudioError, DatasetError


def read(file):
    """All bytes of an input."""
    with SourceReader() as reader, reader.open(file) as stream:
        return stream.read()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=50), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from(["none", "zstd"]))
def test_rows_read_back_as_they_were_written(tmp_path_factory, contents, group, compression):
    """In any order, however the file is cut into row groups."""
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    write_audio_parquet(path, contents, row_group_size=group, compression=compression)
    files = files_of(list_source(path))
    with SourceReader() as reader:
        for file in [*files, *reversed(files)]:
            with reader.open(file) as stream:
                assert stream.read() == contents[file.offset]


@pytest.mark.parametrize(
    ("columns", "paths", "ids"),
    [
        ({"id": ["b", "a"]}, ["1.wav", "2.wav"], ["b", "a"]),
        ({"id": [7, 5]}, None, ["7", "5"]),
        ({"id": ["a", "a"]}, ["1.wav", "2.wav"], ["1.wav", "2.wav"]),
        ({"id": ["a", None]}, ["1.wav", "1.wav"], ["0.parquet/0", "0.parquet/1"]),
        ({"id": [[1], [2]]}, ["1.wav", None], ["0.parquet/0", "0.parquet/1"]),
        ({}, None, ["0.parquet/0", "0.parquet/1"]),
    ],
)
def test_ids_are_the_first_that_are_unique(tmp_path, columns, paths, ids):
    """`id`, then the path, then the number of the row; in a folder, the file's name stands before them."""
    write_audio_parquet(tmp_path / "rows" / "0.parquet", [b"x", b"y"], columns, paths)
    write_audio_parquet(tmp_path / "rows" / "1.parquet", [b"x", b"y"], columns, paths)
    assert [file.id for file in files_of(list_source(tmp_path / "rows" / "0.parquet"))] == sorted(ids)
    everywhere = [name.removeprefix("0.parquet/") for name in ids]
    expected = sorted(f"{number}.parquet/{name}" for number in (0, 1) for name in everywhere)
    assert [file.id for file in files_of(list_source(tmp_path / "rows"))] == expected


def test_other_columns_travel_and_none_is_lost(tmp_path):
    """With their types; an id or a path that could not be the id travels too."""
    columns = {"id": ["a", "a"], "label": pa.array([3, 4], pa.int8()), "words": [["p"], None], "peak": [0.5, 1.0]}
    columns["kind"] = pa.array(["x", "y"]).dictionary_encode()
    path = write_audio_parquet(tmp_path / "0.parquet", [b"x", b"y"], columns, ["same.wav", "same.wav"])
    listing = list_source(path)
    extra = pa.schema(list(listing.schema)[len(LISTING_SCHEMA) :])
    assert dict(zip(extra.names, extra.types, strict=True)) == {
        "manifest_id": pa.string(),
        "label": pa.int8(),
        "words": pa.list_(pa.string()),
        "manifest_peak": pa.float64(),
        "kind": pa.string(),
        "audio_path": pa.string(),
    }
    assert listing.column("audio_path").to_pylist() == ["same.wav", "same.wav"]


def test_sizes_are_those_of_the_row_group_on_average(tmp_path):
    """So that units are cut by length without the audio being read."""
    contents = [bytes(range(256)) * 40] * 4 + [b"short"] * 4
    path = write_audio_parquet(tmp_path / "0.parquet", contents, row_group_size=4, use_dictionary=False)
    sizes = [file.size for file in files_of(list_source(path))]
    assert sizes[:4] == pytest.approx([256 * 40] * 4, rel=0.1)
    assert max(sizes[4:]) < 100


def test_a_row_without_bytes_fails_alone(tmp_path):
    """Its path is not followed: it may lead anywhere."""
    (tmp_path / "x.wav").write_bytes(b"secret")
    path = write_audio_parquet(
        tmp_path / "0.parquet", [None, b"y"], {"id": ["a", "b"]}, [str(tmp_path / "x.wav"), None]
    )
    first, second = files_of(list_source(path))
    with pytest.raises(AudioError, match=r"row 0: no bytes"):
        read(first)
    assert read(second) == b"y"


def test_a_flipped_byte_fails_its_row_group_and_no_other(tmp_path):
    """Page checksums find it; all its rows are told, and the next row group is read."""
    contents = [bytes([65 + row]) * 300 for row in range(6)]
    path = write_audio_parquet(
        tmp_path / "0.parquet", contents, row_group_size=3, compression="none", use_dictionary=False
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"B" * 50) + 7] ^= 1
    path.write_bytes(content)
    files = files_of(list_source(path))
    with SourceReader() as reader:
        for file in files[:3]:
            with pytest.raises(AudioError, match=r"row group 0 is damaged: .*CRC"):
                reader.open(file)
        for file in files[3:]:
            with reader.open(file) as stream:
                assert stream.read() == contents[file.offset]


@pytest.mark.parametrize("cut", [0, 10, -1, -60])
def test_a_damaged_file_is_one_failing_input_of_its_folder(tmp_path, cut):
    """It does not disappear; alone, it is no source."""
    path = write_audio_parquet(tmp_path / "rows" / "0.parquet", [b"x"] * 9)
    (tmp_path / "rows" / "1.parquet").write_bytes(path.read_bytes()[:cut])
    whole, damaged = files_of(list_source(tmp_path / "rows"))[8:]
    assert (damaged.id, damaged.offset) == ("1.parquet", None)
    with SourceReader() as reader:
        with pytest.raises(AudioError, match=r"1\.parquet: not a Parquet file"):
            reader.open(damaged)
        with reader.open(whole) as stream:
            assert stream.read() == b"x"
    with pytest.raises(DatasetError, match=r"1\.parquet: not a Parquet file"):
        list_source(damaged.uri)


def test_parquet_without_audio_is_passed_over(tmp_path):
    """Metadata beside audio files is common; nothing but metadata is no source."""
    pq.write_table(pa.table({"audio": ["x.wav"], "text": ["hi"]}), tmp_path / "metadata.parquet")
    with pytest.raises(DatasetError, match="no audio in 1 tar and Parquet files"):
        list_source(tmp_path)
    (tmp_path / "x.wav").write_bytes(b"x")
    assert list_source(tmp_path).column("id").to_pylist() == ["x.wav"]


def test_a_row_that_the_file_lacks_is_an_audio_error(tmp_path):
    """The file has been written anew since the plan was made."""
    path = write_audio_parquet(tmp_path / "0.parquet", [b"x"])
    with pytest.raises(AudioError, match=r"0\.parquet: row 1 is not in a file of 1 rows"):
        read(SourceFile("a", str(path), offset=1))
