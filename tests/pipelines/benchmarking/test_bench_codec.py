"""Speeds: both take turns in one run, with the same weights."""

import pytest

from pipelines.benchmarking.bench_codec import BenchSettings, bench_codec
from pipelines.cli import main
from tokenizer import CheckpointError

QUICK = BenchSettings(seconds=0.5, batch_sizes=(1, 2), rounds=1, bandwidth_kbps=6.0)


@pytest.mark.parametrize("codec", ["encodec_24khz", "encodec_48khz"])
def test_a_reference_is_measured_beside_ours(codec):
    """Every direction and batch size has both speeds and their ratio, and the codes are compared."""
    rows, summary = bench_codec(codec, against="encodec", settings=QUICK)
    assert [(row.direction, row.batch_size) for row in rows] == [
        ("encode", 1),
        ("decode", 1),
        ("encode", 2),
        ("decode", 2),
    ]
    for row in rows:
        assert row.ratio == pytest.approx(row.speed / row.reference_speed)
    assert f"{codec} at 6 kbps" in summary
    assert " codes differ" in summary


def test_a_codec_is_measured_alone(tiny_codec_dir):
    """Any codec that can be loaded."""
    rows, summary = bench_codec(str(tiny_codec_dir), settings=BenchSettings(seconds=0.1, batch_sizes=(1,), rounds=1))
    assert [row.reference_speed for row in rows] == [None, None]
    assert "4 codebooks" in summary


def test_precisions_are_measured_one_by_one(capsys, tiny_codec_dir):
    """Each has its rows, and a line on what it ran on and how far from the plain form it is."""
    arguments = ["--seconds", "0.1", "--rounds", "1", "--batch", "2", "--precision", "fast", "--precision", "plain"]
    assert main(["bench", "codec", str(tiny_codec_dir), *arguments]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [line.split()[:3] for line in shown if line.split()[:1] in (["encode"], ["decode"])]
    assert rows == [[way, precision, "2"] for precision in ("plain", "fast") for way in ("encode", "decode")]
    assert any(line.startswith("plain (torch): 4 codebooks, 0 of ") for line in shown)
    assert any(line.startswith("fast (") and "dB" in line for line in shown)
    assert main(["bench", "codec", str(tiny_codec_dir), "--precision", "half"]) == 2
    assert "--precision half: choose plain, exact, fast" in capsys.readouterr().err


def test_what_has_no_reference_is_said():
    """Another reference, or a codec that the reference lacks."""
    for codec, against in (("encodec_24khz", "opus"), ("speech_24khz", "encodec")):
        with pytest.raises(CheckpointError, match="encodec has encodec_24khz and encodec_48khz"):
            bench_codec(codec, against=against, settings=QUICK)


def test_the_command_prints_a_table(capsys, tiny_codec_dir):
    """Two directions a batch size, and a line that says what was measured."""
    assert main(["bench", "codec", str(tiny_codec_dir), "--seconds", "0.1", "--rounds", "1", "--batch", "3"]) == 0
    shown = capsys.readouterr().out
    assert "encode" in shown
    assert "decode" in shown
    assert "1 thread(s) of cpu" in shown


def test_a_preset_is_not_a_codec(capsys):
    """Without weights there is nothing to measure, nor to tokenize with: the error says what to pass."""
    assert main(["bench", "codec", "encodec_24khz"]) == 2
    assert "pass the file or directory that has them" in capsys.readouterr().err
