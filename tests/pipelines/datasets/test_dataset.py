"""Datasets as tables: lazy, complete, and honest about what is missing."""

import re

import numpy as np
import polars as pl
import pytest

from pipelines import storage
from pipelines.datasets.dataset import list_parts, open_dataset, open_errors, query_dataset
from pipelines.datasets.dataset_info import DatasetInfo, read_dataset_info, write_dataset_info
from pipelines.datasets.parts import ErrorRow, encode_errors, encode_part, part_name
from tests.conftest import tiny_spec
from tests.pipelines.small_datasets import format_of
from tests.pipelines.token_rows import token_row
from tokenizer import DatasetError

SPEC = tiny_spec()
INFO = DatasetInfo(
    codec={"name": "tiny", "sha256": "0" * 64, "source": "tiny", "spec": SPEC.to_dict()},
    bandwidth_kbps=SPEC.bandwidth_kbps,
    num_codebooks=4,
    resampler="sinc",
    plan_sha256="1" * 64,
)


def write_dataset(root, num_parts=2):
    """Two rows a part and one error in all."""
    write_dataset_info(str(root), INFO)
    for unit in range(num_parts):
        rows = [token_row(f"{unit}/{i}.wav", np.full((4, 5), i)) for i in range(2)]
        storage.commit(storage.join(str(root), "parts", part_name(unit)), encode_part(rows, format_of(INFO)))
    errors = encode_errors([ErrorRow("bad.wav", "/x/bad.wav", "AudioError", "empty")])
    storage.commit(storage.join(str(root), "errors", part_name(0)), errors)
    return root


@pytest.fixture
def dataset(tmp_path):
    """In a directory whose name looks like a pattern."""
    return write_dataset(tmp_path / "to[k]ens*")


def test_a_dataset_is_a_lazy_frame_over_all_parts(dataset):
    """Nothing is read before a query asks; the order is that of the parts."""
    frame = open_dataset(dataset)
    assert isinstance(frame, pl.LazyFrame)
    assert frame.select("id").collect()["id"].to_list() == ["0/0.wav", "0/1.wav", "1/0.wav", "1/1.wav"]
    assert re.search(r"PROJECT 1/\d+ COLUMNS", frame.select("id").explain())
    assert re.search(r"PROJECT 1/\d+ COLUMNS", open_dataset(dataset, verify=False).select("id").explain())


def test_what_is_not_a_committed_part_is_not_read(dataset):
    """Another program's files, or what a killed writer left."""
    (dataset / "parts" / ".quantone-tmp-1").write_bytes(b"half")
    (dataset / "parts" / "notes.txt").write_bytes(b"text")
    assert list_parts(dataset) == ["part-00000.parquet", "part-00001.parquet"]
    assert open_dataset(dataset).collect().height == 4


def test_errors_are_a_table_even_where_there_are_none(dataset):
    """The same columns, no rows."""
    assert open_errors(dataset).collect().row(0) == ("bad.wav", "/x/bad.wav", "AudioError", "empty")
    (dataset / "errors" / "part-00000.parquet").unlink()
    empty = open_errors(dataset).collect()
    assert (empty.columns, empty.height) == (["id", "uri", "error", "message"], 0)


@pytest.mark.parametrize("table", ["tokens", "dataset"])
def test_sql_knows_tokens_and_errors(dataset, table):
    """Both names of the rows, and the errors beside them."""
    assert query_dataset(dataset, f"SELECT SUM(num_frames) FROM {table} WHERE id LIKE '0/%'").item() == 10  # noqa: S608
    assert query_dataset(dataset, "SELECT error FROM errors").item() == "AudioError"


@pytest.mark.parametrize(
    "sql", ["SELEKT", "SELECT nothing FROM tokens", "SELECT * FROM elsewhere", "", "DROP TABLE tokens; x"]
)
def test_wrong_sql_is_an_error_of_ours(dataset, sql):
    """One that the command line can show in a line."""
    with pytest.raises(DatasetError, match="query"):
        query_dataset(dataset, sql)


def test_what_is_no_dataset_says_so(tmp_path):
    """Nothing there, a file, no parts yet, or a dataset.json that is damaged or of another format."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        with pytest.raises(DatasetError, match=r"no dataset\.json"):
            open_dataset(path)
    write_dataset_info(str(tmp_path), INFO)
    with pytest.raises(DatasetError, match="no parts"):
        open_dataset(tmp_path)
    for content, reason in (("{", "damaged"), ("[]", "damaged"), ('{"format": 2}', "format 2"), ("{}", "damaged")):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(DatasetError, match=reason):
            read_dataset_info(tmp_path)


def test_dataset_json_survives_and_gets_its_stamp(tmp_path):
    """What was written is what is read; time and software version are added."""
    written = write_dataset_info(str(tmp_path), INFO)
    assert read_dataset_info(tmp_path) == written
    assert written.created_at.endswith("+00:00")
    assert written.software_version
    assert written.describe_difference(INFO) is None


def test_datasets_in_s3_are_read_in_place(bucket):
    """Rows, errors and SQL."""
    dataset = write_dataset(f"{bucket}/tokens")
    assert open_dataset(dataset).select(pl.len()).collect().item() == 4
    assert query_dataset(dataset, "SELECT COUNT(*) FROM errors").item() == 1
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        open_dataset(f"{bucket}/nothing")
