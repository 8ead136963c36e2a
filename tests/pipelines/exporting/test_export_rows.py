"""Rows as exports read them: from any row on, in any order, from parts of any making, and from compressed datasets."""

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lm_head import LMCard, LMConfig, TokenLM, compress_many, load_coder, save_lm
from lm_head.lm_training import calibrated_steps
from pipelines import storage
from pipelines.datasets.dataset_info import write_dataset_info
from pipelines.datasets.parts import encode_part, part_name
from pipelines.exporting.export import export_tokens
from pipelines.exporting.export_card import decode_tokens
from pipelines.exporting.export_rows import RowReader
from pipelines.exporting.token_stream import StreamSettings, TokenStream
from tests.pipelines.exports import random_codes, read_exported, rewrite_part, write_small
from tests.pipelines.small_datasets import format_of, info_of
from tests.pipelines.token_rows import token_row
from tokenizer import DatasetError, load_codec

LENGTHS = (5, 1, 9, 12, 3, 7, 2)


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    """Seven rows in two parts, of which the first has two row groups."""
    codes = write_small(tmp_path / "tokens", tiny_codec_dir, LENGTHS)
    rewrite_part(tmp_path / "tokens", 0, lambda table: table)
    return str(tmp_path / "tokens"), codes


@pytest.fixture(scope="module")
def compressed(tiny_codec_dir, tmp_path_factory):
    """Five rows in two parts, one .qtn stream each."""
    folder, codec = tmp_path_factory.mktemp("compressed"), load_codec(tiny_codec_dir)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"codebook_size": 16, "dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32}
        lm = TokenLM(LMConfig(num_codebooks=4, context_frames=10, **sizes)).eval()
        steps = calibrated_steps(lm, torch.randint(0, 16, (4, 4, 50)))
    save_lm(lm, folder / "lm", LMCard("tiny", codec.card()), steps)
    coder, codes = load_coder(str(folder / "lm")), random_codes(LENGTHS[:5])
    lm_info = {"name": "tiny", "identity": coder.identity, "source": str(folder / "lm")}
    info = dataclasses.replace(info_of(codec, tiny_codec_dir, 4), lm=lm_info)
    write_dataset_info(str(folder / "tokens"), info)
    streams = compress_many([torch.from_numpy(each) for each in codes.values()], codec, coder)
    rows = [token_row(name, codes[name], qtn=stream) for name, stream in zip(codes, streams, strict=True)]
    form = dataclasses.replace(format_of(info), compressed=True)
    for number, some in enumerate((rows[:3], rows[3:])):
        storage.commit(storage.join(str(folder / "tokens"), "parts", part_name(number)), encode_part(some, form))
    return str(folder / "tokens"), codes


@pytest.mark.parametrize("kind", ["dataset", "compressed"])
@pytest.mark.parametrize("levels", [1, 4])
def test_rows_from_any_one_on_and_in_any_order(request, kind, levels):
    """Whatever the part's row groups; a reader that was sent to another process reads the same."""
    root, codes = request.getfixturevalue(kind)
    reader = pickle.loads(pickle.dumps(RowReader(root, levels)))  # noqa: S301 - our own
    sizes, names = reader.num_rows(), iter(codes)
    for part, size in enumerate(sizes):
        own = list(itertools.islice(names, size))
        for start in range(size + 1):
            rows = list(reader.rows_of(part, start))
            assert [row.id for row in rows] == own[start:]
        backwards = list(reader.read_part(part).read(range(size - 1, -1, -1)))
        assert [row.id for row in backwards] == own[::-1]
        for row in (*reader.rows_of(part), *backwards):
            assert np.array_equal(row.codes, codes[row.id][:levels])
    assert next(names, None) is None


def test_compressed_datasets_are_exported_and_streamed(compressed, tmp_path):
    """Their codes are those that were compressed."""
    root, codes = compressed
    export_tokens(root, tmp_path, progress=False)
    exported = read_exported(tmp_path, "parquet")
    assert [name for name, _ in exported] == list(codes)
    stream = TokenStream(root, settings=StreamSettings(seed=0))
    streamed = [(item["id"], item["input_ids"]) for item in stream]
    assert sorted(name for name, _ in streamed) == sorted(codes)
    for name, ids in (*exported, *streamed):
        assert np.array_equal(decode_tokens(ids, tmp_path), codes[name])


def test_parts_without_rows_are_passed_over(dataset):
    """A unit may have had errors only."""
    root, codes = dataset
    rewrite_part(root, 0, lambda table: table.slice(0, 0))
    names = list(codes)[4:]
    assert RowReader(root, 4).num_rows() == [0, 3]
    assert [item["id"] for item in TokenStream(root)] == names
    assert sorted(item["id"] for item in TokenStream(root, settings=StreamSettings(seed=0))) == names


def shorter(table):
    column = pa.array([codes[:-1] for codes in table["codes_01"].to_pylist()], pa.list_(pa.uint16()))
    return table.set_column(table.schema.get_field_index("codes_01"), "codes_01", column)


def missing(table):
    column = pa.array([None] * table.num_rows, pa.list_(pa.uint16()))
    return table.set_column(table.schema.get_field_index("codes_01"), "codes_01", column)


def flat(table):
    return table.set_column(table.schema.get_field_index("codes_01"), "codes_01", table["num_frames"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter, "codes_01 does not have as many frames as codes_00"),
        (missing, "codes_01 is missing in some rows"),
        (flat, "codes_01 is int64, not lists"),
        (lambda table: table.drop_columns(["codes_01"]), "lacks codes_01"),
        (lambda table: table.append_column("said", table["num_frames"]), "column 'said' holds"),
    ],
    ids=["shorter", "missing", "flat", "dropped", "numbers for text"],
)
def test_parts_that_say_something_else_are_refused(dataset, change, message):
    """With the part's name, when they are read."""
    root, _ = dataset
    rewrite_part(root, 1, change)
    reader = RowReader(root, 4, "said")
    assert len(list(reader.rows_of(0))) == 4
    with pytest.raises(DatasetError, match=rf"part-00001.parquet.*{message}"):
        list(reader.rows_of(1))
    with pytest.raises(DatasetError, match=message):
        reader.read_part(1)


def test_no_flipped_bit_becomes_a_token(tiny_codec_dir, tmp_path):
    """What is read is checked against the commit records, the footer too."""
    codes = write_small(tmp_path / "tokens", tiny_codec_dir, (900, 700))
    part = tmp_path / "tokens/parts/part-00000.parquet"
    content, rng, found = part.read_bytes(), np.random.default_rng(0), 0
    for place in rng.integers(0, len(content), 60).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        part.write_bytes(damaged)
        try:
            for row in RowReader(tmp_path / "tokens", 4).rows_of(0):
                assert np.array_equal(row.codes, codes[row.id])
        except DatasetError:
            found += 1
    assert found > 30


def test_a_dataset_without_parts_is_refused(dataset):
    """There is nothing to export yet."""
    root, _ = dataset
    for number in (0, 1):
        Path(root, "parts", part_name(number)).unlink()
    with pytest.raises(DatasetError, match="no parts yet"):
        RowReader(root, 4)
