"""`quantone generate`: a recording goes on, and what is written is what offline decoding gives."""

import pytest
import soundfile
import torch
import typer

from lm_head.generation import generate
from lm_head.lm_checkpoint import LMCard, load_lm, save_lm
from lm_head.sampling import Sampling
from lm_head.token_lm import LMConfig, TokenLM
from pipelines.commands.cli_generate import generate as generate_command
from pipelines.commands.cli_outcome import run
from pipelines.recordings.generate_audio import Continuation, generate_audio
from tests.conftest import make_codec, speech_like, tiny_spec
from tests.lm_head.small_language import sharpened
from tokenizer import AudioError, CheckpointError, Encoded, load_codec, read_audio, save_codec, write_audio

HOP, LEVELS, PROMPT_FRAMES = 8, 3, 60


@pytest.fixture(scope="module", params=["patch", "mirrored"])
def codec_dir(request, tmp_path_factory):
    """A codec that answers at once, and one that holds back the start of a stream."""
    directory = tmp_path_factory.mktemp("generate") / "codec"
    save_codec(make_codec(tiny_spec(request.param)), directory)
    return directory


def write_lm(directory, codec_dir, **settings):
    """A random model for the codes of a codec, with fewer levels than it has."""
    sizes = {"codebook_size": 16, "dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "context_frames": 20}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = TokenLM(LMConfig(num_codebooks=LEVELS, **{**sizes, **settings}))
    save_lm(sharpened(lm), directory, LMCard("tiny", load_codec(codec_dir).card()))
    return str(directory)


@pytest.fixture
def lm_dir(tmp_path, codec_dir):
    """Layout "delay", which is the hardest."""
    return write_lm(tmp_path / "lm", codec_dir, layout="delay")


@pytest.fixture
def prompt(tmp_path):
    """60 whole frames and half of one."""
    path = tmp_path / "prompt.wav"
    soundfile.write(path, speech_like(1.0)[: HOP * PROMPT_FRAMES + HOP // 2], 24000)
    return path


def test_the_file_is_the_decoded_prompt_and_what_follows_it(prompt, codec_dir, lm_dir, tmp_path):
    """Streaming into the decoder gives the samples of one decode of all codes, to the last one asked for."""
    sampling = Sampling(top_p=0.9)
    continuation = Continuation(seconds=0.0101, sampling=sampling, seed=5)
    done = generate_audio(prompt, tmp_path / "o.wav", lm=lm_dir, codec=str(codec_dir), continuation=continuation)
    codec = load_codec(codec_dir)
    waveform, _ = read_audio(prompt)
    codes = codec.encode(waveform[:, : HOP * PROMPT_FRAMES], bandwidth_kbps=LEVELS * codec.spec.level_kbps).codes
    new = list(generate(load_lm(lm_dir), codes, done.new_frames, sampling=sampling, seed=5))
    everything = torch.cat([codes, *new], dim=-1)
    expected = codec.decode(Encoded(everything, None, HOP * everything.shape[-1]))[0]
    write_audio(tmp_path / "expected.wav", expected[:, : HOP * PROMPT_FRAMES + round(0.0101 * 24000)], 24000)
    written, expected = read_audio(tmp_path / "o.wav")[0], read_audio(tmp_path / "expected.wav")[0]
    assert written.shape == expected.shape
    assert (written - expected).abs().max() <= 1 / 32768  # the last bit of 16 may be rounded either way
    assert (done.prompt_frames, done.new_frames, done.num_codebooks) == (PROMPT_FRAMES, 31, LEVELS)
    assert 0 < done.first_frames_s < done.generation_s


def test_the_prompt_can_be_left_out(prompt, codec_dir, lm_dir, tmp_path):
    """What remains are the very samples that stand behind it otherwise."""
    for keep in (True, False):
        continuation = Continuation(seconds=0.01, keep_prompt=keep)
        generate_audio(prompt, tmp_path / f"{keep}.wav", lm=lm_dir, codec=str(codec_dir), continuation=continuation)
    whole, new = (read_audio(tmp_path / f"{keep}.wav")[0] for keep in (True, False))
    assert new.shape[-1] == 240
    assert torch.equal(new, whole[:, -240:])


def test_fewer_levels_on_request(prompt, codec_dir, lm_dir, tmp_path):
    """A bandwidth of the codec, up to what the model knows; more is refused before anything is written."""
    kbps = load_codec(codec_dir).spec.level_kbps
    settings = {"lm": lm_dir, "codec": str(codec_dir)}
    few = Continuation(seconds=0.01, bandwidth_kbps=2 * kbps)
    assert generate_audio(prompt, tmp_path / "o.wav", continuation=few, **settings).num_codebooks == 2
    with pytest.raises(ValueError, match="4 levels, the language model knows 3: 36 kbps"):
        generate_audio(prompt, tmp_path / "x.wav", continuation=Continuation(bandwidth_kbps=4 * kbps), **settings)
    assert not (tmp_path / "x.wav").exists()


def test_a_model_needs_the_codec_whose_codes_it_knows(prompt, lm_dir, tmp_path):
    """Codes of another codec are noise to it: the error names both."""
    with pytest.raises(CheckpointError, match=r"knows the codes of codec 'tiny_.*this is 'speech_24khz'"):
        generate_audio(prompt, tmp_path / "o.wav", lm=lm_dir, codec="speech_24khz")


def test_prompts_have_at_least_a_frame(codec_dir, lm_dir, tmp_path):
    """Half a frame is nothing to go on from."""
    soundfile.write(tmp_path / "short.wav", speech_like(1.0)[: HOP // 2], 24000)
    with pytest.raises(AudioError, match="shorter than a frame"):
        generate_audio(tmp_path / "short.wav", tmp_path / "o.wav", lm=lm_dir, codec=str(codec_dir))


def command_line(*arguments):
    app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
    app.command("generate")(generate_command)
    return run(app, list(map(str, arguments)), "quantone")


def test_every_option_reaches_the_model(prompt, codec_dir, tmp_path, capsys):
    """The command writes what the function does with the same settings, and says what it did."""
    lm = write_lm(tmp_path / "reading", codec_dir, text=True)
    options = ["--lm", lm, "--codec", codec_dir, "--seconds", "0.02", "--bandwidth", "24", "--text", "so be it"]
    options += ["--temperature", "0.8", "--top-k", "9", "--top-p", "0.9", "--seed", "3", "--no-keep-prompt"]
    assert command_line(prompt, tmp_path / "command.wav", *options) == 0
    assert "60 new frames of 2 levels after 60" in capsys.readouterr().out
    continuation = Continuation(
        seconds=0.02,
        bandwidth_kbps=24,
        sampling=Sampling(temperature=0.8, top_k=9, top_p=0.9),
        seed=3,
        text="so be it",
        keep_prompt=False,
    )
    generate_audio(prompt, tmp_path / "function.wav", lm=lm, codec=str(codec_dir), continuation=continuation)
    assert (tmp_path / "command.wav").read_bytes() == (tmp_path / "function.wav").read_bytes()
    assert command_line(prompt, tmp_path / "quiet.wav", *options, "-q") == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "quiet.wav").read_bytes() == (tmp_path / "function.wav").read_bytes()


def test_text_changes_what_is_said(prompt, codec_dir, tmp_path):
    """Another transcript, other sound."""
    lm = write_lm(tmp_path / "reading", codec_dir, text=True)
    for text in ("one", "two"):
        continuation = Continuation(seconds=0.02, text=text)
        generate_audio(prompt, tmp_path / f"{text}.wav", lm=lm, codec=str(codec_dir), continuation=continuation)
    assert (tmp_path / "one.wav").read_bytes() != (tmp_path / "two.wav").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "1.5"], "top_p"),
        (["--seconds", "inf"], "seconds"),
        (["--text", "hello"], "without text"),
        (["--bandwidth", "7"], "bandwidth 7 kbps"),
        (["--codec", "nowhere"], "no codec 'nowhere'"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(options, message, prompt, codec_dir, lm_dir, tmp_path, capsys):
    """Exit code 2, what was wrong, and no file."""
    given = ["--lm", lm_dir, "--codec", codec_dir, *options]
    assert command_line(prompt, tmp_path / "o.wav", *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.wav").exists()


def test_a_prompt_that_is_not_there(tmp_path, capsys):
    """Said before anything is loaded."""
    assert command_line(tmp_path / "none.wav", tmp_path / "o.wav") == 2
    assert "none.wav: no such file" in capsys.readouterr().err
