"""quantone compress and decompress: files and pipes, bundled models and others, and one line that says what it cost."""

import io
import re
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import typer

from lm_head.compression import CodecIdentity, compress
from lm_head.decompression import open_qtn
from lm_head.lm_checkpoint import LMCard
from pipelines.commands import cli_compress
from pipelines.commands.cli_outcome import run
from pipelines.recordings import stream_models
from tests.conftest import speech_like
from tokenizer import CheckpointError, Codec, decode_file, encode_file, load_codec, save_codec
from tokenizer.presets import PRESETS

OWN = "tiny"

app = typer.Typer()
app.command()(cli_compress.compress)
app.command()(cli_compress.decompress)


class RememberingCoder:
    """An entropy coder that has seen it all: it keeps what it encodes, and writes four bytes that say where."""

    num_codebooks, codebook_size, max_frames = 8, 16, 4096

    def __init__(self, name):
        self.identity = name.encode().hex().ljust(64, "0")
        self.seen = []

    def encode(self, blocks):
        self.seen += blocks
        return [struct.pack("<I", len(self.seen) - len(blocks) + place) for place in range(len(blocks))]

    def decode(self, payloads, *shape):  # noqa: ARG002 - it knows
        return [self.seen[struct.unpack("<I", payload)[0]] for payload in payloads]


def quantone(*arguments):
    """The exit code of a command."""
    return run(app, [str(argument) for argument in arguments], "quantone")


@pytest.fixture
def lms(monkeypatch, tiny_codec_dir):
    """Language models that are bundled in these tests: none, until a test names some. OWN is the tiny codec's."""
    bundled, tiny = {}, load_codec(tiny_codec_dir).sha256

    def load_coder(source):
        if source not in bundled:
            raise CheckpointError(f"no language model {source!r}")
        return bundled[source]

    def read_lm_card(source):
        return LMCard(source, {"sha256": tiny if source == OWN else "0" * 64})

    monkeypatch.setattr(stream_models, "bundled_lms", lambda: sorted(bundled))
    monkeypatch.setattr(stream_models, "load_coder", load_coder)
    monkeypatch.setattr(stream_models, "read_lm_card", read_lm_card)
    return bundled


@pytest.fixture
def clip(tmp_path):
    """Half a second of speech-like sound at 16 kHz."""
    soundfile.write(tmp_path / "clip.wav", speech_like(0.5, 16000), 16000)
    return tmp_path / "clip.wav"


@pytest.fixture
def feed(monkeypatch):
    """Let the commands find bytes in stdin."""
    return lambda content: monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_file_goes_there_and_back(lms, clip, tiny_codec_dir, tmp_path, capsys):
    """What comes out is what the codec makes of its own codes, at any bandwidth up to that of the file."""
    codec = load_codec(tiny_codec_dir)
    stream = tmp_path / "clip.qtn"
    assert quantone("compress", clip, stream, "--codec", tiny_codec_dir, "-b", 36) == 0
    encoded = encode_file(codec, clip, bandwidth_kbps=36)
    assert stream.read_bytes() == compress(encoded, codec)
    for name, options in {"whole.wav": [], "low.flac": ["-b", 12]}.items():
        assert quantone("decompress", stream, tmp_path / name, "--codec", tiny_codec_dir, *options) == 0
        expected = tmp_path / f"expected{name}"
        decode_file(codec, encoded, expected, bandwidth_kbps=12 if options else None)
        np.testing.assert_array_equal(soundfile.read(tmp_path / name)[0], soundfile.read(expected)[0])
    assert capsys.readouterr().err == ""
    assert quantone("compress", clip, stream, "--codec", tiny_codec_dir, "-q") == 0
    assert capsys.readouterr().out == ""


def test_the_bundled_codec_needs_no_name(lms, clip, tmp_path):
    """A stream of the bundled codec is decoded as it is, by the sha256 that it carries."""
    assert quantone("compress", clip, tmp_path / "clip.qtn", "-b", 1.5) == 0
    assert quantone("decompress", tmp_path / "clip.qtn", tmp_path / "out.wav") == 0
    assert soundfile.info(tmp_path / "out.wav").frames == 12000


def test_one_line_says_what_it_cost(lms, clip, tiny_codec_dir, tmp_path, capsys):
    """Seconds, bytes, kbps, and what was saved, all by the size of the file."""
    stream = tmp_path / "clip.qtn"
    lms[OWN] = RememberingCoder(OWN)
    for options, change in ((["--lm", "none"], "more"), ([], "less")):
        assert quantone("compress", clip, stream, "--codec", tiny_codec_dir, *options) == 0
        size, packed = stream.stat().st_size, 1500 * 4 * 4 // 8
        assert capsys.readouterr().out == (
            f"{stream}: 0.50 s of audio, {size:,} bytes, {8 * size / 500:.2f} kbps, "
            f"{100 * abs(1 - size / packed):.1f} % {change} than its codes at 4 bits each\n"
        )
    assert quantone("decompress", stream, tmp_path / "out.wav", "--codec", tiny_codec_dir) == 0
    assert f"out.wav: from 0.50 s of audio, {size:,} bytes" in capsys.readouterr().out


def test_pipes_carry_what_files_carry(lms, clip, tiny_codec_dir, tmp_path, feed, capsysbinary):
    """A wav on stdin, a stream on stdout, a wav again: byte for byte the files, and what is said goes to stderr."""
    options = ["--codec", tiny_codec_dir]
    assert quantone("compress", clip, tmp_path / "clip.qtn", *options, "-q") == 0
    assert quantone("decompress", tmp_path / "clip.qtn", tmp_path / "out.wav", *options, "-q") == 0
    for command, content, file in (("compress", clip, "clip.qtn"), ("decompress", tmp_path / "clip.qtn", "out.wav")):
        feed(content.read_bytes())
        assert quantone(command, "-", "-", *options) == 0
        out, err = capsysbinary.readouterr()
        assert out == (tmp_path / file).read_bytes()
        assert re.fullmatch(rb"-: .*0\.50 s of audio, .*\n", err)


def test_a_wav_whose_writer_could_not_go_back_is_read(lms, clip, tiny_codec_dir, feed, capsysbinary):
    """ffmpeg writes wavs of unknown length into a pipe: all that arrives is compressed."""
    content = bytearray(clip.read_bytes())
    start = content.index(b"data") + 4
    content[4:8] = content[start : start + 4] = b"\xff\xff\xff\xff"
    streams = []
    for wav in (clip.read_bytes(), bytes(content)):
        feed(wav)
        assert quantone("compress", "-", "-", "--codec", tiny_codec_dir, "-q") == 0
        streams.append(capsysbinary.readouterr().out)
    assert streams[0] == streams[1]


def test_the_language_model_is_the_codecs_own(lms, clip, tiny_codec_dir, tmp_path):
    """The bundled one of the codec is used, and found again when reading; none and others can be asked for."""
    options = ["--codec", tiny_codec_dir, "-q"]
    lms |= {"another": RememberingCoder("another"), OWN: RememberingCoder(OWN)}
    models = {}
    for name, choice in {"own": [], "another": ["--lm", "another"], "none": ["--lm", "none"]}.items():
        stream = tmp_path / f"{name}.qtn"
        assert quantone("compress", clip, stream, *options, *choice) == 0
        models[name] = open_qtn(stream.read_bytes()).header.model
        assert quantone("decompress", stream, tmp_path / f"{name}.wav", *options) == 0
        assert (tmp_path / f"{name}.wav").read_bytes() == (tmp_path / "own.wav").read_bytes()
    assert models == {"own": lms[OWN].identity[:8], "another": lms["another"].identity[:8], "none": None}
    assert quantone("decompress", tmp_path / "own.qtn", tmp_path / "x.wav", *options, "--lm", OWN) == 0


def test_models_that_are_not_at_hand_are_named(lms, clip, tiny_codec_dir, tmp_path, capsys):
    """An unknown codec or language model is one line with the start of its sha256, and what to do about it."""
    stream = tmp_path / "clip.qtn"
    lms[OWN] = RememberingCoder(OWN)
    assert quantone("compress", clip, stream, "--codec", tiny_codec_dir, "-q") == 0
    prefix = CodecIdentity.of(load_codec(tiny_codec_dir)).prefix
    cases = {
        f"sha256 begins with {prefix}, which is not bundled: name it with --codec": [],
        f"sha256 begins with {prefix}, the one at hand is": ["--codec", "speech_24khz"],
        "no language model 'missing'": ["--codec", tiny_codec_dir, "--lm", "missing"],
        "coded by model 74696e79, and no entropy model is at hand": ["--codec", tiny_codec_dir, "--lm", "none"],
    }
    for said, options in cases.items():
        assert quantone("decompress", stream, tmp_path / "out.wav", *options) == 1
        assert said in capsys.readouterr().err
    lms["other"] = RememberingCoder("other")
    del lms[OWN]
    assert quantone("decompress", stream, tmp_path / "out.wav", "--codec", tiny_codec_dir) == 1
    assert "coded by model 74696e79, which is not bundled: name it with --lm" in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_ecdc_is_read_and_written_by_its_name(clip, tmp_path, feed, capsys):
    """A name that ends in .ecdc means the original's format; what a pipe brings tells by its first bytes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Codec(PRESETS["encodec_24khz"], name="encodec").eval()
        codec.quantizer.set_codebooks(torch.randn_like(codec.quantizer.codebooks))
    save_codec(codec, tmp_path / "encodec")
    options = ["--codec", tmp_path / "encodec", "-q"]
    stream = tmp_path / "clip.ecdc"
    assert quantone("compress", clip, stream, *options, "-b", 3) == 0
    assert stream.read_bytes().startswith(b"ECDC")
    assert quantone("decompress", stream, tmp_path / "out.wav", *options) == 0
    decode_file(codec, encode_file(codec, clip, bandwidth_kbps=3), tmp_path / "expected.wav")
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "expected.wav").read_bytes()
    feed(stream.read_bytes())
    assert quantone("decompress", "-", tmp_path / "piped.wav", *options) == 0
    assert (tmp_path / "piped.wav").read_bytes() == (tmp_path / "expected.wav").read_bytes()
    assert quantone("decompress", stream, tmp_path / "x.wav") == 2
    assert "--codec" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "{missing}", "out.qtn"],
        ["compress", "{clip}", "out.mp3"],
        ["compress", "{clip}", "no/such/folder/out.qtn"],
        ["compress", "{clip}", "out.qtn", "--codec", "no_such_codec"],
        ["compress", "{clip}", "out.qtn", "--codec", "{codec}", "-b", "5"],
        ["decompress", "{missing}", "out.wav"],
        ["decompress", "{clip}", "out.midi"],
        ["decompress", "{clip}", "out.wav", "--codec", "no_such_codec"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused_before_any_work(arguments, lms, clip, tiny_codec_dir, tmp_path, monkeypatch, capsys):
    """Exit code 2 and one line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    places = {"missing": "missing", "clip": clip, "codec": tiny_codec_dir}
    assert quantone(*(argument.format(**places) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["clip.wav"]


def test_bytes_do_not_go_to_a_terminal(lms, clip, tiny_codec_dir, monkeypatch, capsys):
    """A stream to a terminal would only garble it."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for command in ("compress", "decompress"):
        assert quantone(command, clip, "-") == 2
        assert "terminal" in capsys.readouterr().err


def test_damaged_files_leave_nothing_behind(lms, clip, tiny_codec_dir, tmp_path, feed, capsys):
    """A damaged stream, and audio that is none, are one line, exit code 1, and no file."""
    options = ["--codec", tiny_codec_dir, "-q"]
    stream = tmp_path / "clip.qtn"
    assert quantone("compress", clip, stream, *options) == 0
    content = bytearray(stream.read_bytes())
    content[-9] ^= 1
    stream.write_bytes(content)
    assert quantone("decompress", stream, tmp_path / "out.wav", *options) == 1
    assert f"error: {stream}: block 0 is damaged" in capsys.readouterr().err
    assert quantone("decompress", clip, tmp_path / "out.wav", *options) == 1
    assert "does not begin with QTN" in capsys.readouterr().err
    feed(b"no audio")
    assert quantone("compress", "-", tmp_path / "out.qtn", *options) == 1
    assert "error: stdin: not audio" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.qtn", "clip.wav"]
