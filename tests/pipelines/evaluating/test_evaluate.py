"""The evaluation of codecs over a set of clips: every clip counts, every failure shows."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from pipelines.evaluating import evaluate, evaluation_scores
from pipelines.evaluating.bootstrap import mean_interval
from pipelines.evaluating.evaluate import evaluate_codec
from pipelines.evaluating.evaluation_scores import METRICS, write_scores
from pipelines.evaluating.round_trips import OPUS_KBPS, Contestant, reference_of, round_trips
from tests.conftest import make_codec, speech_like, tiny_spec
from tokenizer import AudioError, DatasetError, load_codec, save_codec, write_audio
from tokenizer.metrics import si_snr

OPUS_INSTALLED = shutil.which("opusenc") is not None
TINY_KBPS = (24.0, 48.0)  # of the tiny codec: 3000 frames a second of 4 bits, two and four levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips in a tree, one of them too short for STOI and PESQ, a file without samples, and one without audio."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    write_audio(folder / "deep" / "long.flac", torch.from_numpy(speech_like(1.2, 16000))[None].expand(2, -1), 16000)
    write_audio(folder / "short.wav", torch.from_numpy(speech_like(0.2, 24000))[None], 24000)
    soundfile.write(folder / "void.wav", np.zeros(0), 24000)
    (folder / "text.wav").write_text("not audio")
    return folder


@pytest.fixture(scope="module")
def evaluation(folder, tiny_codec_dir):
    """The tiny codec against Opus, with all metrics."""
    return evaluate_codec(str(tiny_codec_dir), folder, num_workers=1, progress=False)


@pytest.fixture
def seconds_only(monkeypatch):
    """One metric that costs nothing: the length of what it was given."""
    metric = {"seconds": lambda _, degraded, sample_rate: len(degraded) / sample_rate}
    monkeypatch.setattr(evaluation_scores, "METRICS", metric)


def test_there_is_a_row_per_bandwidth(evaluation):
    """The codec's customary bandwidths, low to high, then Opus where it is installed."""
    opus = [("opus", float(kbps)) for kbps in OPUS_KBPS] if OPUS_INSTALLED else []
    expected = [("tiny_patch", kbps) for kbps in TINY_KBPS] + opus
    assert [(row.system, row.bandwidth_kbps) for row in evaluation.rows] == expected


def test_the_bandwidth_is_measured(evaluation):
    """Bits of the codes by seconds of audio: what was asked for, up to the last frame of each clip."""
    for row in evaluation.rows:
        assert row.measured_kbps == pytest.approx(row.bandwidth_kbps, rel=0.05 if row.system == "opus" else 0.001)


def test_scales_cost_bits_too(folder, segmented_codec_dir, seconds_only):
    """A codec with segments pays for what their overlap codes twice, and for a float32 each."""
    options = {"bandwidths_kbps": [48.0], "with_opus": False, "num_workers": 1, "progress": False}
    (row,) = evaluate_codec(str(segmented_codec_dir), folder, **options).rows
    per_stride = 20 * 16 + 32  # 20 frames of four codes of four bits and a scale, every 152 samples
    assert row.measured_kbps == pytest.approx(per_stride * 24000 / 152 / 1000, rel=0.01)


def test_speeds_are_of_the_codec_s_calls(evaluation):
    """Seconds of audio by seconds of encoding and of decoding, over all clips."""
    for row, scores in zip(evaluation.rows, zip(*evaluation.clips.values(), strict=True), strict=True):
        seconds = sum(score.seconds for score in scores)
        assert seconds == pytest.approx(1.4, abs=0.001)
        assert row.encode_x_real_time == pytest.approx(seconds / sum(score.encode_s for score in scores))
        assert row.decode_x_real_time == pytest.approx(seconds / sum(score.decode_s for score in scores))


def test_a_metric_that_fails_on_a_clip_is_counted(evaluation):
    """The short clip has no STOI and no PESQ; the means are over the other one, and the count says so."""
    for row in evaluation.rows:
        assert row.num_clips == 2
        assert row.failures["stoi"] == row.failures["pesq_wb"] == 1
        assert row.failures["si_snr_db"] == row.failures["mel_distance"] == 0
        assert row.scores["stoi"].mean > 0
        assert row.scores["stoi"].low is None
        assert row.scores["mel_distance"].low < row.scores["mel_distance"].mean < row.scores["mel_distance"].high


def test_intervals_are_over_clips(evaluation):
    """The bootstrap of the very numbers that every clip got."""
    for column, row in enumerate(evaluation.rows):
        own = [scores[column].scores["si_snr_db"] for scores in evaluation.clips.values()]
        assert row.scores["si_snr_db"] == mean_interval(own)


def test_codebook_use_is_the_share_of_entries_that_occur(evaluation, folder, tiny_codec_dir):
    """Counted over all clips, at the highest bandwidth, level by level."""
    codec = load_codec(tiny_codec_dir)
    seen = [set() for _ in range(4)]
    for waveform in (speech_like(1.2, 16000), speech_like(0.2, 24000)):
        rate = 16000 if len(waveform) == 19200 else 24000
        name = folder / ("deep/long.flac" if rate == 16000 else "short.wav")
        heard = reference_of(evaluate.read_clip(evaluate.EvaluationClip("", str(name)), 8)[0], rate, 24000)
        for level, codes in enumerate(codec.encode(heard[None]).codes[0]):
            seen[level] |= set(codes.tolist())
    (use,) = evaluation.codebook_use
    assert (use.system, use.codebook_size) == ("tiny_patch", 16)
    assert use.shares == pytest.approx([len(entries) / 16 for entries in seen])
    assert use.codes_per_level == 3600 + 600


def test_the_json_holds_everything(evaluation, tmp_path):
    """Rows, every clip's scores, codebook use, the codec by its identity, and what was left out with the reason."""
    write_scores(evaluation, tmp_path / "deep" / "scores.json")
    report = json.loads((tmp_path / "deep" / "scores.json").read_text())
    assert [row["scores"]["mel_distance"]["mean"] for row in report["rows"]] == [
        row.scores["mel_distance"].mean for row in evaluation.rows
    ]
    assert set(report["clips"]) == {"deep/long.flac", "short.wav"}
    assert report["clips"]["short.wav"][0]["scores"]["stoi"] is None
    assert "not audio" in report["unreadable"]["text.wav"]
    assert "no samples" in report["unreadable"]["void.wav"]
    assert [len(codec["sha256"]) for codec in report["codecs"]] == [64]
    assert len(report["codebook_use"][0]["shares"]) == 4
    assert "bootstrap" in report["intervals"]


def test_scores_do_not_depend_on_the_number_of_workers(evaluation, folder, tiny_codec_dir):
    """Two processes give the rows of one."""
    options = {"bandwidths_kbps": [24.0], "with_opus": False, "num_workers": 2, "progress": False}
    (row,) = evaluate_codec(str(tiny_codec_dir), folder, **options).rows
    for name, interval in row.scores.items():
        assert interval.mean == pytest.approx(evaluation.rows[0].scores[name].mean)


def test_others_are_compared_at_the_first_codec_s_rate(folder, tiny_codec_dir, tmp_path, seconds_only):
    """Each encodes at its own rate; those beside the first take part with the bandwidths that they have."""
    spec = tiny_spec("seanet")
    other = type(spec).from_dict({**spec.to_dict(), "sample_rate": 16000, "num_codebooks": 3})
    save_codec(make_codec(other), tmp_path / "other")
    options = {"with_opus": False, "num_workers": 1, "progress": False, "against": [str(tmp_path / "other")]}
    evaluation = evaluate_codec(str(tiny_codec_dir), folder, **options)
    systems = [(row.system, row.bandwidth_kbps) for row in evaluation.rows]
    assert systems == [("tiny_patch", 24.0), ("tiny_patch", 48.0), ("tiny_seanet", 16.0), ("tiny_seanet", 24.0)]
    assert evaluation.sample_rate == 24000
    assert all(row.scores["seconds"].mean == pytest.approx(0.7) for row in evaluation.rows)
    assert evaluation.rows[2].measured_kbps == pytest.approx(16.0, rel=0.01)
    asked = evaluate_codec(str(tiny_codec_dir), folder, bandwidths_kbps=[24.0, 48.0], **options)
    assert [row.bandwidth_kbps for row in asked.rows] == [24.0, 48.0, 24.0]
    with pytest.raises(ValueError, match="none of the bandwidths"):
        evaluate_codec(str(tiny_codec_dir), folder, bandwidths_kbps=[48.0], **options)


def test_codecs_of_one_name_are_told_apart(folder, tiny_codec_dir, tmp_path, seconds_only):
    """The second goes by its place; the very same one twice is refused."""
    save_codec(load_codec(tiny_codec_dir), tmp_path / "later")
    options = {"bandwidths_kbps": [24.0], "with_opus": False, "num_workers": 1, "progress": False}
    later = str(tmp_path / "later")
    evaluation = evaluate_codec(str(tiny_codec_dir), folder, against=[later], **options)
    assert [row.system for row in evaluation.rows] == ["tiny_patch", later]
    with pytest.raises(ValueError, match="takes part already"):
        evaluate_codec(str(tiny_codec_dir), folder, against=[later, later], **options)


def test_every_system_comes_back_in_time_and_as_long(tiny_codec_dir):
    """Also a codec whose rate does not divide that of the comparison."""
    waveform = torch.from_numpy(speech_like(0.5, 22050))[None]
    perfect = load_codec(tiny_codec_dir)
    trips = list(round_trips([Contestant("tiny", perfect, (24.0,))], (), waveform, 22050, 16000))
    reference = reference_of(waveform, 22050, 16000)
    assert [len(trip.waveform) for trip in trips] == [len(reference)]
    assert trips[0].codes.shape[0] == 2
    assert np.isfinite(si_snr(reference, trips[0].waveform, 16000))


def test_a_clip_is_the_beginning_of_a_file(folder, tiny_codec_dir, monkeypatch, seconds_only):
    """Long files weigh no more than others: their first seconds count."""
    monkeypatch.setattr(evaluate, "MAX_CLIP_S", 1)
    options = {"bandwidths_kbps": [24.0], "with_opus": False, "num_workers": 1, "progress": False}
    (row,) = evaluate_codec(str(tiny_codec_dir), folder, **options).rows
    assert row.scores["seconds"].mean == pytest.approx((1.0 + 0.2) / 2)


def test_a_limit_spreads_over_the_listing(folder, tiny_codec_dir, monkeypatch):
    """The first file of each equal part of the sorted listing, so that not one speaker fills them all."""
    seen = []
    monkeypatch.setattr(evaluate, "_run", lambda _job, clips, _workers: seen.extend(clips) or ["broken"] * len(clips))
    with pytest.raises(AudioError, match="none of 2 clips can be read: broken"):
        evaluate_codec(str(tiny_codec_dir), folder, limit=2, with_opus=False, progress=False)
    assert [clip.id for clip in seen] == ["deep/long.flac", "text.wav"]


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
