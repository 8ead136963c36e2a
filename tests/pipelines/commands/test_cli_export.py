"""quantone export: arguments in, files and one line out, and the exit code that says what was wrong."""

import json

import numpy as np
import pytest
import typer

from pipelines.commands import cli_export
from pipelines.commands.cli_outcome import run
from pipelines.exporting.export_card import decode_tokens, read_token_card
from tests.pipelines.exports import read_exported, write_small, write_tokenizer

app = typer.Typer()
app.command()(cli_export.export)


def quantone(*arguments):
    """The exit code of a command."""
    return run(app, [str(argument) for argument in arguments], "quantone export")


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    texts = ("a", None, "b c")
    return tmp_path / "tokens", write_small(tmp_path / "tokens", tiny_codec_dir, (4, 2, 3), texts=texts)


@pytest.mark.parametrize("file_format", ["parquet", "webdataset", "megatron"])
def test_export_writes_what_was_asked_for(dataset, tmp_path, capsys, file_format):
    """And says how much it is; the second time, that nothing was left to do."""
    root, codes = dataset
    command = (root, tmp_path / "out", "-l", "coarse_first", "-f", file_format, "-k", 2, "--shard-mb", 0.001)
    assert quantone(*command) == 0
    assert "3 sequences, 24 tokens of a vocabulary of 37; 24 of them now" in capsys.readouterr().out
    for (_, ids), expected in zip(read_exported(tmp_path / "out", file_format), codes.values(), strict=True):
        assert np.array_equal(decode_tokens(ids, tmp_path / "out"), expected[:2])
    assert quantone(*command) == 0
    assert "; 0 of them now" in capsys.readouterr().out
    assert quantone(*command, "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_text_and_special_ids_are_arguments(dataset, tmp_path, capsys):
    """Rows left out are counted."""
    pytest.importorskip("tokenizers")
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    text = ("--order", "text_audio", "--text-tokenizer", tokenizer, "--without-text", "skip")
    ids = ("--special", "begin_of_audio=1000", "--special", "end_of_audio=1001", "--offset", 300)
    assert quantone(dataset[0], tmp_path / "out", *text, *ids) == 0
    assert "rows left out: 1 without text, 0 without frames" in capsys.readouterr().out
    vocabulary = read_token_card(tmp_path / "out").vocabulary
    assert (vocabulary.offset, vocabulary.special_tokens.begin_of_audio) == (300, 1000)
    assert json.loads((tmp_path / "out/tokens.json").read_text())["vocabulary_size"] == 1002


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--layout", "diagonal"], 2, "layout 'diagonal' is not one of"),
        (["--special", "padding"], 2, "--special padding: it is NAME=ID"),
        (["--bandwidth", "1", "--codebooks", "2"], 2, "not both"),
        (["--order", "audio_text"], 2, "needs a text tokenizer"),
        (["--order", "audio_text", "--text-tokenizer", "nowhere.json"], 1, "nowhere.json: cannot be read"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(dataset, tmp_path, capsys, arguments, code, message):
    """2 for arguments that cannot be meant, 1 for files that are not there; nothing is written."""
    assert quantone(dataset[0], tmp_path / "out", *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_dataset(tmp_path, capsys):
    """The first thing that is looked at."""
    assert quantone(tmp_path, tmp_path / "out") == 2
    assert "not a token dataset" in capsys.readouterr().err
