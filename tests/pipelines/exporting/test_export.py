"""The export for language models: every row once and in order, in any format, resumed to the very same bytes."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_head.layouts import LAYOUTS
from pipelines import storage
from pipelines.exporting.export import export_tokens
from pipelines.exporting.export_card import decode_tokens
from pipelines.exporting.export_sequences import SequenceSettings
from tests.pipelines.exports import bytes_below, read_exported, write_small
from tokenizer import DatasetError

LENGTHS = (5, 1, 9, 12, 3, 7, 2, 8, 6, 4)
ONE_SEQUENCE = ("flatten", "coarse_first")


@pytest.fixture(scope="module")
def dataset(tiny_codec_dir, tmp_path_factory):
    """Ten utterances in three parts."""
    root = tmp_path_factory.mktemp("export") / "tokens"
    return str(root), write_small(root, tiny_codec_dir, LENGTHS)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("file_format", ["parquet", "webdataset", "megatron"])
def test_what_is_exported_gives_the_codes_back(dataset, tmp_path, layout, file_format):
    """Of every row, once and in order, by the card that lies beside; Megatron takes one sequence only."""
    root, codes = dataset
    settings = SequenceSettings(layout=layout)
    if file_format == "megatron" and layout not in ONE_SEQUENCE:
        with pytest.raises(ValueError, match="flatten or coarse_first"):
            export_tokens(root, tmp_path, settings, file_format=file_format)
        assert not list(tmp_path.iterdir())
        return
    done = export_tokens(root, tmp_path, settings, file_format=file_format, shard_bytes=300, progress=False)
    rows = read_exported(tmp_path, file_format)
    assert len(rows) == len(codes) == done.totals.sequences
    for (name, ids), (expected_name, expected) in zip(rows, codes.items(), strict=True):
        assert name in (expected_name, None)
        assert np.array_equal(decode_tokens(ids, tmp_path), expected)
    assert done.totals.tokens == sum(ids.size for _, ids in rows)
    assert done.card.totals["sequences"] == len(codes)


def test_fewer_levels_by_number_or_by_bandwidth(dataset, tmp_path):
    """The coarsest ones, and the same files either way."""
    root, codes = dataset
    level_kbps = 24000 / 8 * 4 / 1000
    by_number = SequenceSettings(num_codebooks=2)
    export_tokens(root, tmp_path / "number", by_number, progress=False)
    export_tokens(root, tmp_path / "kbps", SequenceSettings(bandwidth_kbps=2 * level_kbps), progress=False)
    assert bytes_below(tmp_path / "number") == bytes_below(tmp_path / "kbps")
    for (_, ids), expected in zip(read_exported(tmp_path / "kbps", "parquet"), codes.values(), strict=True):
        assert np.array_equal(decode_tokens(ids, tmp_path / "kbps"), expected[:2])


def killed_after(monkeypatch, commits):
    """Storage that dies instead of its commit number `commits`."""
    done, commit = [], storage.commit

    def dying(uri, content):
        if len(done) == commits:
            raise KeyboardInterrupt
        done.append(uri)
        commit(uri, content)

    monkeypatch.setattr(storage, "commit", dying)


@pytest.mark.parametrize("file_format", ["parquet", "webdataset", "megatron"])
def test_a_killed_export_goes_on_to_the_same_bytes(dataset, tmp_path, file_format):
    """Wherever it died: before the card, between a shard and its record, before the last word."""
    root, _ = dataset
    settings = SequenceSettings(layout="flatten")
    once = tmp_path / "once"
    export_tokens(root, once, settings, file_format=file_format, shard_bytes=100, progress=False)
    expected, commits = bytes_below(once), 0
    while True:
        again = tmp_path / f"again{commits}"
        with pytest.MonkeyPatch.context() as patch:
            killed_after(patch, commits)
            try:
                export_tokens(root, again, settings, file_format=file_format, shard_bytes=100, progress=False)
                break
            except KeyboardInterrupt:
                pass
        export_tokens(root, again, settings, file_format=file_format, shard_bytes=100, progress=False)
        assert bytes_below(again) == expected
        commits += 1
    assert commits > 6


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["parquet", "webdataset", "megatron"])
def test_an_export_survives_sigkill(tiny_codec_dir, tmp_path, file_format):
    """Killed five times at random moments, it ends with the bytes of an undisturbed one."""
    root, rng = tmp_path / "tokens", np.random.default_rng(0)
    write_small(root, tiny_codec_dir, rng.integers(50, 100, 400).tolist(), rows_per_part=50)
    arguments = {"file_format": file_format, "shard_bytes": 2000, "progress": False}
    export_tokens(root, tmp_path / "once", **arguments)
    code = (
        "import sys; from pipelines.exporting.export import export_tokens; print('ready', flush=True); "
        f"export_tokens({str(root)!r}, {str(tmp_path / 'out')!r}, **{arguments!r})"
    )
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as job:
            job.stdout.readline()
            time.sleep(rng.uniform(0.05, 0.4))
            job.kill()
    export_tokens(root, tmp_path / "out", **arguments)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "once")


def test_megatron_files_may_be_cut_anywhere(dataset, tmp_path):
    """What was appended behind the last record is cut off; an export that died while finishing finishes."""
    root, _ = dataset
    settings = SequenceSettings(layout="flatten")
    arguments = {"file_format": "megatron", "shard_bytes": 100, "progress": False}
    export_tokens(root, tmp_path / "once", settings, **arguments)
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            export_tokens(root, tmp_path / "out", settings, **arguments)
    for name in ("tokens.bin.unfinished", "tokens.lengths.unfinished"):
        with (tmp_path / "out" / name).open("ab") as file:
            file.write(b"\x01\x02\x03")
    export_tokens(root, tmp_path / "out", settings, **arguments)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "once")
    card = json.loads((tmp_path / "out/tokens.json").read_text()) | {"totals": None}
    (tmp_path / "out/tokens.json").write_text(json.dumps(card))
    export_tokens(root, tmp_path / "out", settings, **arguments)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "once")


def test_a_finished_export_is_left_alone(dataset, tmp_path):
    """The same command again says what is there and writes nothing."""
    root, _ = dataset
    first = export_tokens(root, tmp_path, progress=False)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = export_tokens(root, tmp_path, progress=False)
    assert (again.totals, again.num_new_tokens) == (first.totals, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": SequenceSettings(layout="delay")}, "layout: flatten there, delay asked for"),
        ({"settings": SequenceSettings(num_codebooks=3)}, "num_codebooks: 4 there, 3 asked for"),
        ({"settings": SequenceSettings(offset=9)}, "offset: 0 there, 9 asked for"),
        ({"file_format": "webdataset"}, "format: parquet there, webdataset asked for"),
        ({"shard_bytes": 77}, "shard_bytes: 134217728 there, 77 asked for"),
    ],
    ids=str,
)
def test_another_export_is_not_touched(dataset, tmp_path, change, message):
    """It is refused, with the difference."""
    root, _ = dataset
    export_tokens(root, tmp_path, progress=False)
    before = bytes_below(tmp_path)
    with pytest.raises(DatasetError, match=message):
        export_tokens(root, tmp_path, **change, progress=False)
    assert bytes_below(tmp_path) == before


def test_a_dataset_that_has_grown_is_another_one(dataset, tmp_path):
    """An export is of the parts that it began with."""
    root, _ = dataset
    copy = Path(shutil.copytree(root, tmp_path / "tokens"))
    export_tokens(copy, tmp_path / "out", progress=False)
    shutil.copy(copy / "parts/part-00000.parquet", copy / "parts/part-00003.parquet")
    with pytest.raises(DatasetError, match="parts: 3 there, 4 asked for"):
        export_tokens(copy, tmp_path / "out", progress=False)


@pytest.mark.parametrize("gone", ["tokens-000000.parquet", "records/000000.json"])
def test_what_is_gone_is_missed(dataset, tmp_path, gone):
    """An export is not continued around a hole."""
    root, _ = dataset
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            export_tokens(root, tmp_path, shard_bytes=100, progress=False)
    (tmp_path / gone).unlink()
    with pytest.raises(DatasetError, match=f"{gone} is gone"):
        export_tokens(root, tmp_path, shard_bytes=100, progress=False)


def test_a_directory_with_other_things_is_refused(dataset, tmp_path):
    """An export does not mix with what somebody else has there."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"notes.txt, and no export"):
        export_tokens(dataset[0], tmp_path, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"num_codebooks": 5}}, "5 codebooks: the dataset stores 4"),
        ({"settings": {"bandwidth_kbps": 13}}, "bandwidth 13 kbps"),
        ({"settings": {"special_tokens": {"padding": 3}}}, "3 is one of the audio ids"),
        ({"settings": {"special_tokens": {"pad": 300}}}, "'pad' is not one of"),
        ({"file_format": "hdf5"}, "parquet, webdataset, megatron"),
        ({"shard_bytes": 0}, "at least 1 byte"),
        ({"out": "s3://bucket/out", "file_format": "megatron"}, "local directory"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_written(dataset, tmp_path, arguments, message):
    """ValueErrors that say what is allowed."""
    arguments = {"out": tmp_path / "out", **arguments}
    settings = SequenceSettings(**arguments.pop("settings", {}))
    with pytest.raises(ValueError, match=message):
        export_tokens(dataset[0], settings=settings, progress=False, **arguments)
    assert not (tmp_path / "out").exists()


def test_rows_without_frames_are_counted(tiny_codec_dir, tmp_path):
    """They are no sequence; where there is nothing else, that is an error."""
    write_small(tmp_path / "some", tiny_codec_dir, (0, 3, 0))
    done = export_tokens(tmp_path / "some", tmp_path / "out", progress=False)
    assert (done.totals.rows, done.totals.sequences, done.totals.without_frames) == (3, 1, 2)
    write_small(tmp_path / "none", tiny_codec_dir, (0, 0))
    with pytest.raises(DatasetError, match="of 2 rows 2 have no frames"):
        export_tokens(tmp_path / "none", tmp_path / "out2", progress=False)


def test_codes_out_of_range_name_their_row(tiny_codec_dir, tmp_path):
    """A damaged dataset is an error, not tokens of something else."""
    codes = write_small(tmp_path / "tokens", tiny_codec_dir, (3, 4))
    del codes
    part = tmp_path / "tokens/parts/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(DatasetError, match=r"part-00000.parquet: damaged"):
        export_tokens(tmp_path / "tokens", tmp_path / "out", progress=False)


def test_bare_audio_is_codes_alone(dataset, tmp_path):
    """No special ids, as some trainers put in their own; the card still turns them back."""
    root, codes = dataset
    export_tokens(root, tmp_path, SequenceSettings(bare=True, offset=7), progress=False)
    rows = read_exported(tmp_path, "parquet")
    assert [len(ids) for _, ids in rows] == [4 * length for length in LENGTHS]
    assert all(np.array_equal(decode_tokens(ids, tmp_path), codes[name]) for name, ids in rows)


def test_large_vocabularies_have_wide_ids(dataset, tmp_path):
    """int32 from 65,500 ids on, the line that Megatron draws."""
    root, codes = dataset
    for offset, dtype in ((65500 - 70, "uint16"), (65500 - 69, "int32")):
        out = tmp_path / dtype
        done = export_tokens(root, out, SequenceSettings(offset=offset), file_format="megatron", progress=False)
        assert done.card.files["dtype"] == dtype
        ids = [ids for _, ids in read_exported(out, "megatron")]
        assert ids[0].dtype == dtype
        assert np.array_equal(decode_tokens(ids[0], out), next(iter(codes.values())))


def test_s3_and_local_give_the_same_bytes(dataset, tmp_path, bucket):
    """From S3 to S3, killed in between, or on the local disk."""
    root, _ = dataset
    for name, content in bytes_below(root).items():
        storage.commit(f"{bucket}/tokens{name}", content)
    for file_format in ("parquet", "webdataset"):
        export_tokens(root, tmp_path / file_format, file_format=file_format, shard_bytes=300, progress=False)
        arguments = {"file_format": file_format, "shard_bytes": 300, "progress": False}
        with pytest.MonkeyPatch.context() as patch:
            killed_after(patch, 4)
            with pytest.raises(KeyboardInterrupt):
                export_tokens(f"{bucket}/tokens", f"{bucket}/{file_format}", **arguments)
        export_tokens(f"{bucket}/tokens", f"{bucket}/{file_format}", **arguments)
        assert bytes_below(f"{bucket}/{file_format}") == bytes_below(tmp_path / file_format)
    assert torch.equal(
        decode_tokens(read_exported(tmp_path / "webdataset", "webdataset")[0][1], f"{bucket}/webdataset"),
        decode_tokens(read_exported(tmp_path / "parquet", "parquet")[0][1], tmp_path / "parquet"),
    )
