"""What a service is started with: the same from a command line, a YAML file and `serve run NAME=VALUE`."""

import pytest

from pipelines.serving.serve_arguments import TOKEN_VARIABLE, ServeArguments, load_engines
from pipelines.serving.service_metrics import ServiceMetrics
from tests.conftest import make_codec, tiny_spec
from tokenizer import CheckpointError, save_codec

FILE = {
    "codecs": ["speech_24khz", "runs/mine"],
    "threads": 2,
    "max_streams": 32,
    "max_audio_s": 90.5,
    "cors_origins": ["https://example.org"],
}
COMMAND_LINE = {
    "codecs": "speech_24khz, runs/mine",
    "threads": "2",
    "max_streams": "32",
    "max_audio_s": "90.5",
    "cors_origins": "https://example.org",
}


@pytest.mark.parametrize("given", [FILE, COMMAND_LINE], ids=["yaml", "text"])
def test_values_of_a_file_and_of_a_command_line_are_read_alike(given):
    """YAML has types, `serve run` has text only: both give the same settings."""
    read = ServeArguments.from_dict(given)
    assert read.codecs == ("speech_24khz", "runs/mine")
    assert read.threads == 2
    assert read.engine.max_streams == 32
    assert read.service.max_audio_s == 90.5
    assert read.service.cors_origins == ("https://example.org",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_stream": 3}, "no such argument of a service: max_stream; there are codecs, device, precision, thr"),
        ({"max_streams": "many"}, "max_streams is a whole number, not 'many'"),
        ({"max_streams": 1.5}, "max_streams is a whole number, not 1.5"),
        ({"max_streams": True}, "max_streams is a whole number, not True"),
        ({"max_audio_s": None}, "max_audio_s is a number, not None"),
        ({"device": 0}, "device is text, not 0"),
        ({"codecs": [1]}, "codecs is a list of names, not \\[1\\]"),
        ({"codecs": []}, "a service needs a codec"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"max_streams": 0}, "max_streams must be at least 1"),
        ({"device": "tpu"}, "device 'tpu': it is cpu, cuda or cuda:0"),
        ({"token": "secret"}, f"give it as {TOKEN_VARIABLE}"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(given, message):
    """Nothing is ignored: what is misspelt or of another kind stops the service before it starts."""
    with pytest.raises(ValueError, match=message):
        ServeArguments.from_dict(given)


def test_a_stop_waits_for_the_longest_stream():
    """Unless somebody says how long; and whoever may kill the process waits for what is written after that."""
    assert ServeArguments.from_dict({"max_audio_s": 300}).service.drain_timeout_s == 300
    said = ServeArguments.from_dict({"max_audio_s": 300, "drain_timeout_s": 5})
    assert said.service.drain_timeout_s == 5
    assert said.stop_timeout_s > 5


def test_the_token_comes_from_the_environment_of_the_process(monkeypatch):
    """It is in no file, no argument and no representation that a log could show."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    arguments = ServeArguments()
    assert arguments.service_settings().token is None
    monkeypatch.setenv(TOKEN_VARIABLE, "sesame")
    assert arguments.service_settings().token == "sesame"  # noqa: S105
    assert "sesame" not in repr(arguments)


def test_engines_are_named_as_their_codecs(tiny_codec_dir):
    """By the name that a codec has in its files, with the limits of the arguments and its metrics."""
    metrics = ServiceMetrics()
    engines = load_engines(ServeArguments.from_dict({"codecs": [str(tiny_codec_dir)], "max_streams": 3}), metrics)
    assert list(engines) == ["tiny_patch"]
    assert engines["tiny_patch"].settings.max_streams == 3
    assert b'quantone_serve_active_streams{codec="tiny_patch"} 0.0' in metrics.render()


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"codecs": "no_such_codec"}, CheckpointError, "no_such_codec"),
        ({"device": "cuda"}, ValueError, "device 'cuda': torch sees no CUDA device here"),
    ],
    ids=["codec", "device"],
)
def test_what_cannot_be_loaded_is_said(monkeypatch, given, kind, message):
    """Before anything listens."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(kind, match=message):
        load_engines(ServeArguments.from_dict(given), ServiceMetrics())


def test_two_codecs_of_one_name_are_refused(tiny_codec_dir, tmp_path):
    """A request could not say which it means."""
    other = tmp_path / tiny_codec_dir.name
    save_codec(make_codec(tiny_spec("patch")), other)
    with pytest.raises(ValueError, match="two codecs are named 'tiny_patch'"):
        load_engines(ServeArguments(codecs=(str(tiny_codec_dir), str(other))), ServiceMetrics())
