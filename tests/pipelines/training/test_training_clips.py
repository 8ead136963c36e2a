"""Clips come from folders, tar shards and manifests, and what is wrong with a listing is told with its line."""

import json
import tarfile

import pytest

from pipelines.training.clip_reader import ClipReader
from pipelines.training.training_clips import list_clips
from tokenizer import DatasetError

READER = ClipReader(24000, 1)


@pytest.fixture
def shard(speech_folder, tmp_path):
    """A tar of the speech folder, with a text beside each clip as in WebDataset."""
    path = tmp_path / "shards" / "speech-00.tar"
    path.parent.mkdir()
    (tmp_path / "note.txt").write_text("what is said")
    with tarfile.open(path, "w") as tar:
        for clip in sorted(speech_folder.rglob("*.wav")):
            tar.add(clip, clip.name)
            tar.add(tmp_path / "note.txt", clip.stem + ".txt")
    return path


def write_manifest(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(clips):
    """Samples of each clip, in one order for all ways to list them."""
    return sorted(READER.read(clip, 0, 2000).tobytes() for clip in clips)


def test_members_of_a_shard_are_the_unpacked_files(speech_folder, shard):
    """A shard, its folder and a pattern list the same audio as the files that went into it."""
    files = contents(list_clips([speech_folder]))
    assert len(set(files)) == 10
    for source in (shard, shard.parent, shard.parent / "speech-*.tar"):
        assert contents(list_clips([source])) == files


def test_a_manifest_names_members_of_shards(speech_folder, shard):
    """By offset and size, relative to the manifest, with kinds and lengths; rows of other splits stay out."""
    with tarfile.open(shard) as tar:
        members = [member for member in tar if member.name.endswith(".wav")]
    rows = [
        {"shard": shard.name, "offset": m.offset_data, "bytes": m.size, "split": ("train", "valid")[i % 2]}
        for i, m in enumerate(members)
    ]
    rows[0] |= {"kind": "music", "duration_s": 0.2}
    del rows[1]["split"]  # belongs to whatever is asked for
    manifest = write_manifest(shard.parent / "manifest.jsonl", rows)
    clips = list_clips([manifest])
    assert len(clips) == 6
    assert len(list_clips([manifest], split="valid")) == 5
    assert (clips[0].kind, clips[0].duration_s) == ("music", 0.2)
    assert (clips[1].kind, clips[1].duration_s) == ("speech", None)
    assert set(contents(clips)) < set(contents(list_clips([speech_folder])))
    assert list_clips([shard.parent]) == clips  # a folder with a manifest is what the manifest says


def test_a_manifest_cuts_files_by_seconds(speech_folder, tmp_path):
    """NeMo's keys: `offset` and `duration` are seconds within `audio_filepath`."""
    file = speech_folder / "speaker0" / "clip9.wav"
    rows = [
        {"audio_filepath": "speech/speaker0/clip9.wav", "offset": 0.1, "duration": 0.25, "text": ""},
        {"path": str(file), "duration_s": 0.35},
    ]
    part, head = list_clips([write_manifest(tmp_path / "nemo.jsonl", rows)])
    whole = READER.read(list_clips([file])[0], 0, 12000)
    assert (READER.read(part, 0, 6000) == whole[:, 2400:8400]).all()
    assert (READER.read(part, 0, 7000)[:, 6000:] == 0).all()
    assert (READER.read(head, 0, 8400) == whole[:, :8400]).all()
    assert (READER.read(head, 0, 9000)[:, 8400:] == 0).all()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2"),
        ("[1]", "line 2: a row is a JSON object"),
        ('{"shard": "x.tar"}', "line 2: lacks 'offset'"),
        ('{"shard": "x.tar", "offset": 1.5, "bytes": 4}', "line 2: offset is 1.5"),
        ('{"shard": "x.tar", "offset": -1, "bytes": 4}', "line 2: offset is -1"),
        ('{"text": "hello"}', "line 2: names no audio"),
        ('{"audio_filepath": ["a.wav", "b.wav"]}', "line 2"),
        ('{"path": "a.wav", "duration": "long"}', "line 2: duration is 'long'"),
        ('{"path": "a.wav", "duration": 0}', "line 2: a duration of 0"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path, line, reason):
    """So that it can be found among a million others."""
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text('{"path": "a.wav"}\n' + line + "\n")
    with pytest.raises(DatasetError, match=f"clips.jsonl, {reason}"):
        list_clips([manifest])


def test_nothing_to_train_on_is_said(tmp_path, speech_folder):
    """An empty folder, a missing one, a file of another type, a split that is not there, a shard that is compressed."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    write_manifest(tmp_path / "valid.jsonl", [{"path": "a.wav", "split": "valid"}])
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(speech_folder)
    expected = {
        "empty": "no audio",
        "missing": "neither",
        "missing-*.tar": "neither",
        "notes.txt": "neither",
        "valid.jsonl": "no audio.*'train'",
        "packed.tar": "uncompressed",
    }
    for name, reason in expected.items():
        with pytest.raises(DatasetError, match=reason):
            list_clips([tmp_path / name])
