"""The command `quantone evaluate`: arguments in, one evaluation or one summary out."""

import json

import pytest
import soundfile

from pipelines.cli import main
from tests.conftest import speech_like


@pytest.fixture
def speech(tmp_path):
    """Two clips, and a text file that calls itself a wav."""
    (tmp_path / "speech").mkdir()
    for number in range(2):
        soundfile.write(tmp_path / "speech" / f"{number}.wav", speech_like(0.4, seed=number), 24000)
    (tmp_path / "speech" / "text.wav").write_text("not audio")
    return tmp_path / "speech"


def test_one_command_gives_table_json_and_pages(speech, tiny_codec_dir, tmp_path, monkeypatch, capsys):
    """Scores on the screen and in the file; the folder to listen in; what was left out."""
    monkeypatch.setattr("pipelines.evaluating.evaluation_scores.METRICS", dict.fromkeys(
        ["si_snr_db", "mel_distance", "stoi", "pesq_wb", "visqol"], lambda *_: 0.5
    ))  # fmt: skip
    command = ["evaluate", str(tiny_codec_dir), str(speech), "-b", "24", "-j", "1", "--no-opus", "-q"]
    command += ["-o", str(tmp_path / "s.json"), "--html", str(tmp_path / "pages"), "--listen", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "2 clips, compared at 24 kHz" in out
    assert "0.500 ±.000" in out
    assert "entries in use" in out
    assert "left out: text.wav" in out
    assert str(tmp_path / "pages" / "index.html") in out
    assert [row["bandwidth_kbps"] for row in json.loads((tmp_path / "s.json").read_text())["rows"]] == [24.0]
    assert (tmp_path / "pages" / "open.html").is_file()


def test_every_option_reaches_the_evaluation(speech, tiny_codec_dir, tmp_path, monkeypatch):
    """Nothing that was asked for is forgotten on the way."""
    seen = {}

    def evaluate_codec(*places, **options):
        seen.update(options, places=places)
        raise ValueError("seen enough")

    monkeypatch.setattr("pipelines.evaluating.evaluate.evaluate_codec", evaluate_codec)
    codec = str(tiny_codec_dir)
    command = ["evaluate", codec, str(speech), "--against", "speech_24khz", "-b", "12", "-b", "24", "--no-opus"]
    assert main([*command, "--split", "test", "--kind", "music", "--limit", "3", "-j", "4", "-q"]) == 2
    assert seen == {
        "places": (codec, str(speech)),
        "against": ["speech_24khz"],
        "bandwidths_kbps": [12.0, 24.0],
        "split": "test",
        "kind": "music",
        "limit": 3,
        "with_opus": False,
        "num_workers": 4,
        "progress": False,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["{codec}"],
        ["{codec}", "{speech}", "{speech}"],
        ["{codec}", "missing"],
        ["{codec}", "{speech}", "--against", "no_such_codec"],
        ["{codec}", "{speech}", "--kind", "music"],
        ["--mushra", "missing.csv"],
        ["--mushra"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_one_line(arguments, speech, tiny_codec_dir, capsys):
    """What cannot be meant is refused before any work."""
    places = {"codec": tiny_codec_dir, "speech": speech}
    assert main(["evaluate", *(argument.format(**places) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_results_of_listeners_are_summarized(tmp_path, capsys):
    """Several files, the filter's reasons, the table, and JSON."""
    for name, reference in (("anna", 98), ("ben", 40)):
        rows = [f"{name},clip,reference,{reference}", f"{name},clip,low_anchor,20", f"{name},clip,mine,60"]
        (tmp_path / f"{name}.csv").write_text("\n".join(["listener,clip,condition,score", *rows]) + "\n")
    files = [str(tmp_path / "anna.csv"), str(tmp_path / "ben.csv")]
    assert main(["evaluate", "--mushra", *files, "-o", str(tmp_path / "m.json")]) == 0
    out = capsys.readouterr().out
    assert "dropped ben: hidden reference under 90 in 1 of 1 cases" in out
    assert "1 of 2 listeners kept" in out
    assert "mine" in out
    assert json.loads((tmp_path / "m.json").read_text())["listeners"] == ["anna"]
    assert main(["evaluate", "--mushra", files[1]]) == 1
    assert "0 of 1 listener kept" in capsys.readouterr().out


def test_a_broken_result_is_one_line(tmp_path, capsys):
    """With file and row, and exit code 1."""
    (tmp_path / "a.csv").write_text("listener,clip,condition,score\nanna,clip,reference,loud\n")
    assert main(["evaluate", "--mushra", str(tmp_path / "a.csv")]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'a.csv'}, row 2: score 'loud'")
    assert err.count("\n") == 1
