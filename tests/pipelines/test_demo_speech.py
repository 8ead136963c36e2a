"""The bundled speech: what clips.jsonl says is there, small, mixed in format, and made by one script."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.inputs.sources import list_source
from tokenizer import read_audio

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "pipelines" / "demo_speech"
CLIPS = [json.loads(line) for line in (FOLDER / "clips.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_clip_is_listed_and_every_listed_clip_is_there():
    """clips.jsonl and the folder say the same, and a corpus job over the folder sees exactly these files."""
    ids = sorted(clip["id"] for clip in CLIPS)
    assert list_source(FOLDER).column("id").to_pylist() == ids
    assert len(set(ids)) == len(ids)
    assert all(set(clip) == {"id", "voice", "language", "text"} and clip["text"].strip() for clip in CLIPS)


def test_the_clips_are_small_and_short():
    """24 to 30 clips of 2 to 5 seconds, 2 MB in all: small enough for a repository."""
    assert 24 <= len(CLIPS) <= 30
    assert sum((FOLDER / clip["id"]).stat().st_size for clip in CLIPS) <= 2_000_000
    for clip in CLIPS:
        waveform, rate = read_audio(FOLDER / clip["id"])
        assert 2.0 <= waveform.shape[-1] / rate <= 5.0
        assert 0.2 <= float(waveform.abs().max()) <= 1.0


def test_the_clips_are_as_mixed_as_a_corpus():
    """Several languages and voices, FLAC and Opus, mono and stereo, low and high sample rates."""
    heard = [read_audio(FOLDER / clip["id"]) for clip in CLIPS]
    assert len({clip["language"] for clip in CLIPS}) >= 10
    assert len({clip["voice"] for clip in CLIPS}) >= 20
    assert {Path(clip["id"]).suffix for clip in CLIPS} == {".flac", ".opus"}
    assert {waveform.shape[0] for waveform, _ in heard} == {1, 2}
    assert {8000, 16000, 22050, 48000} <= {rate for _, rate in heard}


@pytest.mark.skipif(
    any(shutil.which(program) is None for program in ("flite", "espeak-ng", "opusenc")),
    reason="needs flite, espeak-ng and opus-tools",
)
def test_the_script_makes_the_clips_again(tmp_path):
    """One FLAC, one Opus and one dialogue, made anew, are the committed ones up to the release of the programs."""
    chosen = [
        clip for clip in CLIPS if clip["id"] in {"en-us/slt-bread.flac", "nl/espeak-brug.opus", "fr/dialogue.opus"}
    ]
    lines = "\n".join(json.dumps(clip) for clip in chosen)
    (tmp_path / "clips.jsonl").write_text(lines, encoding="utf-8")
    script = REPOSITORY / "scripts" / "make_demo_speech.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    for clip in chosen:
        made, rate = read_audio(tmp_path / clip["id"])
        committed, committed_rate = read_audio(FOLDER / clip["id"])
        # Other releases of the programs round differently; the sentence and its length stay.
        assert (rate, made.shape[0]) == (committed_rate, committed.shape[0])
        assert abs(made.shape[-1] - committed.shape[-1]) < 0.25 * rate
