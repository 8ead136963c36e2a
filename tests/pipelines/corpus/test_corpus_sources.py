"""The corpus job on every kind of source: the same codes as from plain files, and the columns that travel."""

import io
import json
import tarfile

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import pipelines.polars_namespace
from pipelines import open_dataset, tokenize_corpus
from pipelines.datasets.dataset import open_errors
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.datasets.verify import verify_dataset
from tests.conftest import speech_like
from tokenizer import DatasetError, load_codec, mix_channels, read_audio, resample

assert pipelines.polars_namespace


def tokenize(source, dataset, codec, **settings):
    """The job without progress lines."""
    return tokenize_corpus(source, dataset, codec=codec, progress=False, num_workers=1, **settings)


def rows_of(dataset):
    """All rows by id, with their codes [K, T]."""
    frame = open_dataset(dataset).sort("id").collect()
    codes = frame.codes.to_numpy()
    return {row["id"]: row | {"codes": own} for row, own in zip(frame.iter_rows(named=True), codes, strict=True)}


def codes_of(codec, path, start_s=0.0, duration_s=None):
    """Of a stretch of a file, encoded alone."""
    waveform, rate = read_audio(path)
    begin = round(start_s * rate)
    waveform = waveform[:, begin : None if duration_s is None else begin + round(duration_s * rate)]
    at_rate = resample(mix_channels(waveform, 1), rate, codec.spec.sample_rate)
    return codec.encode(at_rate).codes[0].numpy()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips at two rates, and one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(6):
        rate = (16000, 24000)[index % 2]
        soundfile.write(folder / f"{index}.flac", speech_like(0.3 + 0.05 * index, rate, seed=index), rate)
    (folder / "bad.flac").write_bytes(b"no sound at all")
    return folder


def test_a_manifest_brings_stretches_and_columns(ray_session, clips, tiny_codec_dir, tmp_path):
    """Offsets and durations are kept to the sample, and every other key of a line stands in its row."""
    lines = [
        {"audio_filepath": "0.flac", "offset": 0.05, "duration": 0.2, "text": "one", "speaker": {"id": 7}},
        {"audio_filepath": "0.flac", "offset": 0.25, "duration": 5.0, "text": "two", "speaker": {"id": 7}},
        {"audio_filepath": "3.flac", "text": None, "speaker": {"id": 8}},
        {"audio_filepath": "bad.flac", "text": "three", "speaker": None},
        {"audio_filepath": "gone.flac", "text": "four", "speaker": None},
    ]
    manifest = clips / "train.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = tokenize(manifest, tmp_path / "tokens", tiny_codec_dir)
    assert (summary.num_files, summary.num_ok, summary.num_errors) == (5, 3, 2)
    codec, rows = load_codec(tiny_codec_dir).with_precision("exact"), rows_of(tmp_path / "tokens")
    by_text = {row["text"]: row for row in rows.values()}
    assert by_text.keys() == {"one", "two", None}
    assert by_text["one"]["speaker"] == {"id": 7}
    np.testing.assert_array_equal(by_text["one"]["codes"], codes_of(codec, clips / "0.flac", 0.05, 0.2))
    np.testing.assert_array_equal(by_text["two"]["codes"], codes_of(codec, clips / "0.flac", 0.25))
    np.testing.assert_array_equal(by_text[None]["codes"], codes_of(codec, clips / "3.flac"))
    failed = dict(open_errors(tmp_path / "tokens").select("id", "error").collect().rows())
    assert failed == {"bad.flac": "AudioError", "gone.flac": "FileNotFoundError"}


def test_tar_shards_and_parquet_give_what_plain_files_give(ray_session, clips, tiny_codec_dir, tmp_path):
    """Codes of each clip, its text, and the error of the one that is none."""
    names = sorted(path.name for path in clips.glob("*.flac"))
    with tarfile.open(tmp_path / "shard-0.tar", "w") as archive:
        for name in names:
            for member, content in ((name, (clips / name).read_bytes()), (f"{name[:-5]}.txt", f"said {name}".encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    audio = [{"bytes": (clips / name).read_bytes(), "path": name} for name in names]
    table = pa.table({"audio": audio, "text": [f"said {name}" for name in names]})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=3)
    codec = load_codec(tiny_codec_dir).with_precision("exact")
    for source in ("shard-0.tar", "train.parquet"):
        dataset = tmp_path / f"tokens-{source}"
        summary = tokenize(tmp_path / source, dataset, tiny_codec_dir)
        assert (summary.num_ok, summary.errors) == (6, {"AudioError": 1})
        found = {row["text"]: row["codes"] for row in rows_of(dataset).values()}
        for name in names[:-1]:
            np.testing.assert_array_equal(found[f"said {name}"], codes_of(codec, clips / name))
        assert verify_dataset(dataset).ok


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """Half a minute of phrases with pauses, with columns, beside a short clip."""
    folder = tmp_path_factory.mktemp("long")
    phrases = [np.concatenate([speech_like(1.1, 16000, seed), np.zeros(6400, np.float32)]) for seed in range(20)]
    soundfile.write(folder / "talk.wav", np.concatenate(phrases), 16000)
    soundfile.write(folder / "word.wav", speech_like(0.5, 16000), 16000)
    (folder / "list.csv").write_text("path,speaker\ntalk.wav,ann\nword.wav,bob\n")
    return folder


def test_segments_joined_are_the_whole_input(ray_session, long_source, tiny_codec_dir, tmp_path):
    """Cut in pauses, numbered, each with the columns of its input; nothing lost and nothing twice between them."""
    dataset = tmp_path / "tokens"
    # Batches of two seconds: the talk takes several readers, one after another.
    summary = tokenize(long_source / "list.csv", dataset, tiny_codec_dir, max_segment_s=5.0, batch_seconds=2.0)
    assert (summary.num_files, summary.num_ok, summary.num_errors) == (2, 2, 0)
    frame = open_dataset(dataset).sort("input_id", "start_sample").collect()
    talk = frame.filter(pl.col("input_id") == "talk.wav")
    assert talk["id"].to_list() == [f"talk.wav#{index:04d}" for index in range(talk.height)]
    assert frame.filter(pl.col("input_id") == "word.wav")["id"].to_list() == ["word.wav"]
    assert set(talk["speaker"]) == {"ann"}
    assert summary.num_rows == frame.height == talk.height + 1 >= 7
    assert talk["start_sample"].to_list() == [0, *talk["num_samples"].cum_sum()[:-1].to_list()]
    assert talk["num_samples"].sum() == 20 * (round(1.1 * 24000) + 9600)
    assert talk["duration_s"].max() <= 5.0
    codec = load_codec(tiny_codec_dir).with_precision("exact")
    waveform, rate = read_audio(long_source / "talk.wav")
    whole = resample(waveform, rate, 24000)
    for row, codes in zip(talk.iter_rows(named=True), talk.codes.to_numpy(), strict=True):
        own = whole[:, row["start_sample"] : row["start_sample"] + row["num_samples"]]
        np.testing.assert_array_equal(codes, codec.encode(own).codes[0].numpy())
        if row["start_sample"]:
            assert own[0, :240].abs().max() < 0.02, "cut in a pause"
    assert verify_dataset(dataset).ok


def test_segments_do_not_depend_on_how_the_work_was_cut(ray_session, long_source, tiny_codec_dir, tmp_path):
    """One reader call or many: the same rows."""
    frames = []
    for seconds in (2.0, 120.0):
        tokenize(long_source, tmp_path / f"{seconds}", tiny_codec_dir, max_segment_s=4.0, batch_seconds=seconds)
        frames.append(open_dataset(tmp_path / f"{seconds}").sort("id").collect())
    assert frames[0].equals(frames[1])


def test_quality_is_measured_where_it_is_asked_for(ray_session, clips, tiny_codec_dir, tmp_path):
    """By decoding what was encoded; dataset.json says so, and a job without it does not go on with the dataset."""
    tokenize(clips, tmp_path / "tokens", tiny_codec_dir, quality=True)
    frame = open_dataset(tmp_path / "tokens").collect()
    assert frame["si_snr_db"].is_finite().all()
    assert (frame["mel_distance"] > 0).all()
    assert read_dataset_info(tmp_path / "tokens").quality
    with pytest.raises(DatasetError, match="quality: measured there, not measured asked for"):
        tokenize(clips, tmp_path / "tokens", tiny_codec_dir)


def test_facts_of_the_audio_stand_in_every_row(ray_session, tiny_codec_dir, tmp_path):
    """Level, clipping, speech and a hash: equal for equal sound, whatever it is wrapped in."""
    source = tmp_path / "source"
    source.mkdir()
    speech = speech_like(1.5)
    soundfile.write(source / "a.wav", speech, 24000, subtype="PCM_16")
    soundfile.write(source / "a.flac", speech, 24000, subtype="PCM_16")
    soundfile.write(source / "clipped.wav", np.clip(20 * speech, -1, 1), 24000)
    soundfile.write(source / "silence.wav", np.zeros(24000), 24000)
    tokenize(source, tmp_path / "tokens", tiny_codec_dir)
    rows = rows_of(tmp_path / "tokens")
    assert rows["a.wav"]["content_hash"] == rows["a.flac"]["content_hash"] != rows["clipped.wav"]["content_hash"]
    assert rows["clipped.wav"]["clipping_share"] > 0.1 > rows["a.wav"]["clipping_share"]
    assert rows["silence.wav"]["rms_dbfs"] == -120.0
    assert rows["silence.wav"]["speech_share"] == 0.0
