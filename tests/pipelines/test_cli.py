"""The command line: exit codes, one line for what went wrong, help that shows examples, and answers in every format."""

import io
import json
import subprocess
import sys

import polars as pl
import pytest
import soundfile

from pipelines.cli import main
from tests.conftest import speech_like
from tests.pipelines.small_datasets import write_dataset
from tokenizer import DatasetError

COMMANDS = [["codecs"], ["bench", "codec"]]
COMMANDS += [["demo"], ["tokenize"], ["decode"], ["query"], ["report"], ["train", "codec"], ["evaluate"]]
COMMANDS += [["compress"], ["decompress"], ["generate"], ["train", "lm"], ["evaluate-lm"], ["bench", "lm"]]
COMMANDS += [["bench", "generate"], ["bench", "serve"], ["serve"]]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, tiny_codec_dir):
    """A dataset of five utterances and one error."""
    root = tmp_path_factory.mktemp("cli") / "tokens"
    waveforms = {f"speaker/clip{index}.wav": speech_like(0.2 + 0.02 * index, seed=index) for index in range(5)}
    write_dataset(root, tiny_codec_dir, waveforms, errors=[("bad.wav", "AudioError", "bad.wav: no samples")])
    return str(root)


def failing(error):
    """A function that raises, whatever it is called with."""

    def raise_it(*args, **kwargs):
        raise error

    return raise_it


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_examples(command, capsys):
    """--help of each command shows how it is called, in lines that can be copied."""
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert shown.count(f"quantone {' '.join(command)}") >= 3  # the usage line and at least two examples


def test_help_loads_nothing_heavy():
    """`quantone --help` answers at once: no torch, no Ray, no Polars behind it."""
    heavy = ("torch", "ray", "polars", "pyarrow", "numpy")
    script = (
        "import sys; from pipelines.cli import main; code = main(['tokenize', '--help'])\n"
        f"sys.exit(code or ' '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sing"],
        ["tokenize"],
        ["tokenize", "{missing}", "out"],
        ["tokenize", "{missing}/*.wav", "out"],
        ["tokenize", "{audio}", "out", "--codec", "no_such_codec"],
        ["tokenize", "{audio}", "out", "--codec", "{codec}", "--bandwidth", "5"],
        ["tokenize", "{audio}", "out", "--codec", "{codec}", "--num-workers", "0"],
        ["decode", "{missing}", "out"],
        ["decode", "{tokens}", "out", "--bandwidth", "5"],
        ["decode", "{tokens}", "out", "--format", "midi"],
        ["query", "{audio}", "SELECT 1"],
        ["query", "{tokens}", "SELECT 1 AS one FROM tokens", "--format", "xml"],
        ["report", "{missing}"],
        ["report", "{tokens}", "--bandwidth", "5"],
        ["train", "codec", "speech_24khz", "--data", "{missing}", "--run-dir", "out"],
        ["evaluate", "no_such_codec", "{audio}"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_one_line(arguments, tokens, tiny_codec_dir, tmp_path, monkeypatch, capsys):
    """What cannot be meant is refused before anything is started or written, and the one line says what it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "clip.wav", speech_like(0.2), 24000)
    places = {"missing": "missing", "audio": "audio", "tokens": tokens, "codec": tiny_codec_dir}
    assert main([argument.format(**places) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio"]


def test_no_command_shows_the_help_and_is_wrong_usage(capsys):
    """`quantone` alone lists the commands."""
    assert main([]) == 2
    assert "tokenize" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DatasetError("the disk\nis odd"), 1, "error: the disk is odd\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (ValueError("bandwidth 5 kbps is not available"), 2, "error: bandwidth 5 kbps is not available\n"),
        (KeyError("x"), 1, "error: unexpected KeyError: 'x' (--debug shows the traceback)\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_failures_are_one_line_and_an_exit_code(error, code, said, tokens, monkeypatch, capsys):
    """Work that failed exits with 1, arguments refused at the door of a function with 2, Ctrl-C with 130."""
    monkeypatch.setattr("pipelines.datasets.dataset.query_dataset", failing(error))
    assert main(["query", tokens, "SELECT 1"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("place", [0, 1, 3], ids=["before the command", "after it", "at the end"])
def test_debug_shows_the_traceback_wherever_it_stands(place, tokens, monkeypatch, capsys):
    """--debug adds where it happened, and changes no exit code."""
    monkeypatch.setattr("pipelines.datasets.dataset.query_dataset", failing(DatasetError("odd")))
    arguments = ["query", tokens, "SELECT 1"]
    arguments.insert(place, "--debug")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "raise_it" in said
    assert said.endswith("error: odd\n")


def test_version_is_printed(capsys):
    """--version needs no command."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("quantone ")


def test_query_answers_in_every_format(tokens, tmp_path, capfdbinary):
    """One query, four formats with the same rows; a file's extension names its format."""
    sql = "SELECT id, num_frames, codes_00 FROM tokens ORDER BY id"
    assert main(["query", tokens, sql]) == 0
    table = capfdbinary.readouterr().out.decode()
    assert "speaker/clip0.wav" in table
    assert "in all]" in table  # long lists are cut, and say so
    assert main(["query", tokens, sql, "--format", "json"]) == 0
    from_json = json.loads(capfdbinary.readouterr().out)
    assert main(["query", tokens, sql, "--format", "csv"]) == 0
    from_csv = pl.read_csv(io.BytesIO(capfdbinary.readouterr().out))
    assert main(["query", tokens, sql, "-o", str(tmp_path / "rows.parquet")]) == 0
    from_parquet = pl.read_parquet(tmp_path / "rows.parquet")
    assert from_parquet.height == 5
    assert from_parquet.to_dicts() == from_json
    assert [json.loads(codes) for codes in from_csv["codes_00"]] == from_parquet["codes_00"].to_list()


def test_query_reads_errors_too(tokens, capfdbinary):
    """Inputs that failed are one table away."""
    assert main(["query", tokens, "SELECT id, error FROM errors", "-f", "csv"]) == 0
    assert capfdbinary.readouterr().out == b"id,error\nbad.wav,AudioError\n"


def test_wrong_sql_is_a_failure_with_the_reason(tokens, capsys):
    """A column that does not exist is named in the one line."""
    assert main(["query", tokens, "SELECT loudness FROM tokens"]) == 1
    said = capsys.readouterr().err
    assert "loudness" in said
    assert said.count("\n") == 1


def test_a_reader_that_stops_early_is_no_drama(tokens):
    """`quantone query ... | head` ends without a traceback."""
    script = "import sys; from pipelines.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "query", tokens, "SELECT * FROM tokens", "-f", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


def test_the_round_trip_by_commands(ray_session, speech_folder, tiny_codec_dir, tmp_path, capfd):
    """tokenize, tokenize again, query, decode: every file comes back under its own name."""
    (speech_folder / "empty.wav").write_bytes(b"")
    dataset, audio = str(tmp_path / "tokens"), tmp_path / "audio"
    command = ["tokenize", str(speech_folder), dataset, "--codec", str(tiny_codec_dir), "-j", "1"]
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert "10 inputs tokenized, 1 errors" in out
    assert "SELECT id, message FROM errors" in out
    assert "files" in err  # the progress line
    assert main([*command, "--quiet"]) == 0
    assert capfd.readouterr().out == ""
    assert main(["query", dataset, "SELECT count(*) AS n FROM tokens", "-f", "csv"]) == 0
    assert capfd.readouterr().out == "n\n10\n"
    assert main(["decode", dataset, str(audio), "-j", "1", "--format", "flac", "-q"]) == 0
    names = {path.relative_to(speech_folder).with_suffix("") for path in speech_folder.rglob("clip*.wav")}
    assert {path.relative_to(audio).with_suffix("") for path in audio.rglob("*.flac")} == names
