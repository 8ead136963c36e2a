"""Bad audio in a corpus job: every file is in parts/ or errors/, once, and the job ends."""

import pytest

from pipelines import open_dataset, tokenize_corpus
from pipelines.datasets.dataset import open_errors
from pipelines.datasets.verify import verify_dataset
from tests.tokenizer.bad_audio import bad_audio_files, encoded_formats, mutated


@pytest.mark.parametrize("max_segment_s", [None, 30.0], ids=["whole", "cut"])
def test_every_bad_file_is_a_row_somewhere(ray_session, tiny_codec_dir, tmp_path, max_segment_s):
    """Tokens where the sound is whole, an error row with a reason where it is not."""
    source = tmp_path / "source"
    source.mkdir()
    files = bad_audio_files(source, long_hours=0.02)
    settings = {"max_segment_s": max_segment_s, "num_workers": 1, "progress": False, "file_timeout_s": 60.0}
    tokenize_corpus(source, tmp_path / "tokens", codec=tiny_codec_dir, **settings)
    worked = set(open_dataset(tmp_path / "tokens").select("input_id").collect()["input_id"])
    errors = {row["id"]: row for row in open_errors(tmp_path / "tokens").collect().iter_rows(named=True)}
    listed = {path.name for path in source.iterdir() if path.name in worked | errors.keys()}
    assert not worked & errors.keys()
    for file in files:
        if file.path.name not in listed:
            continue  # an extension that nobody takes for audio
        allowed = {"tokens": worked, "error": errors.keys(), "either": listed}[file.allowed]
        assert file.path.name in allowed, file.name
    assert {row["error"] for row in errors.values()} == {"AudioError"}
    assert all(row["message"] for row in errors.values())
    assert len(listed) >= 25
    assert verify_dataset(tmp_path / "tokens").ok


@pytest.mark.parametrize("count", [5, pytest.param(250, marks=pytest.mark.slow)])
def test_mutated_files_of_every_format_are_rows_somewhere(ray_session, tiny_codec_dir, tmp_path, count):
    """So many accidents in each of eight formats: nothing is lost, nothing crashes, nothing hangs."""
    source = tmp_path / "source"
    source.mkdir()
    formats = encoded_formats()
    for extension, content in formats.items():
        for seed in range(count):
            (source / f"{seed:04d}.{extension}").write_bytes(mutated(content, seed))
    summary = tokenize_corpus(source, tmp_path / "tokens", codec=tiny_codec_dir, progress=False, file_timeout_s=60.0)
    assert summary.num_ok + summary.num_errors == count * len(formats)
    assert set(summary.errors) <= {"AudioError"}
    assert verify_dataset(tmp_path / "tokens").ok
