"""The decode job: what a dataset holds becomes files again, inside one folder and nowhere else."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipelines.datasets.stored_codes import level_bytes, read_utterances
from pipelines.decoding.decode_job import decode_dataset, output_paths
from tests.conftest import make_codec, speech_like, tiny_spec
from tests.pipelines.small_datasets import write_dataset
from tokenizer import DatasetError, Encoded, load_codec, read_audio, save_codec

WAVEFORMS = {f"speaker{index % 3}/clip{index}.wav": speech_like(0.2 + 0.05 * index, seed=index) for index in range(10)}


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    """Ten utterances in three parts, all four levels."""
    write_dataset(tmp_path / "tokens", tiny_codec_dir, WAVEFORMS)
    return tmp_path / "tokens"


def decode(dataset, out_dir, **settings):
    """The job without progress lines."""
    return decode_dataset(dataset, out_dir, progress=False, **settings)


@pytest.mark.parametrize(("bandwidth", "levels"), [(None, 4), (24.0, 2), (12.0, 1)])
def test_files_hold_what_the_codec_decodes(ray_session, dataset, tiny_codec_dir, tmp_path, bandwidth, levels):
    """Every row becomes a file with the samples that `Codec.decode` gives for its codes at that bandwidth."""
    summary = decode(dataset, tmp_path / "out", bandwidth_kbps=bandwidth)
    codec = load_codec(tiny_codec_dir)
    rows = list(read_utterances(dataset, 4))
    assert (summary.num_files, len(rows), dict(summary.errors)) == (10, 10, {})
    for row in rows:
        expected = codec.decode(
            Encoded(torch.from_numpy(row.codes[:levels].astype(np.int64))[None], None, row.num_samples)
        )
        waveform, rate = read_audio(summary.paths[row.id])
        assert rate == 24000
        assert waveform.shape == (1, row.num_samples)
        assert torch.allclose(waveform, expected[0].clamp(-1, 1), atol=1 / 32768)


def test_segments_are_decoded_with_their_loudness(ray_session, segmented_codec_dir, tmp_path):
    """From the dataset come, to the sample, the waveforms that the codec gives for what it heard; then the files."""
    write_dataset(tmp_path / "tokens", segmented_codec_dir, WAVEFORMS)
    codec = load_codec(segmented_codec_dir)
    summary = decode(tmp_path / "tokens", tmp_path / "out")
    assert (summary.num_files, dict(summary.errors)) == (10, {})
    for row in read_utterances(tmp_path / "tokens", 4):
        heard = torch.from_numpy(WAVEFORMS[row.id]).expand(2, -1)
        expected = codec.decode(codec.encode(heard))[0]
        assert torch.equal(codec.decode(row.encoded())[0], expected)
        waveform, _ = read_audio(summary.paths[row.id])
        assert torch.allclose(waveform, expected.clamp(-1, 1), atol=1 / 32768)


def test_a_part_without_the_scales_that_its_codec_needs_is_refused(segmented_codec_dir, tmp_path):
    """Another tool dropped the column: the error names part and column, and nothing is decoded wrongly."""
    import polars as pl

    write_dataset(tmp_path / "tokens", segmented_codec_dir, WAVEFORMS)
    part = sorted((tmp_path / "tokens" / "parts").iterdir())[1]
    pl.read_parquet(part).drop("scales").write_parquet(part)
    shutil.rmtree(tmp_path / "tokens" / "records")  # rewritten on purpose
    with pytest.raises(DatasetError, match=r"part-00001\.parquet: lacks scales"):
        list(read_utterances(tmp_path / "tokens", 4))


@pytest.mark.parametrize("kind", ["null", "text"])
def test_a_column_that_is_no_column_of_lists_is_refused(segmented_codec_dir, tmp_path, kind):
    """Rows without scales, or something else in their place: an error of the part, in one line."""
    import polars as pl

    write_dataset(tmp_path / "tokens", segmented_codec_dir, WAVEFORMS)
    part = sorted((tmp_path / "tokens" / "parts").iterdir())[0]
    value = pl.lit(None, pl.List(pl.Float32)) if kind == "null" else pl.lit("loud")
    pl.read_parquet(part).with_columns(scales=value).write_parquet(part)
    shutil.rmtree(tmp_path / "tokens" / "records")  # rewritten on purpose
    with pytest.raises(DatasetError, match="part-00000"):
        list(read_utterances(tmp_path / "tokens", 4))


def test_files_keep_the_folders_of_their_ids(ray_session, dataset, tmp_path):
    """`speaker1/clip4.wav` is written below OUT_DIR/speaker1, with the extension of the new format."""
    summary = decode(dataset, tmp_path / "out", audio_format="flac", ids=["speaker1/clip4.wav"], num_workers=2)
    found = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert found == ["speaker1/clip4.flac"]
    assert summary.audio_seconds == pytest.approx(0.4)


def test_more_workers_than_cores_share_them(ray_session, dataset, tmp_path):
    """Asking for three workers on two cores gives three, instead of waiting for cores that never come."""
    assert decode(dataset, tmp_path / "out", num_workers=3).num_files == 10


@pytest.mark.parametrize(
    "name", ["../up.wav", "/etc/x.wav", "a/../../x.wav", "a\\x.wav", "C:/x.wav", "", "a//x.wav", "a/\0.wav"]
)
def test_no_id_leads_out_of_the_folder(tmp_path, name):
    """An id is data from elsewhere: one that is not a plain relative path stops the job before anything is written."""
    with pytest.raises(DatasetError, match="not a plain relative path"):
        output_paths(["fine/a.wav", name], tmp_path, "wav")


def test_a_link_does_not_lead_out_of_the_folder_either(tmp_path):
    """A symbolic link below OUT_DIR that points elsewhere is not followed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path)
    with pytest.raises(DatasetError, match="through a link"):
        output_paths(["a/x.wav"], tmp_path / "out", "wav")


def test_inputs_that_differ_in_their_extension_only_get_files_of_their_own(tmp_path):
    """`x.wav` and `x.flac` do not overwrite each other, and names do not depend on the order of rows."""
    ids = ["x.wav", "x.flac", "y.b.flac"]
    paths = output_paths(ids, tmp_path, "ogg")
    assert [path.name for path in paths.values()] == ["x.wav.ogg", "x.flac.ogg", "y.b.ogg"]
    assert output_paths(ids[::-1], tmp_path, "ogg") == paths


def test_another_codec_is_refused(dataset, tmp_path):
    """Codes of one codec are noise to another: the error names both."""
    other = make_codec(tiny_spec("seanet"))
    save_codec(other, tmp_path / "other")
    with pytest.raises(DatasetError, match=f"sha256 {other.sha256[:12]}.*made with"):
        decode(dataset, tmp_path / "out", codec=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_the_codec_may_have_moved(ray_session, dataset, tiny_codec_dir, tmp_path):
    """The dataset remembers where its codec was; `codec` says where it is now."""
    info = json.loads((dataset / "dataset.json").read_text())
    del info["crc32"]  # changed on purpose
    info["codec"]["source"] = "/gone"
    (dataset / "dataset.json").write_text(json.dumps(info))
    assert decode(dataset, tmp_path / "out", codec=str(tiny_codec_dir), ids=["speaker0/clip0.wav"]).num_files == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"bandwidth_kbps": 13.0}, ValueError, "13 kbps is not available"),
        ({"audio_format": "aac"}, ValueError, "'aac' is not one of wav"),
        ({"num_workers": 0}, ValueError, "at least 1"),
        ({"ids": ["nobody.wav"]}, DatasetError, "not in the dataset: nobody.wav"),
    ],
    ids=["bandwidth", "format", "workers", "id"],
)
def test_wrong_arguments_are_refused_before_any_work(dataset, tmp_path, settings, error, message):
    """Nothing is started or written for a request that cannot be met."""
    with pytest.raises(error, match=message):
        decode(dataset, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_more_than_is_stored_cannot_be_decoded(tiny_codec_dir, tmp_path):
    """A dataset of two levels has no fourth one, although its codec has."""
    write_dataset(tmp_path / "tokens", tiny_codec_dir, WAVEFORMS, num_codebooks=2)
    with pytest.raises(ValueError, match="the dataset stores 24 kbps"):
        decode(tmp_path / "tokens", tmp_path / "out", bandwidth_kbps=48.0)


def test_only_the_levels_of_the_bandwidth_are_read(dataset):
    """A part whose third level is damaged on disk still gives its first two, and refuses the third."""
    part = sorted((dataset / "parts").iterdir())[0]
    content = bytearray(part.read_bytes())
    import pyarrow.parquet as pq

    group = pq.read_metadata(part).row_group(0)
    columns = {
        group.column(index).path_in_schema.split(".")[0]: group.column(index) for index in range(group.num_columns)
    }
    column = columns["codes_02"]
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + column.total_compressed_size // 2] ^= 0x40
    part.write_bytes(bytes(content))
    assert len(list(read_utterances(dataset, 2))) == 10
    with pytest.raises(DatasetError, match="part-00000"):
        list(read_utterances(dataset, 4))


def test_bytes_per_level_add_up_to_less_than_the_parts(dataset):
    """Every level costs something, and ids and other columns the rest."""
    levels, total = level_bytes(dataset)
    assert len(levels) == 4
    assert min(levels) > 0
    assert sum(levels) < total == sum(part.stat().st_size for part in (dataset / "parts").iterdir())


def test_rows_whose_codes_are_bad_are_reported_and_the_others_decoded(ray_session, dataset, tmp_path):
    """A row that claims another length than its codes have is an error of that row, not of the job."""
    import polars as pl

    part = sorted((dataset / "parts").iterdir())[1]
    frame = pl.read_parquet(part)
    broken = frame["id"][0]
    frame.with_columns(
        num_samples=pl.when(pl.col("id") == broken).then(7).otherwise(pl.col("num_samples"))
    ).write_parquet(part)
    shutil.rmtree(dataset / "records")  # rewritten on purpose
    summary = decode(dataset, tmp_path / "out")
    assert summary.num_files == 9
    assert list(summary.errors) == [broken]
    assert "7 samples are 1 frames, the codes have" in summary.errors[broken]
