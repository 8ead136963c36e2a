"""Manifests: every row becomes an input, every other column travels, and a bad row is named."""

import json
import math

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.datasets.listing import LISTING_SCHEMA, files_of
from pipelines.inputs.sources import list_source
from tokenizer import DatasetError

ROWS = [
    {"audio_filepath": "b.wav", "offset": 1.5, "duration": 2.25, "text": "two", "speaker": 7},
    {"audio_filepath": "a/c.flac", "offset": None, "duration": 3.0, "text": "drei, «vier»", "speaker": None},
    {"audio_filepath": "/elsewhere/d.wav", "offset": 0.0, "duration": None, "text": "7", "speaker": 8},
]


def write(path, rows):
    """A manifest of these rows in the format that its name asks for."""
    if path.suffix in (".jsonl", ".json"):
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        pl.DataFrame(rows).write_csv(
            path,
            separator="\t" if path.suffix == ".tsv" else ",",
            quote_style="never" if path.suffix == ".tsv" else "necessary",
        )
    return path


@pytest.mark.parametrize("name", ["m.jsonl", "m.json", "m.csv", "m.tsv", "m.parquet", "M.JSONL"])
def test_all_formats_say_the_same(tmp_path, name):
    """Paths are relative to the manifest, times are seconds, and types are kept: a text of digits stays text."""
    (tmp_path / "b.wav").write_bytes(b"12345")
    listing = list_source(write(tmp_path / name.lower(), ROWS).rename(tmp_path / name))
    d, c, b = files_of(listing)
    assert (b.id, b.uri, b.size, b.start_s, b.duration_s) == ("b.wav", f"{tmp_path}/b.wav", 5, 1.5, 2.25)
    assert (c.id, c.uri, c.size, c.start_s, c.duration_s) == ("a/c.flac", f"{tmp_path}/a/c.flac", None, 0.0, 3.0)
    assert (d.id, d.uri, d.start_s, d.duration_s) == ("/elsewhere/d.wav", "/elsewhere/d.wav", 0.0, None)
    extra = {"text": pa.string(), "speaker": pa.int64()}
    assert listing.schema == pa.schema([*LISTING_SCHEMA, *extra.items()])
    assert listing.column("text").to_pylist() == ["7", "drei, «vier»", "two"]
    assert listing.column("speaker").to_pylist() == [8, None, 7]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["x", "text", "num_samples", "codes_03", "unit"]), VALUES), min_size=1))
def test_every_column_travels_whatever_is_in_it(tmp_path_factory, rows):
    """Under its name, or a free one where the dataset has a column of that name itself; and every row is listed."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    listing = list_source(write(path, [{"path": f"{i:03d}.wav", **row} for i, row in enumerate(rows)]))
    assert listing.num_rows == len(rows)
    keys = {key for row in rows for key in row}
    free = {key if key in ("x", "text") else f"manifest_{key}" for key in keys}
    assert set(listing.column_names[len(LISTING_SCHEMA) :]) == free
    for key in keys & {"x", "text"}:
        assert [value is None for value in listing.column(key).to_pylist()] == [row.get(key) is None for row in rows]


@pytest.mark.parametrize("value", [{"\0": 1}, {"a\0b": [1]}, [{"\0": {"q": 2}}], "a\0b"])
def test_a_zero_byte_travels(tmp_path, value):
    """Polars panics at one in a name: the column becomes JSON text."""
    listing = list_source(write(tmp_path / "m.jsonl", [{"path": "a.wav", "x": value}]))
    (text,) = listing.column("x").to_pylist()
    assert text == value if isinstance(value, str) else json.loads(text) == value
    assert pl.from_arrow(listing).height == 1


def test_a_zero_byte_in_the_name_of_a_column_is_written_out(tmp_path):
    """Beside a column that has that name already, under a free one."""
    rows = [{"path": "a.wav", "b\0": 1, "b\\0": 2}]
    listing = list_source(write(tmp_path / "m.jsonl", rows))
    assert listing.column("manifest_b\\0").to_pylist() == [1]
    assert listing.column("b\\0").to_pylist() == [2]


@pytest.mark.parametrize(("name", "comma"), [("m.csv", ","), ("m.tsv", "\t")])
def test_a_zero_byte_in_the_head_of_a_table_is_written_out(tmp_path, name, comma):
    (tmp_path / name).write_text(f"path{comma}b\0\na.wav{comma}1\n")
    assert list_source(str(tmp_path / name)).column("b\\0").to_pylist() == [1]


def test_nested_columns_keep_their_types(tmp_path):
    """Lists and records, with what single rows lack; what no type fits becomes JSON text."""
    rows = [
        {"path": "a.wav", "words": [{"w": "hi", "t": 0.5}], "mixed": {"a": 1}, "nothing": None},
        {"path": "b.wav", "words": [{"w": "you", "t": 1, "p": 2}], "mixed": "a", "nothing": None},
    ]
    listing = list_source(write(tmp_path / "m.jsonl", rows))
    assert listing.column("words").to_pylist() == [
        [{"w": "hi", "t": 0.5, "p": None}],
        [{"w": "you", "t": 1.0, "p": 2}],
    ]
    assert listing.column("mixed").to_pylist() == ['{"a": 1}', "a"]
    assert listing.column("nothing").to_pylist() == [None, None]


def test_the_first_of_the_keys_names_the_audio(tmp_path):
    """`uri` before `audio_filepath` before `path`; the others travel like any column."""
    row = {"path": "p.wav", "uri": "u.wav", "audio_filepath": "f.wav", "manifest_id": "m", "id": 12}
    listing = list_source(write(tmp_path / "m.jsonl", [row]))
    (found,) = listing.to_pylist()
    assert (found["id"], found["uri"]) == ("12", f"{tmp_path}/u.wav")
    assert {name: found[name] for name in listing.column_names[len(LISTING_SCHEMA) :]} == {
        "path": "p.wav",
        "audio_filepath": "f.wav",
        "manifest_id": "m",
    }


def test_a_column_of_the_datasets_own_is_renamed_even_if_that_name_is_taken(tmp_path):
    """Both columns travel."""
    row = {"path": "p.wav", "num_samples": 1, "manifest_num_samples": 2}
    extra = list_source(write(tmp_path / "m.jsonl", [row])).column_names[len(LISTING_SCHEMA) :]
    assert sorted(extra) == ["manifest_manifest_num_samples", "manifest_num_samples"]


def test_stretches_of_one_file_have_ids_of_their_own(tmp_path):
    """With their seconds; rows of other files keep the plain path, and an id that is given wins."""
    rows = [
        {"path": "./long.wav", "offset": 0, "duration": 10},
        {"path": "long.wav", "offset": 10, "duration": 0.1 + 0.2},
        {"path": "x/../long.wav", "offset": 12.5},
        {"path": "long.wav", "offset": 20, "id": "mine"},
        {"path": "short.wav", "offset": 1, "duration": 2},
    ]
    ids = list_source(write(tmp_path / "m.jsonl", rows)).column("id").to_pylist()
    assert ids == ["long.wav#0-10", "long.wav#10-10.3", "long.wav#12.5-", "mine", "short.wav"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"audio_filepath": "x.wav"', "line 5: not JSON"),
        ("[1, 2]", "line 5: not a JSON object"),
        ('{"text": "no path"}', "line 5: audio_filepath is None"),
        ('{"audio_filepath": "x.wav", "offset": -1}', "line 5: offset is -1"),
        ('{"audio_filepath": "x.wav", "duration": NaN}', "line 5: duration is nan"),
        ('{"audio_filepath": "x.wav", "duration": -0.5}', "line 5: duration is -0.5"),
        ('{"audio_filepath": "x.wav", "duration": "long"}', "line 5: duration is 'long'"),
        ('{"audio_filepath": "https://example.org/x.wav"}', "line 5: https://example.org/x.wav: only local paths"),
        (
            '{"audio_filepath": "2.wav", "offset": 0.5, "duration": 1}',
            r"line 5: the same id as in line 4; 1 ids are not unique \(2.wav#0.5-1.5\)",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    """By its number in the file, empty lines counted, and with what is wrong about it."""
    good = [json.dumps({"audio_filepath": f"{i}.wav", "offset": 0.5, "duration": 1}) for i in range(3)]
    (tmp_path / "m.jsonl").write_text("\n".join([*good[:2], "", good[2], line]) + "\n")
    with pytest.raises(DatasetError, match=rf"m\.jsonl, {reason}"):
        list_source(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.jsonl", b'{"file": "x.wav"}\n', "no column uri, audio_filepath or path"),
        ("m.jsonl", b"", "without rows"),
        ("m.jsonl", b'{"path": 7}', "line 1: path is 7"),
        ("m.jsonl", b'{"path": "caf\xe9"}\n', "line 1: not JSON"),
        ("m.csv", b"file,text\nx.wav,hi\n", "no column uri, audio_filepath or path"),
        ("m.csv", b"path,offset\nx.wav,1\ny.wav,-2\n", "row 2: offset is -2"),
        ("m.csv", b"path,duration\nx.wav,nan\n", "row 1: duration is 'nan'"),
        ("m.csv", b"path,text\nx.wav,hi\n,ho\n", "row 2: path is None"),
        ("m.csv", b"", "not a .csv manifest that can be read"),
        ("m.csv", b"path,text\nx,1,2\n", "not a .csv manifest that can be read"),
        ("m.csv", b"path,text\n", "without rows"),
        ("m.tsv", b"path\tid\nx\t1\ny\t1\n", "row 2: the same id as in row 1"),
        ("m.parquet", b"PAR1 not", "not a Parquet file that can be read"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path, name, content, reason):
    """With its name, and what is wrong with it."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=reason) as caught:
        list_source(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_csv_of_spreadsheets_is_read(tmp_path):
    """With a byte order mark, quotes, line ends of Windows, and empty lines at the end."""
    (tmp_path / "m.csv").write_bytes(b'\xef\xbb\xbfpath,text\r\n"a,b.wav","he said ""no"""\r\nc.wav,\r\n\r\n')
    listing = list_source(tmp_path / "m.csv")
    assert listing.column("id").to_pylist() == ["a,b.wav", "c.wav"]
    assert listing.column("text").to_pylist() == ['he said "no"', None]


def test_a_missing_audio_file_is_listed(tmp_path):
    """It ends as an error row of the job, not as an error before it."""
    (file,) = files_of(list_source(write(tmp_path / "m.jsonl", [{"path": "nowhere.wav"}])))
    assert (file.size, file.start_s, math.isfinite(file.start_s)) == (None, 0.0, True)
