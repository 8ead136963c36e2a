"""`quantone verify`: whatever is wrong with a dataset is found, named, and comes with what to do."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from pipelines.commands.cli_verify import verify
from pipelines.datasets import parts
from pipelines.datasets.commit_record import read_record, record_name, record_of
from pipelines.datasets.dataset_info import read_dataset_info, write_dataset_info
from pipelines.datasets.parts import ErrorRow
from pipelines.datasets.verify import verify_dataset
from tests.pipelines.datasets.damage import INFO, SPEC, flip_bit, part_of, record_of_unit, write_small
from tests.pipelines.small_datasets import write_unit, write_units
from tests.pipelines.token_rows import token_row
from tokenizer import DatasetError


@pytest.fixture
def dataset(tmp_path):
    """Three parts of three rows, and one error."""
    return write_small(tmp_path / "tokens")


def lines(dataset):
    """The problems of a dataset."""
    return [str(problem) for problem in verify_dataset(dataset).problems]


def row(name, frames=5, **fields):
    """A row of zeros."""
    return token_row(name, np.zeros((4, frames), np.int64), **fields)


def test_a_good_dataset_has_no_problems(dataset):
    """And the counts are those of the dataset."""
    found = verify_dataset(dataset, num_threads=1)
    assert (found.ok, found.problems) == (True, ())
    assert (found.num_units, found.num_parts, found.num_rows, found.num_errors) == (3, 3, 9, 1)
    assert found.audio_seconds == pytest.approx(9 * 40 * SPEC.hop_length / SPEC.sample_rate)
    files = [path for kind in ("parts", "errors") for path in (dataset / kind).iterdir()]
    assert found.num_bytes == sum(path.stat().st_size for path in files)
    assert json.loads(found.to_json())["ok"] is True


def test_every_flipped_bit_of_a_part_is_found(tmp_path):
    """400 of them, the harmless ones too; each problem names the part."""
    dataset = write_small(tmp_path, num_units=1, errors=False)
    part, rng = part_of(dataset), random.Random(0)  # noqa: S311 - not a secret
    content = part.read_bytes()
    for _ in range(400):
        flip_bit(part, rng.randrange(len(content)), rng.randrange(8))
        (problem,) = verify_dataset(dataset, num_threads=1).problems
        assert problem.where == "parts/part-00000.parquet"
        assert "damaged" in problem.what
        assert "quantone tokenize" in problem.remedy
        part.write_bytes(content)


@pytest.mark.parametrize("name", ["errors/part-00000.parquet", "plan.parquet", "record", "part of unit 1"])
def test_flipped_bits_of_other_files_are_found(dataset, name):
    """Errors, plan and records are hashed, too."""
    named = {"record": record_of_unit(dataset, 1), "part of unit 1": part_of(dataset, 1)}
    path, rng = named.get(name, dataset / name), random.Random(name)  # noqa: S311 - not a secret
    content = path.read_bytes()
    for _ in range(25):
        flip_bit(path, rng.randrange(len(content)), rng.randrange(8))
        assert [line for line in lines(dataset) if line.startswith(path.relative_to(dataset).as_posix())]
        path.write_bytes(content)


def test_a_unit_that_is_not_done_is_to_be_resumed(dataset):
    """No part and no record: the job has not come to it yet."""
    record_of_unit(dataset, 2).unlink()
    part_of(dataset, 2).unlink()
    (line,) = lines(dataset)
    assert line.startswith(
        "parts/: 1 of 3 units are not finished (part-00002.parquet); run the same `quantone tokenize`"
    )
    assert verify_dataset(dataset).num_parts == 2


def test_a_part_that_was_recorded_and_is_gone_is_lost(dataset):
    """The record tells it from one that was never done."""
    part_of(dataset, 1).unlink()
    (line,) = lines(dataset)
    assert line.startswith("parts/part-00001.parquet: it is recorded, but not there")


def test_foreign_and_left_over_files_are_named(dataset):
    """What no unit of the plan has written, wherever it lies."""
    foreign = [
        "parts/notes.txt",
        "parts/part-0001.parquet",
        "parts/.quantone-tmp-1",
        "records/x.json",
        ".quantone-tmp-2",
    ]
    for name in (*foreign, "parts/part-00009.parquet", "errors/part-00008.parquet"):
        (dataset / name).write_bytes(b"x")
    shutil.copy(record_of_unit(dataset), dataset / "records" / "part-00007.0123456789abcdef.json")
    beyond = ["parts/part-00009.parquet", "errors/part-00008.parquet", "records/part-00007.0123456789abcdef.json"]
    found = {problem.where: str(problem) for problem in verify_dataset(dataset).problems}
    assert set(found) == {*foreign, *beyond}
    assert "killed writer" in found["parts/.quantone-tmp-1"]
    assert "the plan has no unit 9" in found["parts/part-00009.parquet"]


def test_swapped_parts_are_told_apart_from_damaged_ones(dataset):
    """Each holds what another unit committed."""
    one, two = part_of(dataset, 1), part_of(dataset, 2)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    found = lines(dataset)
    assert [line.split(";")[0] for line in found] == [
        "parts/part-00001.parquet: it is the part of unit 2, not of unit 1",
        "parts/part-00002.parquet: it is the part of unit 1, not of unit 2",
    ]


@pytest.mark.parametrize("size", [0, 3, 500, -1])
def test_a_truncated_part_is_damaged(dataset, size):
    """To nothing, to less than a footer, by one byte."""
    part = part_of(dataset, 1)
    part.write_bytes(part.read_bytes()[:size])
    (line,) = lines(dataset)
    assert line.startswith("parts/part-00001.parquet: it is damaged")


def test_a_part_without_a_record_is_not_of_this_job(dataset):
    """Others have one."""
    record_of_unit(dataset, 1).unlink()
    (line,) = lines(dataset)
    assert "parts/part-00001.parquet: it has no commit record" in line


def test_errors_must_be_those_of_the_part(dataset):
    """Lost, or of an attempt that came to nothing."""
    errors = dataset / "errors" / "part-00000.parquet"
    shutil.copy(errors, dataset / "errors" / "part-00001.parquet")
    errors.unlink()
    first, second = lines(dataset)
    assert first.startswith("errors/part-00000.parquet: it is lost, with 1 errors; delete parts/part-00000.parquet")
    assert second.startswith("errors/part-00001.parquet: the unit committed no errors")


def test_lost_and_repeated_inputs_are_found(dataset):
    """Parts that are whole in themselves, and not what the plan says."""
    part_of(dataset, 0).unlink()
    record_of_unit(dataset, 0).unlink()
    errors = [ErrorRow(name, "/x", "AudioError", "empty") for name in ("0/1.wav", "0/bad.wav")]
    write_unit(dataset, INFO, 0, [row("0/0.wav"), row("0/1.wav"), row("9/9.wav")], errors)
    found = [line.split(";")[0].removeprefix("parts/part-00000.parquet: ") for line in lines(dataset)]
    assert found == [
        "'0/2.wav' is neither in its rows nor in its errors",
        "'0/1.wav' is in its rows and in its errors",
        "'9/9.wav' is there, but is not of this unit",
    ]


def test_an_id_in_two_parts_is_found_without_a_plan(dataset):
    """The plan may be lost; rows of one id still cannot both be right."""
    (dataset / "plan.parquet").unlink()
    part_of(dataset, 2).unlink()
    record_of_unit(dataset, 2).unlink()
    write_unit(dataset, INFO, 2, [row("1/1.wav"), row("2/2.wav")])
    found = lines(dataset)
    assert found[0].startswith("plan.parquet: it is missing")
    assert [line.split(";")[0] for line in found[1:]] == [
        "parts/: rows of the same id are in part-00001.parquet, part-00002.parquet",
        "parts/: inputs of the same id are in part-00001.parquet, part-00002.parquet",
    ]


def segment(number, start, frames=5, name="a.wav"):
    """A segment of an input."""
    return row(f"{name}#{number:04d}", frames, input_id=name, start_sample=start)


def test_segments_make_up_their_input(tmp_path):
    """One after another, none missing and none there twice."""
    size = 5 * SPEC.hop_length
    write_units(tmp_path / "good", INFO, [[segment(0, 0), segment(1, size), row("b.wav")]])
    assert lines(tmp_path / "good") == []
    broken = {
        "gap": [segment(0, 0), segment(1, size + 1)],
        "missing": [segment(0, 0), segment(2, size)],
        "twice": [segment(0, 0), segment(0, 0)],
        "beginning": [segment(1, size)],
        "apart": [segment(0, 0), row("b.wav"), segment(1, size)],
    }
    for name, rows in broken.items():
        write_units(tmp_path / name, INFO, [rows])
        assert [line for line in lines(tmp_path / name) if line.startswith("parts/part-00000.parquet: ")], name


BAD_ROWS = {
    "code": (
        token_row("a", np.full((4, 5), SPEC.codebook_size)),
        "codes_00, codes_01, codes_02, codes_03 are beyond the codebook",
    ),
    "frames": (row("a"), "codes_03 is not as long as num_frames says"),
    "codec": (row("a"), "it was made with codec 'other'"),
    "columns": (row("a"), "it lacks codes_03"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_rows_that_cannot_be_of_this_codec_are_found(tmp_path, kind, monkeypatch):
    """Well written, recorded, and wrong: codes out of range, ragged levels, another codec, fewer levels."""
    bad, message = BAD_ROWS[kind]
    write_units(tmp_path, INFO, [[row("a")], [row("b")]])
    part_of(tmp_path, 0).unlink()
    record_of_unit(tmp_path, 0).unlink()
    info = INFO
    if kind == "codec":
        info = dataclasses.replace(INFO, codec={**INFO.codec, "name": "other"})
    elif kind == "columns":
        info = dataclasses.replace(INFO, num_codebooks=3)
    elif kind == "frames":
        whole = parts._list_array
        calls = []

        def ragged(rows, item):
            calls.append(item)
            return whole([codes[:-1] for codes in rows] if len(calls) == 4 else rows, item)

        monkeypatch.setattr(parts, "_list_array", ragged)
    write_unit(tmp_path, info, 0, [bad])
    (line,) = lines(tmp_path)
    assert line.startswith(f"parts/part-00000.parquet: {message}")


def test_a_part_with_columns_of_its_own_is_found_without_a_plan(dataset):
    """Nothing says then which columns travel, but all parts have the same ones."""
    (dataset / "plan.parquet").unlink()
    table = pq.read_table(part_of(dataset, 2))
    pq.write_table(table.append_column("speaker", pa.array(["x"] * 3)), part_of(dataset, 2))
    content = part_of(dataset, 2).read_bytes()
    record = record_of(content, 3, None, 0, 1.0)
    record_of_unit(dataset, 2).unlink()
    (dataset / "records" / record_name(2, record.part.sha256)).write_text(record.to_json())
    assert [line.split(":")[0] for line in lines(dataset)] == ["plan.parquet", "parts/part-00002.parquet"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 3}', b"\xff\xfe", None])
def test_a_damaged_dataset_json_is_a_problem_like_others(dataset, content):
    """Bytes are still checked against the records."""
    flip_bit(part_of(dataset, 1), 100)
    if content is None:
        (dataset / "dataset.json").unlink()
    else:
        (dataset / "dataset.json").write_bytes(content)
    first, second = lines(dataset)
    assert first.startswith("dataset.json: ")
    assert second.startswith("parts/part-00001.parquet: it is damaged")


def test_a_dataset_json_of_another_dataset_does_not_fit(dataset):
    """Its plan and its codec are not these."""
    info = read_dataset_info(dataset)
    other = dataclasses.replace(info, codec=info.codec | {"name": "mini"})
    write_dataset_info(str(dataset), other)
    assert all("codec 'tiny'" in line for line in lines(dataset))
    assert len(lines(dataset)) == 3


def test_datasets_of_version_0_1_are_checked_as_far_as_they_can_be(dataset):
    """Without records: one line says so, and page checksums find most of the damage."""
    chunk = read_record(str(record_of_unit(dataset, 1))).part.chunks["codes_03"][0]
    shutil.rmtree(dataset / "records")
    (line,) = lines(dataset)
    assert line.startswith("records/: there are no commit records")
    flip_bit(part_of(dataset, 1), chunk.offset + chunk.num_bytes - 3)
    assert lines(dataset)[1].startswith("parts/part-00001.parquet: it is damaged, or not a part")


def test_what_is_no_dataset_is_an_error(tmp_path):
    """Nothing there to be verified."""
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        verify_dataset(tmp_path)


def test_the_command_says_it_by_its_exit_code(dataset):
    """0 and a summary; 1 and a line for each problem; JSON for machines."""
    app = typer.Typer()
    app.command()(verify)
    run = CliRunner().invoke(app, [str(dataset)])
    assert run.exit_code == 0
    assert "3 of 3 parts, 9 rows, 1 errors" in run.stdout
    assert "nothing is wrong" in run.stdout
    assert CliRunner().invoke(app, [str(dataset), "--quiet"]).stdout == ""
    flip_bit(part_of(dataset, 1), 100)
    run = CliRunner().invoke(app, [str(dataset), "-q"])
    assert run.exit_code == 1
    assert run.stdout.startswith("parts/part-00001.parquet: it is damaged")
    run = CliRunner().invoke(app, [str(dataset), "--json"])
    assert run.exit_code == 1
    assert [problem["where"] for problem in json.loads(run.stdout)["problems"]] == ["parts/part-00001.parquet"]


def test_datasets_in_s3_are_verified_in_place(bucket, tmp_path):
    """The same findings as of a local one."""
    import s3fs

    local, remote = write_small(tmp_path / "tokens"), s3fs.S3FileSystem()
    remote.put(f"{local}/", f"{bucket}/tokens/", recursive=True)
    assert verify_dataset(f"{bucket}/tokens").ok
    remote.pipe_file(f"{bucket}/tokens/parts/part-00001.parquet", part_of(local, 2).read_bytes())
    remote.pipe_file(f"{bucket}/tokens/parts/notes.txt", b"x")
    assert sorted(problem.where for problem in verify_dataset(f"{bucket}/tokens").problems) == [
        "parts/notes.txt",
        "parts/part-00001.parquet",
    ]
