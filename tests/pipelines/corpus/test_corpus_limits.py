"""Limits of the corpus job: inputs that take too long or too much, and how many may fail."""

import time

import pytest

from pipelines import tokenize_corpus
from pipelines.cli import main
from pipelines.corpus.bundle_reader import file_of, read_bundle
from pipelines.corpus.encoder import Encoder
from pipelines.corpus.job_settings import JobSettings
from pipelines.datasets.dataset import open_errors
from tokenizer import DatasetError

HANGS = 60.0


def tokenize(source, dataset, codec, **settings):
    """The job without progress lines."""
    return tokenize_corpus(source, dataset, codec=codec, progress=False, num_workers=1, **settings)


def errors_of(dataset):
    """Error class of every input that failed."""
    return dict(open_errors(dataset).select("id", "error").collect().rows())


def reader_that(misbehaves):
    """A reader to which something happens at a certain file."""

    def read(work, settings, pulse):
        for position, item in enumerate(work):
            if file_of(item).id == "speaker1/clip4.wav":
                pulse(position)
                misbehaves()
        return read_bundle(work, settings, pulse)

    return read


def encoder_that_hangs():
    """On one file."""

    class Hanging(Encoder):
        def encode_bundle(self, pulse, *reads):
            if any(item.id == "speaker1/clip4.wav" for read in reads for item in read):
                pulse(0, 0.1)
                time.sleep(HANGS)
            return super().encode_bundle(pulse, *reads)

    return Hanging


@pytest.mark.parametrize("where", ["reader", pytest.param("encoder", marks=pytest.mark.slow)])
def test_an_input_that_hangs_is_given_up(ray_session, speech_folder, tiny_codec_dir, tmp_path, where):
    """After the time that one may take, and not after that of all; every other input keeps its row."""
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        if where == "reader":
            patch.setattr("pipelines.corpus.bundle_reader.read_bundle", reader_that(lambda: time.sleep(HANGS)))
        else:
            patch.setattr("pipelines.corpus.encoder.Encoder", encoder_that_hangs())
        summary = tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir, file_timeout_s=4.0)
    assert (summary.num_ok, summary.errors) == (9, {"timed_out": 1})
    assert errors_of(tmp_path / "tokens") == {"speaker1/clip4.wav": "timed_out"}
    assert time.monotonic() - began < HANGS


def test_an_input_that_memory_does_not_suffice_for(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """One error row of a class of its own."""

    class Greedy(Encoder):
        def _encode(self, items, waveforms, *rest):
            if len(items) > 1 or items[0].id == "speaker1/clip4.wav":
                bytearray(2**62)
            return super()._encode(items, waveforms, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.corpus.encoder.Encoder", Greedy)
        summary = tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    assert (summary.num_ok, summary.errors) == (9, {"out_of_memory": 1})


def test_too_many_failures_stop_the_job(ray_session, speech_folder, tiny_codec_dir, tmp_path, capsys):
    """With exit code 1, and again when it is called again; with a higher limit the dataset is as it should be."""
    for index in range(3):
        (speech_folder / f"bad{index}.wav").write_bytes(b"nothing")
    arguments = ["tokenize", str(speech_folder), str(tmp_path / "tokens"), "--codec", str(tiny_codec_dir), "-j", "1"]
    for _ in range(2):
        assert main([*arguments, "--max-error-rate", "0.2"]) == 1
        assert "3 of 13 inputs failed, more than the share of 0.2" in capsys.readouterr().err
    assert main([*arguments, "--max-error-rate", "0.25"]) == 0
    assert len(errors_of(tmp_path / "tokens")) == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"unit_seconds": 0}, "unit_seconds"),
        ({"batch_seconds": float("nan")}, "batch_seconds"),
        ({"file_timeout_s": -1.0}, "file_timeout_s"),
        ({"num_workers": 0}, "num_workers"),
        ({"gpus_per_worker": -1}, "gpus_per_worker"),
        ({"max_segment_s": 0.5}, "max_segment_s"),
        ({"max_error_rate": 1.5}, "max_error_rate"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_cannot_be_meant_are_refused(settings, reason):
    """At the door, with the reason."""
    with pytest.raises(ValueError, match=reason):
        JobSettings(**settings)


def test_more_segments_than_the_dataset_was_made_with_are_refused(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """Another cut would be another dataset."""
    tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir)
    with pytest.raises(DatasetError, match="segments: none there, of at most 30 s asked for"):
        tokenize(speech_folder, tmp_path / "tokens", tiny_codec_dir, max_segment_s=30.0)
