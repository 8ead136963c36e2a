"""The corpus job: every input ends in exactly one row, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile

import pipelines.polars_namespace
from pipelines import open_dataset, storage, tokenize_corpus
from pipelines.corpus.bundle_reader import file_of, read_bundle
from pipelines.corpus.encoder import Encoder
from pipelines.datasets.dataset import list_parts, open_errors, query_dataset
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.inputs.sources import list_source
from tests.conftest import speech_like
from tokenizer import CheckpointError, DatasetError, QuantoneError, load_codec, mix_channels, read_audio, resample

REPOSITORY = Path(__file__).parents[3]
assert pipelines.polars_namespace


def tokenize(source, dataset, codec, **settings):
    """The job without progress lines."""
    return tokenize_corpus(source, dataset, codec=codec, progress=False, num_workers=1, **settings)


def codes_by_id(dataset):
    """Every row's codes, from whatever parts they lie in."""
    frame = open_dataset(dataset).sort("id").collect()
    return dict(zip(frame["id"], frame.codes.to_numpy(), strict=True))


def errors_by_id(dataset):
    """Error class of every input that failed."""
    paths = sorted((Path(dataset) / "errors").glob("*.parquet"))
    return dict(pl.read_parquet(paths).select("id", "error").rows()) if paths else {}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Thirty short clips."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(30):
        soundfile.write(folder / f"{index:02d}.wav", speech_like(0.3 + 0.01 * index, 16000, seed=index), 16000)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_session, corpus, tiny_codec_dir, tmp_path_factory):
    """Codes of a run that nothing interrupted, in ten parts."""
    dataset = tmp_path_factory.mktemp("undisturbed") / "tokens"
    summary = tokenize(corpus, dataset, tiny_codec_dir, unit_seconds=1.0)
    assert (summary.num_ok, summary.num_errors) == (30, 0)
    assert len(list_parts(dataset)) >= 5
    return codes_by_id(dataset)


def test_rows_hold_what_the_codec_gives(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """Ids, lengths, levels and codes of each file are those of encoding it alone."""
    dataset = tmp_path / "tokens"
    summary = tokenize(speech_folder, dataset, tiny_codec_dir)
    assert (summary.num_files, summary.num_ok, summary.num_errors, summary.num_skipped) == (10, 10, 0, 0)
    codec, rows = load_codec(tiny_codec_dir).with_precision("exact"), open_dataset(dataset).collect()
    assert rows["id"].to_list() == sorted(str(p.relative_to(speech_folder)) for p in speech_folder.rglob("*.wav"))
    for row, codes in zip(rows.iter_rows(named=True), rows.codes.to_numpy(), strict=True):
        waveform, rate = read_audio(row["uri"])
        at_rate = resample(mix_channels(waveform, 1), rate, 24000)
        np.testing.assert_array_equal(codes, codec.encode(at_rate).codes[0].numpy())
        assert (row["source_sample_rate"], row["source_channels"]) == (rate, 1)
        assert (row["num_samples"], row["num_frames"]) == (at_rate.shape[1], codes.shape[1])
        assert row["duration_s"] == pytest.approx(at_rate.shape[1] / 24000)
        assert row["peak"] == pytest.approx(float(at_rate.abs().max()))


def test_a_stereo_codec_with_segments_keeps_its_scales(ray_session, speech_folder, segmented_codec_dir, tmp_path):
    """Mono and stereo, other rates, files of many segments: codes and scales are those of encoding each alone.

    However the job is cut into batches and parts, and with no padding anywhere.
    """
    stereo = np.stack([speech_like(0.5, seed=1), 0.1 * speech_like(0.5, seed=2)], axis=1)
    soundfile.write(speech_folder / "stereo.wav", stereo, 24000)
    soundfile.write(speech_folder / "silence.wav", np.zeros(1000), 24000)
    summary = tokenize(speech_folder, tmp_path / "tokens", segmented_codec_dir)
    tokenize(speech_folder, tmp_path / "small", segmented_codec_dir, unit_seconds=1.0, batch_seconds=0.1)
    assert (summary.num_ok, summary.num_errors, summary.padding_share) == (12, 0, 0.0)
    codec = load_codec(segmented_codec_dir).with_precision("exact")
    rows = open_dataset(tmp_path / "tokens").sort("id").collect()
    again = open_dataset(tmp_path / "small").sort("id").collect()
    assert rows.equals(again)
    for row, codes in zip(rows.iter_rows(named=True), rows.codes.to_numpy(), strict=True):
        waveform, rate = read_audio(row["uri"])
        encoded = codec.encode(waveform, sample_rate=rate)
        np.testing.assert_array_equal(codes, encoded.codes[0].numpy())
        assert row["scales"] == encoded.scales[0].tolist()
        assert (row["num_samples"], row["num_frames"]) == (encoded.num_samples, encoded.codes.shape[-1])
        assert row["num_frames"] == codec.spec.num_frames(row["num_samples"])


def test_the_codec_is_found_from_another_folder(ray_session, speech_folder, tiny_codec_dir, tmp_path, monkeypatch):
    """A relative path is written down as an absolute one, so that decoding works from anywhere."""
    monkeypatch.chdir(tiny_codec_dir.parent)
    tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir.name)
    assert read_dataset_info(tmp_path / "tokens").codec["source"] == str(tiny_codec_dir)


def test_bad_inputs_become_error_rows(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """Empty, not audio, cut short: one error row each, and the good neighbours keep their rows."""
    (speech_folder / "empty.wav").write_bytes(b"")
    (speech_folder / "text.wav").write_text("this is not audio\n" * 50)
    soundfile.write(speech_folder / "one.wav", np.array([0.5]), 16000)
    soundfile.write(speech_folder / "eight.wav", np.tile(speech_like(0.2, 96000)[:, None], 8), 96000)
    soundfile.write(speech_folder / "cut.flac", speech_like(1.0), 24000)
    (speech_folder / "cut.flac").write_bytes((speech_folder / "cut.flac").read_bytes()[:9000])
    dataset = tmp_path / "tokens"
    summary = tokenize(speech_folder, dataset, tiny_codec_dir)
    assert (summary.num_files, summary.num_ok, summary.num_errors) == (15, 12, 3)
    assert errors_by_id(dataset) == dict.fromkeys(["cut.flac", "empty.wav", "text.wav"], "AudioError")
    codes = codes_by_id(dataset)
    assert codes["one.wav"].shape == (4, 1)
    assert codes["eight.wav"].shape == (4, 600)
    assert not codes.keys() & errors_by_id(dataset).keys()


def test_a_unit_where_nothing_works_is_done_all_the_same(ray_session, tiny_codec_dir, tmp_path):
    """Its part has no rows, and the next run does not try again."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "bad.wav").write_bytes(b"RIFF")
    assert tokenize(source, tmp_path / "tokens", tiny_codec_dir).num_errors == 1
    again = tokenize(source, tmp_path / "tokens", tiny_codec_dir)
    assert (again.num_skipped, again.num_errors) == (1, 0)
    assert open_dataset(tmp_path / "tokens").collect().height == 0


def test_a_second_run_does_nothing(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """All files are skipped and no byte of the dataset changes."""
    dataset = tmp_path / "tokens"
    tokenize(speech_folder, dataset, tiny_codec_dir)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in dataset.rglob("*") if path.is_file()}
    assert tokenize(speech_folder, dataset, tiny_codec_dir).num_skipped == 10
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in dataset.rglob("*") if p.is_file()}


def test_codes_do_not_depend_on_units_and_batches(corpus, undisturbed, tiny_codec_dir, tmp_path):
    """One part or ten, batches of one or of many: the same codes."""
    summary = tokenize(corpus, tmp_path / "one", tiny_codec_dir, batch_seconds=0.1)
    assert len(list_parts(tmp_path / "one")) == 1
    assert summary.padding_share == pytest.approx(0.0)
    assert_same_codes(codes_by_id(tmp_path / "one"), undisturbed)


def test_a_killed_driver_is_resumed_by_the_same_command(corpus, undisturbed, tiny_codec_dir, tmp_path):
    """SIGKILL after the first parts; the rerun ends with the same ids and codes, and leaves nothing behind."""
    dataset = tmp_path / "tokens"
    script = (
        "from pipelines import tokenize_corpus\n"
        f"tokenize_corpus({str(corpus)!r}, {str(dataset)!r}, codec={str(tiny_codec_dir)!r}, num_workers=1,"
        " unit_seconds=1.0, progress=False)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True)
    deadline = time.monotonic() + 90
    while not list_parts(dataset) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # its workers may still commit for a moment, and must do no harm by it
    (dataset / "parts" / ".quantone-tmp-left-by-a-kill").write_bytes(b"half a part")
    summary = tokenize(corpus, dataset, tiny_codec_dir, unit_seconds=1.0)
    assert summary.num_skipped + summary.num_ok == 30
    assert_same_codes(codes_by_id(dataset), undisturbed)
    assert sorted(path.name for path in (dataset / "parts").iterdir()) == list_parts(dataset)


def test_a_file_that_kills_its_reader_becomes_an_error_row(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """The bundle is taken apart until the culprit is found; every other file keeps its row."""
    (speech_folder / "poison.wav").write_bytes(b"dies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.corpus.bundle_reader.read_bundle", dying_reader)
        summary = tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    assert (summary.num_ok, summary.num_errors) == (10, 1)
    assert errors_by_id(tmp_path / "tokens") == {"poison.wav": "killed_worker"}
    assert len(list_parts(tmp_path / "tokens")) == 1


@pytest.mark.parametrize(
    ("failure", "error"), [("dies", "killed_worker"), ("raises", "RuntimeError")], ids=["dies", "raises"]
)
def test_a_file_that_fails_in_the_encoder_becomes_an_error_row(
    ray_session, speech_folder, tiny_codec_dir, tmp_path, failure, error
):
    """Whether the actor dies of it or the network raises: the culprit is found, every other file keeps its row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.corpus.encoder.Encoder", failing_encoder("speaker1/clip4.wav", failure))
        summary = tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    assert (summary.num_ok, summary.num_errors) == (9, 1)
    assert errors_by_id(tmp_path / "tokens") == {"speaker1/clip4.wav": error}


def test_a_killed_encoder_costs_nothing(ray_session, corpus, undisturbed, tiny_codec_dir, tmp_path):
    """SIGKILL for the actor in its first call: another one takes its bundle, and no code differs."""
    marker = tmp_path / "died"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.corpus.encoder.Encoder", mortal_encoder(marker))
        summary = tokenize(corpus, tmp_path / "tokens", tiny_codec_dir, unit_seconds=1.0)
    assert marker.exists()
    assert (summary.num_ok, summary.num_errors) == (30, 0)
    assert_same_codes(codes_by_id(tmp_path / "tokens"), undisturbed)


def test_an_encoder_that_cannot_start_stops_the_job(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """That is no fault of the files: none of them becomes an error row, and the next run does them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.corpus.encoder.Encoder", stillborn_encoder())
        with pytest.raises(QuantoneError, match=r"an encoder cannot start: .*no such device"):
            tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    assert not errors_by_id(tmp_path / "tokens")
    assert tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir).num_ok == 10


def test_more_workers_than_cores_still_leave_room_to_read(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """Nine encoders asked for on two cores: as many start as leave half a core to a reader."""
    summary = tokenize_corpus(speech_folder, tmp_path / "tokens", codec=tiny_codec_dir, num_workers=9, progress=False)
    assert summary.num_ok == 10


def test_a_file_that_vanished_since_the_plan_becomes_an_error_row(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """A listing is a promise that somebody else can break."""
    listed = list_source(speech_folder)
    (speech_folder / "speaker0" / "clip0.wav").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.corpus.corpus_job.list_source", lambda _: listed)
        tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    assert errors_by_id(tmp_path / "tokens") == {"speaker0/clip0.wav": "FileNotFoundError"}


def test_samples_that_overflow_become_an_error_row(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """Finite in the file and infinite after mixing down: found at the codec's door, and the batch goes on without."""
    huge = np.full((24000, 2), 3.4e38, np.float32)
    soundfile.write(speech_folder / "huge.wav", huge, 24000, subtype="FLOAT")
    summary = tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    assert (summary.num_ok, summary.num_errors) == (10, 1)
    assert errors_by_id(tmp_path / "tokens") == {"huge.wav": "AudioError"}


def test_a_part_that_cannot_be_written_stops_the_job(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """A full or forbidden disk is no fault of the files; the message says what the matter is."""
    dataset = tmp_path / "tokens"
    dataset.mkdir()
    (dataset / "parts").write_text("in the way")
    with pytest.raises(DatasetError, match=r"part cannot be written: .*parts"):
        tokenize(speech_folder, dataset, tiny_codec_dir)


def test_from_s3_into_s3(ray_session, bucket, speech_folder, tiny_codec_dir, tmp_path):
    """The same rows as from a local disk, errors included; a second run does nothing; queries read it in place."""
    (speech_folder / "empty.wav").write_bytes(b"")
    for path in speech_folder.rglob("*.wav"):
        storage.commit(f"{bucket}/speech/{path.relative_to(speech_folder)}", path.read_bytes())
    dataset = f"{bucket}/tokens"
    summary = tokenize(f"{bucket}/speech", dataset, tiny_codec_dir, unit_seconds=2.0)
    assert len(list_parts(dataset)) > 1
    assert (summary.num_ok, summary.num_errors) == (10, 1)
    tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    assert_same_codes(codes_by_id(dataset), codes_by_id(tmp_path / "tokens"))
    assert open_errors(dataset).select("id", "error").collect().rows() == [("empty.wav", "AudioError")]
    assert query_dataset(dataset, "SELECT COUNT(*) FROM tokens").item() == 10
    assert tokenize(f"{bucket}/speech", dataset, tiny_codec_dir).num_skipped == 11


def test_another_source_codec_or_bandwidth_is_refused(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """An existing dataset is continued or left alone, never mixed; the message shows the difference."""
    dataset = tmp_path / "tokens"
    tokenize(speech_folder, dataset, tiny_codec_dir)
    with pytest.raises(DatasetError, match=r"bandwidth: 48 kbps .* there, 24 kbps"):
        tokenize(speech_folder, dataset, tiny_codec_dir, bandwidth_kbps=24.0)
    soundfile.write(speech_folder / "new.wav", speech_like(0.2), 24000)
    with pytest.raises(DatasetError, match=r"1 new \(new\.wav\)"):
        tokenize(speech_folder, dataset, tiny_codec_dir)


def test_dataset_json_says_how_the_codes_were_made(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """Codec, weights, bandwidth, resampler; and each part says it too."""
    tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir, bandwidth_kbps=24.0)
    info, codec = read_dataset_info(tmp_path / "tokens"), load_codec(tiny_codec_dir)
    assert (info.codec["sha256"], info.codec["spec"]) == (codec.sha256, codec.spec.to_dict())
    assert (info.bandwidth_kbps, info.num_codebooks, info.precision) == (24.0, 2, "float32")
    assert "sinc" in info.resampler
    metadata = pl.read_parquet_metadata(tmp_path / "tokens" / "parts" / "part-00000.parquet")
    assert codec.sha256 in metadata["quantone"]
    assert open_dataset(tmp_path / "tokens").codes.num_codebooks() == 2


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"codec": "nothing"}, CheckpointError, "nothing"),
        ({"bandwidth_kbps": 1.0}, ValueError, "not available"),
        ({"unit_seconds": 0}, ValueError, "unit_seconds"),
        ({"num_workers": 0}, ValueError, "num_workers"),
        ({"source": "nowhere"}, DatasetError, "nowhere"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    speech_folder, tiny_codec_dir, tmp_path, settings, error, reason
):
    """At the door, with the reason."""
    arguments = {"source": speech_folder, "codec": tiny_codec_dir, **settings}
    with pytest.raises(error, match=reason):
        tokenize_corpus(arguments.pop("source"), tmp_path / "tokens", progress=False, **arguments)
    assert not (tmp_path / "tokens").exists()


def assert_same_codes(found, expected):
    """Same ids, same codes."""
    assert found.keys() == expected.keys()
    for name, codes in expected.items():
        np.testing.assert_array_equal(found[name], codes)


def dying_reader(work, settings, pulse):
    """A reader that a poisoned file kills outright, as a crash in a decoder would."""
    if any(file_of(item).id == "poison.wav" for item in work):
        pulse(0)
        os._exit(1)
    return read_bundle(work, settings, pulse)


def failing_encoder(name, failure):
    """An encoder that dies of one file, or whose network raises on it."""

    class Failing(Encoder):
        def encode_bundle(self, pulse, *reads):
            if any(item.id == name for read in reads for item in read):
                pulse(0)
                if failure == "dies":
                    os._exit(1)
                raise RuntimeError("the network cannot take this")
            return super().encode_bundle(pulse, *reads)

    return Failing


def mortal_encoder(marker):
    """An encoder that is killed in its first call, once."""

    class Mortal(Encoder):
        def encode_bundle(self, pulse, *reads):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode_bundle(pulse, *reads)

    return Mortal


def stillborn_encoder():
    """An encoder whose device is not there."""

    class Stillborn:
        def __init__(self, *_, **__):
            raise RuntimeError("no such device")

        def ready(self):
            """Never reached."""

    return Stillborn
