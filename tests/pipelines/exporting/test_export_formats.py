"""Exported files as others read them: Parquet types, tar members without time or owner, Megatron's index."""

import fcntl
import json
import tarfile

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.exporting import megatron_files
from pipelines.exporting.export import export_tokens
from pipelines.exporting.export_card import TokenCard, decode_tokens
from pipelines.exporting.export_parquet import CARD_KEY, ParquetShard
from pipelines.exporting.export_shards import ExportedSequence
from pipelines.exporting.export_tar import TarShard
from pipelines.exporting.megatron_files import MegatronFiles
from tests.pipelines.exports import read_megatron, read_parquet, write_small
from tokenizer import DatasetError

FLAT = [ExportedSequence(n, f"u{n}.wav", np.arange(n, n + length, dtype="<u2")) for n, length in enumerate((3, 1, 5))]
WIDE = [ExportedSequence(n, f"u{n}.wav", np.arange(12, dtype="<i4").reshape(-1, 2) + n) for n in range(3)]


def shard_of(shard, sequences):
    for sequence in sequences:
        shard.add(sequence)
    return shard.content()


@pytest.mark.parametrize(
    ("sequences", "dtype", "num_codebooks", "kind"),
    [(FLAT, "<u2", None, pa.list_(pa.uint16())), (WIDE, "<i4", 2, pa.list_(pa.list_(pa.int32(), 2)))],
    ids=["one sequence", "levels apart"],
)
def test_parquet_has_ids_and_lists_of_integers(tmp_path, monkeypatch, sequences, dtype, num_codebooks, kind):
    """Of the narrowest type, [N] or [N, K], the same by PyArrow and Polars, however many row groups there are."""
    monkeypatch.setattr("pipelines.exporting.export_parquet._ROW_GROUP_IDS", 4)
    path = tmp_path / "tokens-000000.parquet"
    path.write_bytes(shard_of(ParquetShard(np.dtype(dtype), num_codebooks, "{}"), sequences))
    assert pq.read_schema(path).field("input_ids").type.equals(kind)
    assert pq.read_metadata(path).num_row_groups > 1
    expected = [(sequence.id, sequence.ids.tolist()) for sequence in sequences]
    assert [(name, ids.tolist()) for name, ids in read_parquet(tmp_path)] == expected
    rows = pl.read_parquet(path).rows()
    assert [(name, np.array(ids).tolist()) for name, ids in rows] == expected


def test_one_parquet_file_alone_can_be_turned_back(tiny_codec_dir, tmp_path):
    """The card stands in its metadata."""
    codes = write_small(tmp_path / "tokens", tiny_codec_dir, (5,))
    export_tokens(tmp_path / "tokens", tmp_path / "out", progress=False)
    path = tmp_path / "out/tokens-000000.parquet"
    card = TokenCard.from_json(pq.read_schema(path).metadata[CARD_KEY])
    ids = pq.read_table(path).column("input_ids")[0].as_py()
    assert np.array_equal(decode_tokens(ids, card), next(iter(codes.values())))


def test_tars_have_no_time_and_no_owner(tmp_path):
    """So the same sequences give the same bytes, on any machine."""
    content = shard_of(TarShard(), WIDE)
    assert content == shard_of(TarShard(), WIDE)
    (tmp_path / "shard.tar").write_bytes(content)
    with tarfile.open(tmp_path / "shard.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:2]] == ["000000000000.npy", "000000000000.json"]
        facts = json.load(tar.extractfile("000000000002.json"))
    assert facts == {"id": "u2.wav", "shape": [6, 2]}
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }


def test_webdataset_reads_the_tars(tmp_path):
    """Its own reader finds ids and facts under one key."""
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "shard.tar").write_bytes(shard_of(TarShard(), FLAT))
    samples = list(webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == [sequence.id for sequence in FLAT]
    assert all(np.array_equal(sample["npy"], sequence.ids) for sample, sequence in zip(samples, FLAT, strict=True))


@pytest.mark.parametrize("at_a_time", [1, 2, 100])
def test_megatron_index_says_where_every_sequence_is(tmp_path, monkeypatch, at_a_time):
    """However many lengths fit into memory at once; every sequence is a document."""
    monkeypatch.setattr(megatron_files, "_LENGTHS_AT_A_TIME", at_a_time)
    target = MegatronFiles(str(tmp_path), np.dtype("<u2"))
    target.resume(None)
    for sequence in FLAT:
        target.add(sequence)
    target.commit(0)
    target.finish()
    assert [ids.tolist() for _, ids in read_megatron(tmp_path)] == [sequence.ids.tolist() for sequence in FLAT]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.bin", "tokens.idx"]


def test_the_index_of_a_small_file_byte_by_byte(tmp_path):
    """As Megatron-LM writes it for two sequences of 2 and 1 ids in uint16."""
    target = MegatronFiles(str(tmp_path), np.dtype("<u2"))
    target.resume(None)
    for ids in ([7, 8], [9]):
        target.add(ExportedSequence(0, "u", np.array(ids, "<u2")))
    target.commit(0)
    target.finish()
    header = b"MMIDIDX\x00\x00" + b"\x01" + bytes(7) + b"\x08" + b"\x02" + bytes(7) + b"\x03" + bytes(7)
    lengths = b"\x02\x00\x00\x00\x01\x00\x00\x00"
    pointers = bytes(8) + b"\x04" + bytes(7)
    documents = bytes(8) + b"\x01" + bytes(7) + b"\x02" + bytes(7)
    assert (tmp_path / "tokens.idx").read_bytes() == header + lengths + pointers + documents
    assert (tmp_path / "tokens.bin").read_bytes() == b"\x07\x00\x08\x00\x09\x00"


def test_two_writers_of_one_megatron_file(tmp_path):
    """The second one is told: both would append."""
    MegatronFiles(str(tmp_path), np.dtype("<u2")).resume(None)
    with (tmp_path / "tokens.bin.unfinished").open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(DatasetError, match="another export is writing"):
            MegatronFiles(str(tmp_path), np.dtype("<u2")).resume(None)
