"""Bad audio gives tokens or a typed error, in bounded time and memory: never a crash, a hang or anything else."""

import itertools

import pytest

from tests.tokenizer.audio_room import AudioRoom
from tests.tokenizer.bad_audio import bad_audio_files, encoded_formats, mutated

MAX_SECONDS = 5  # of silence, after which a file counts as one that hangs
MAX_EXTRA_MB = 300
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "webm", "aac")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every case as a file."""
    return bad_audio_files(tmp_path_factory.mktemp("bad"))


def check(room, path, allowed="either", **kwargs):
    """Outcomes are tokens or AudioError, as the case allows."""
    result = room.read(path, within_s=MAX_SECONDS, **kwargs)
    expected = {"tokens": ["tokens"], "error": ["AudioError"], "either": ["tokens", "AudioError"]}[allowed]
    assert result["outcome"] in expected, (path, result)
    assert result["extra_mb"] < MAX_EXTRA_MB, (path, result)


def test_every_bad_file_gives_tokens_or_a_typed_error(files):
    """Each as its case says, cut into segments and, if it is no giant, as one."""
    assert len(files) >= 38
    with AudioRoom(max_calls=2) as room:
        for file in files:
            check(room, file.path, file.allowed)
            if file.path.stat().st_size < 2**26:
                check(room, file.path, file.allowed, max_segment_s=None)


def test_mutated_bad_files_break_nothing(files, tmp_path):
    """Five accidents happen to each."""
    with AudioRoom(max_calls=2) as room:
        for file, seed in itertools.product(files, range(5)):
            if file.path.stat().st_size < 2**20:
                changed = tmp_path / f"{seed}-{file.path.name}"
                changed.write_bytes(mutated(file.path.read_bytes(), seed))
                check(room, changed)


@pytest.mark.parametrize(
    "num_mutations", [5, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=str
)
def test_mutations_of_every_format_break_nothing(num_mutations, tmp_path):
    """Good files after an accident: whatever the format, no crash, no hang, no other error."""
    formats = encoded_formats()
    assert set(formats) == set(FORMATS)
    with AudioRoom(max_calls=2) as room:
        for extension, seed in itertools.product(formats, range(num_mutations)):
            changed = tmp_path / f"mutated-{seed}.{extension}"
            changed.write_bytes(mutated(formats[extension], seed))
            check(room, changed)
            changed.unlink()


@pytest.mark.slow
def test_ten_hours_are_read_in_flat_memory(files):
    """A long file, read to its end in parts, needs what the parts need."""
    with AudioRoom() as room:
        result = room.read(files[-1].path, within_s=250)
    assert result["outcome"] == "tokens"
    assert result["extra_mb"] < MAX_EXTRA_MB
