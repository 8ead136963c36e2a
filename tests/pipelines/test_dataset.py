"""Datasets as tables, local and in S3."""

import json

import boto3
import polars as pl
import pytest

from pipelines import open_dataset, storage, tokenize_corpus
from pipelines.dataset import open_errors, query_dataset
from pipelines.dataset_info import read_dataset_info
from tokenizer import DatasetError


@pytest.fixture(scope="module")
def dataset(ray_session, tmp_path_factory, tiny_codec_dir):
    """Two clips and a file that is none."""
    import soundfile

    from tests.conftest import speech_like

    folder = tmp_path_factory.mktemp("dataset")
    for index in range(2):
        soundfile.write(folder / f"{index}.wav", speech_like(0.5, seed=index), 24000)
    (folder / "text.wav").write_text("text")
    tokenize_corpus(folder, folder / "tokens", codec=tiny_codec_dir, progress=False, num_workers=1)
    return folder / "tokens"


def test_a_dataset_opens_lazily(dataset):
    """A LazyFrame over the parts: rows are read when a query asks."""
    tokens = open_dataset(dataset)
    assert isinstance(tokens, pl.LazyFrame)
    assert tokens.select("id").collect()["id"].to_list() == ["0.wav", "1.wav"]


def test_errors_are_a_table_too(dataset, tmp_path):
    """And an empty one where nothing failed."""
    assert open_errors(dataset).collect()["error"].to_list() == ["AudioError"]


def test_sql_sees_tokens_and_errors(dataset):
    """Two tables by name."""
    assert query_dataset(dataset, "SELECT COUNT(*) AS n FROM tokens")["n"].item() == 2
    assert query_dataset(dataset, "SELECT id FROM errors")["id"].to_list() == ["text.wav"]
    for wrong in ("SELEKT 1", "SELECT colour FROM tokens", "SELECT * FROM nothing"):
        with pytest.raises(DatasetError, match="query"):
            query_dataset(dataset, wrong)


def test_what_is_no_dataset_is_said(dataset, tmp_path):
    """A folder without dataset.json, one without parts, a damaged or newer dataset.json."""
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        open_dataset(tmp_path)
    content = (dataset / "dataset.json").read_bytes()
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match="no parts"):
        open_dataset(tmp_path)
    for damaged in (content[:100], b"[]", json.dumps({**json.loads(content), "format": 2}).encode()):
        (tmp_path / "dataset.json").write_bytes(damaged)
        with pytest.raises(DatasetError):
            read_dataset_info(tmp_path)


@pytest.fixture
def bucket(s3_server, ray_session):
    """An empty bucket on the S3 server that the workers know too."""
    storage._s3.cache_clear()
    boto3.client("s3").create_bucket(Bucket="speech")
    yield "s3://speech"
    storage._s3.cache_clear()


def test_s3_is_a_place_like_any_other(bucket, speech_folder, tiny_codec_dir, tmp_path):
    """Audio read from S3, tokens written to S3 and queried there: the codes are those of local files."""
    for path in speech_folder.rglob("*.wav"):
        storage.commit(f"{bucket}/audio/{path.relative_to(speech_folder)}", path.read_bytes())
    settings = {"codec": tiny_codec_dir, "num_workers": 1, "progress": False}
    assert tokenize_corpus(f"{bucket}/audio", f"{bucket}/tokens", **settings).num_ok == 10
    assert tokenize_corpus(f"{bucket}/audio", f"{bucket}/tokens", **settings).num_skipped == 10
    tokenize_corpus(speech_folder, tmp_path / "tokens", **settings)
    there, here = (open_dataset(place).drop("uri").collect() for place in (f"{bucket}/tokens", tmp_path / "tokens"))
    assert there.equals(here)
