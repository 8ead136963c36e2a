"""The clips of an evaluation: files of a folder, or stretches of shards, in one order and under one name each."""

import json

import pytest
import torch

from pipelines.evaluating.evaluation_clips import list_clips, read_clip, spread
from tests.conftest import speech_like
from tokenizer import AudioError, DatasetError, write_audio


@pytest.fixture
def manifest(tmp_path):
    """Three flac files end to end in a shard, of two kinds and splits, with padding between them."""
    rows, shard = [], b""
    for number, (kind, split) in enumerate([("speech", "train"), ("speech", "valid"), ("music", "valid")]):
        write_audio(tmp_path / "one.flac", torch.from_numpy(speech_like(0.1 + 0.1 * number))[None], 24000)
        content = (tmp_path / "one.flac").read_bytes()
        shard += b"\0" * 100
        place = {"shard": "shards/a.tar", "offset": len(shard), "bytes": len(content), "member": f"clip{number}.flac"}
        rows.append({**place, "kind": kind, "split": split})
        shard += content
    (tmp_path / "one.flac").unlink()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(shard)
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def test_clips_of_a_manifest_are_read_in_place(manifest):
    """Each by offset and length in its shard; other splits and kinds are left out."""
    clips = list_clips(manifest)
    assert [clip.id for clip in clips] == ["clip1.flac", "clip2.flac"]
    waveform, rate = read_clip(clips[1], 8)
    assert (waveform.shape, rate) == ((1, 7200), 24000)
    assert read_clip(clips[1], 0.1)[0].shape == (1, 2400)
    assert [clip.id for clip in list_clips(manifest, kind="music")] == ["clip2.flac"]
    assert [clip.id for clip in list_clips(manifest, split="train")] == ["clip0.flac"]


def test_members_of_one_name_stay_two_clips(manifest):
    """Shards may name their members alike, and scores are kept by name."""
    row = json.loads(manifest.read_text().splitlines()[1])
    manifest.write_text("".join(json.dumps({**row, "shard": f"shards/{name}.tar"}) + "\n" for name in "ab"))
    assert [clip.id for clip in list_clips(manifest)] == ["clip1.flac", f"shards/b.tar@{row['offset']}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 2"), ('{"shard": "a"}', "line 2.*offset"), ("[]", "line 2"), ('{"split": "test"}', "no clips with")],
)
def test_a_manifest_that_cannot_be_used_is_named(manifest, line, message):
    """By file and line, or by what was looked for."""
    lines = manifest.read_text().splitlines()
    manifest.write_text(f"{lines[0]}\n{line}\n")
    with pytest.raises(DatasetError, match=f"manifest.jsonl.*{message}"):
        list_clips(manifest)


def test_what_is_not_there_is_an_error(manifest, tmp_path):
    """A manifest that is missing, and a kind where nothing has kinds."""
    with pytest.raises(DatasetError, match="no such file"):
        list_clips(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="only be chosen from a"):
        list_clips(tmp_path, kind="speech")


def test_a_damaged_stretch_fails_alone(manifest):
    """The bytes of one clip are broken; the other one is read."""
    first, second = list_clips(manifest)
    shard = manifest.parent / "shards" / "a.tar"
    content = bytearray(shard.read_bytes())
    content[first.offset : first.offset + 40] = b"x" * 40
    shard.write_bytes(content)
    with pytest.raises(AudioError):
        read_clip(first, 8)
    assert read_clip(second, 8)[0].shape == (1, 7200)


def test_spread_takes_the_first_of_equal_parts():
    """All where there are fewer than asked for."""
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("abc", 5) == spread("abc", None) == ["a", "b", "c"]
