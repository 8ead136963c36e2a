"""The evaluation of a codec over a folder: every clip counts, every failure shows."""

import io
import json
import shutil

import pytest
import torch
from rich.console import Console

from pipelines import evaluate
from pipelines.evaluate import METRICS, OPUS_KBPS, evaluate_codec, evaluation_table, opus_round_trip
from tests.conftest import speech_like
from tokenizer import AudioError, DatasetError, write_audio
from tokenizer.metrics import si_snr

OPUS_INSTALLED = shutil.which("opusenc") is not None
needs_opus = pytest.mark.skipif(not OPUS_INSTALLED, reason="opus-tools is not installed")
TINY_KBPS = (24.0, 48.0)  # of the tiny codec: 3000 frames a second of 4 bits, two and four levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips in a tree, one of them too short for STOI and PESQ, and a text file that calls itself a wav."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    write_audio(folder / "deep" / "long.flac", torch.from_numpy(speech_like(1.2, 16000))[None].expand(2, -1), 16000)
    write_audio(folder / "short.wav", torch.from_numpy(speech_like(0.2, 24000))[None], 24000)
    (folder / "text.wav").write_text("not audio")
    return folder


@pytest.fixture(scope="module")
def evaluation(folder, tiny_codec_dir, tmp_path_factory):
    """Rows and JSON of one evaluation."""
    report = tmp_path_factory.mktemp("report") / "scores.json"
    rows = evaluate_codec(str(tiny_codec_dir), folder, output_json=report, num_workers=1)
    return rows, json.loads(report.read_text())


def test_there_is_a_row_per_bandwidth(evaluation):
    """The codec's customary bandwidths, low to high, then Opus where it is installed."""
    rows, _ = evaluation
    opus = [("opus", float(kbps)) for kbps in OPUS_KBPS] if OPUS_INSTALLED else []
    expected = [("tiny_patch", kbps) for kbps in TINY_KBPS] + opus
    assert [(row.system, row.bandwidth_kbps) for row in rows] == expected


def test_the_bandwidth_is_measured(evaluation):
    """Bits of the codes by seconds of audio: what was asked for, up to the last frame of each clip."""
    for row in evaluation[0]:
        assert row.measured_kbps == pytest.approx(row.bandwidth_kbps, rel=0.05 if row.system == "opus" else 0.001)


def test_scales_cost_bits_too(folder, segmented_codec_dir, monkeypatch):
    """A codec with segments pays for what their overlap codes twice, and for a float32 each."""
    monkeypatch.setattr(evaluate, "METRICS", {"nothing": lambda *_: 0.0})
    (row,) = evaluate_codec(str(segmented_codec_dir), folder, bandwidths_kbps=[48.0], with_opus=False, num_workers=1)
    per_stride = 20 * 16 + 32  # 20 frames of four codes of four bits and a scale, every 152 samples
    assert row.measured_kbps == pytest.approx(per_stride * 24000 / 152 / 1000, rel=0.01)


def test_a_metric_that_fails_on_a_clip_is_counted(evaluation):
    """The short clip has no STOI and no PESQ; the means are over the other one, and the count says so."""
    for row in evaluation[0]:
        assert row.num_clips == 2
        assert row.failures["stoi"] == row.failures["pesq_wb"] == 1
        assert row.failures["si_snr_db"] == row.failures["mel_distance"] == 0
        assert None not in (row.scores["stoi"], row.scores["pesq_wb"])


def test_the_json_holds_the_rows_and_what_was_skipped(evaluation):
    """The file that is not audio is named there with the reason, and the codec by its identity."""
    rows, report = evaluation
    assert [entry["scores"] for entry in report["rows"]] == [row.scores for row in rows]
    (unreadable,) = report["unreadable"].items()
    assert unreadable[0].endswith("text.wav")
    assert "not audio" in unreadable[1]
    assert len(report["codec"]["sha256"]) == 64


def test_the_table_shows_every_score(evaluation):
    """A line per row, and the number of clips that a score lacks behind it."""
    console = Console(width=140, file=io.StringIO())
    console.print(evaluation_table(evaluation[0]))
    text = console.file.getvalue()
    assert text.count("tiny_patch") == len(TINY_KBPS)
    assert text.count("(1 missing)") >= 2 * len(TINY_KBPS)
    assert "2 clips" in text


def test_scores_do_not_depend_on_the_number_of_workers(evaluation, folder, tiny_codec_dir):
    """Two processes give the rows of one."""
    rows = evaluate_codec(str(tiny_codec_dir), folder, bandwidths_kbps=[24.0], with_opus=False, num_workers=2)
    assert len(rows) == 1
    for row, alone in zip(rows, evaluation[0], strict=False):
        assert row.scores == pytest.approx(alone.scores)


def test_a_clip_is_the_beginning_of_a_file(folder, tiny_codec_dir, monkeypatch):
    """Long files weigh no more than others: their first seconds count."""
    monkeypatch.setattr(evaluate, "MAX_CLIP_S", 1)
    monkeypatch.setattr(
        evaluate, "METRICS", {"seconds": lambda reference, _, sample_rate: len(reference) / sample_rate}
    )
    (row,) = evaluate_codec(str(tiny_codec_dir), folder, bandwidths_kbps=[24.0], with_opus=False, num_workers=1)
    assert row.scores["seconds"] == pytest.approx((1.0 + 0.2) / 2)


def test_a_limit_spreads_over_the_listing(folder, tiny_codec_dir, monkeypatch):
    """The first file of each equal part of the sorted listing, so that not one speaker fills them all."""
    seen = []
    monkeypatch.setattr(evaluate, "_run", lambda _job, uris, _workers: seen.extend(uris) or ["unreadable"] * len(uris))
    with pytest.raises(AudioError, match="none of 2 audio files"):
        evaluate_codec(str(tiny_codec_dir), folder, limit=2, with_opus=False)
    assert [uri.rsplit("/", 1)[1] for uri in seen] == ["long.flac", "short.wav"]


@pytest.mark.parametrize(
    "options",
    [{"bandwidths_kbps": [24.0, 7.0]}, {"limit": 0}, {"num_workers": 0}],
    ids=["bandwidth", "limit", "workers"],
)
def test_wrong_arguments_stop_before_the_work(options, folder, tiny_codec_dir):
    """Nothing is started for an evaluation that cannot be done."""
    with pytest.raises(ValueError, match=r"7 kbps|at least 1"):
        evaluate_codec(str(tiny_codec_dir), folder, **options)


def test_a_folder_without_audio_is_an_error(tmp_path, tiny_codec_dir):
    """No clips, no means."""
    with pytest.raises(DatasetError, match="no audio files"):
        evaluate_codec(str(tiny_codec_dir), tmp_path)


def test_the_metrics_are_the_five():
    """The table that codecs are compared by."""
    assert list(METRICS) == ["si_snr_db", "mel_distance", "stoi", "pesq_wb", "visqol"]


@needs_opus
@pytest.mark.parametrize("num_samples", [1, 480, 24001])
def test_opus_gives_back_as_many_samples(num_samples):
    """Its start-up delay and its padding are taken off again."""
    reference = torch.from_numpy(speech_like(2.0))[:num_samples]
    assert opus_round_trip(reference[None], 24000, 12)[0].shape == (1, num_samples)


@needs_opus
def test_opus_comes_back_in_time():
    """At a high rate it is nearly the original, which one sample of delay would spoil; rates it lacks are resampled."""
    for sample_rate in (24000, 22050):
        reference = torch.from_numpy(speech_like(2.0, sample_rate))
        assert si_snr(reference, opus_round_trip(reference[None], sample_rate, 64)[0][0], sample_rate) > 15


@needs_opus
def test_opus_is_measured_by_its_packets():
    """Six kilobits a second are 750 bytes; the Ogg pages around them, half as much again, are not counted."""
    _, bits = opus_round_trip(torch.from_numpy(speech_like(5.0))[None], 24000, 6)
    assert bits == pytest.approx(30000, rel=0.02)
