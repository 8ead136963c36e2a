"""The demo: one call, everything to look at."""

import pytest
import soundfile

from pipelines import open_dataset
from pipelines.bundled_speech import DEMO_SPEECH
from pipelines.commands.demo import demo_bandwidths, run_demo
from tests.conftest import speech_like, tiny_spec
from tokenizer import load_codec


@pytest.fixture
def three_clips(tmp_path, monkeypatch):
    """A small stand-in for the bundled speech: the demo's own 28 clips take a while."""
    folder = tmp_path / "bundled"
    for index, language in enumerate(("en", "en", "sw")):
        path = folder / language / f"clip{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(0.3 + 0.1 * index, seed=index), 24000)
    monkeypatch.setattr("pipelines.commands.demo.DEMO_SPEECH", folder)
    return folder


def test_the_demo_makes_everything_and_can_be_run_again(ray_session, three_clips, tiny_codec_dir, tmp_path, capfd):
    """Tokens, audio at two bandwidths and the report are there; the text says where, and what to type next.

    A second run finds the tokens done and makes the rest anew.
    """
    out_dir = tmp_path / "demo out"
    run_demo(out_dir, codec=tiny_codec_dir)
    shown = capfd.readouterr().out
    spec = load_codec(tiny_codec_dir).spec
    assert open_dataset(out_dir / "tokens").collect().height == 3
    for kbps in demo_bandwidths(spec):
        folder = out_dir / f"audio-{kbps:g}kbps"
        assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav")) == [
            "en/clip0.wav",
            "en/clip1.wav",
            "sw/clip2.wav",
        ]
        assert str(folder) in shown
    assert "clip0.wav" in (out_dir / "report.html").read_text(encoding="utf-8")
    assert str(out_dir / "report.html") in shown
    assert "language" in shown  # the first query
    assert "% of frames" in shown  # the second one
    assert f"quantone query '{out_dir / 'tokens'}'" in shown  # can be pasted, whatever the path
    (out_dir / "report.html").unlink()
    run_demo(out_dir, codec=tiny_codec_dir)
    assert "3 done before" in capfd.readouterr().out
    assert (out_dir / "report.html").exists()


def test_the_two_bandwidths_are_a_middling_one_and_all():
    """Of 1.5, 3, 6 and 12 kbps: 3 and 12."""
    spec = tiny_spec("patch")
    assert demo_bandwidths(spec) == (2 * spec.level_kbps, 4 * spec.level_kbps)


def test_the_bundled_speech_is_where_the_demo_looks():
    """The folder belongs to the package, so that it is there after an install."""
    assert DEMO_SPEECH.is_dir()
    assert DEMO_SPEECH.parent.name == "pipelines"
