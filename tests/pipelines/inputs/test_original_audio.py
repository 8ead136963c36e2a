"""Originals read again: the very samples that the codec heard, wherever the plan says that they are."""

import io

import numpy as np
import pytest
import soundfile

from pipelines.datasets.plan import make_plan
from pipelines.inputs.original_audio import OriginalReader
from pipelines.inputs.segment_reader import read_segments
from pipelines.inputs.source_reader import SourceReader
from pipelines.inputs.sources import list_source
from tests.conftest import speech_like, tiny_spec
from tests.pipelines.inputs.archives import write_audio_parquet, write_tar
from tokenizer import DatasetError

SPEC = tiny_spec("patch")  # 24 kHz, one channel


def sound_file(seconds, sample_rate=16000, seed=0, kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, speech_like(seconds, sample_rate, seed), sample_rate, format=kind)
    return buffer.getvalue()


@pytest.fixture
def planned(tmp_path):
    """Writes the plan of a source and gives the dataset, its plan, and rows as tokenizing it gives them."""

    def write(source, max_segment_s=None):
        plan = make_plan(list_source(source), 3600)
        dataset = tmp_path / "tokens"
        dataset.mkdir(exist_ok=True)
        (dataset / "plan.parquet").write_bytes(plan.to_parquet())
        rows, heard = [], {}
        with SourceReader() as reader:
            for file in plan.unit(0):
                with reader.open(file) as stream:
                    span = {"start_s": file.start_s, "duration_s": file.duration_s}
                    segments = read_segments(stream, SPEC, max_segment_s=max_segment_s, **span).segments
                for index, segment in enumerate(segments):
                    name = file.id if len(segments) == 1 else f"{file.id}#{index:04d}"
                    size = segment.waveform.shape[-1]
                    place = {"input_id": file.id, "uri": file.uri, "start_sample": segment.start_sample}
                    rows.append({"id": name, "num_samples": size, **place})
                    heard[name] = segment.waveform
        return dataset, rows, heard

    return write


def assert_the_same(dataset, rows, heard):
    originals = OriginalReader(dataset, rows)
    for row in rows:
        for num_samples in (row["num_samples"], row["num_samples"] // 2):
            waveform, problem = originals.read(row, SPEC, num_samples)
            assert problem is None
            assert np.allclose(waveform.numpy(), heard[row["id"]][:, :num_samples], atol=1e-6)


def test_plain_files(planned, tmp_path):
    """At the codec's rate and resampled, stereo and mono, whole and their beginning."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for index, sample_rate in enumerate((8000, 16000, 24000, 44100)):
        (folder / f"{index}.wav").write_bytes(sound_file(0.7 + 0.1 * index, sample_rate, index))
    stereo = np.stack([speech_like(0.5), speech_like(0.5, seed=5)], axis=1)
    soundfile.write(folder / "stereo.flac", stereo, 24000)
    assert_the_same(*planned(folder))


def test_members_of_a_tar_and_rows_of_a_parquet_file(planned, tmp_path):
    """Their uri is that of the archive; the plan knows where in it they are."""
    contents = {f"clips/{index}.wav": sound_file(0.3 + 0.1 * index, seed=index) for index in range(3)}
    write_tar(tmp_path / "packed" / "shard-0.tar", contents)
    write_audio_parquet(tmp_path / "packed" / "rows.parquet", [sound_file(0.4, seed=8), sound_file(0.6, seed=9)])
    dataset, rows, heard = planned(tmp_path / "packed")
    assert len(rows) == 5
    assert_the_same(dataset, rows, heard)


def test_stretches_of_a_manifest(planned, tmp_path):
    """Two lines of a manifest may be parts of one file, with their own offset and length."""
    (tmp_path / "long.flac").write_bytes(sound_file(9, 44100, kind="FLAC"))
    lines = ['{"audio_filepath": "long.flac", "offset": 1.234, "duration": 2.5}',
             '{"audio_filepath": "long.flac", "offset": 5.05, "duration": 3}']  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    dataset, rows, heard = planned(tmp_path / "manifest.jsonl")
    assert [row["num_samples"] for row in rows] == [60_000, 72_000]
    assert_the_same(dataset, rows, heard)


@pytest.mark.parametrize("sample_rate", [22050, 24000])
def test_segments_of_a_long_input(planned, tmp_path, sample_rate):
    """Only the segment is read, with a second around it, and it is the one that was encoded, resampled as a whole."""
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "talk.wav").write_bytes(sound_file(20, sample_rate))
    dataset, rows, heard = planned(folder, max_segment_s=3)
    assert len(rows) > 6
    assert rows[0]["id"] == "talk.wav#0000"
    assert_the_same(dataset, rows, heard)


def test_datasets_without_such_a_plan_name_plain_files(tmp_path):
    """Older ones have rows without input_id, and a plan without offsets or none."""
    (tmp_path / "a.wav").write_bytes(sound_file(0.5, 24000))
    row = {"id": "a.wav", "uri": str(tmp_path / "a.wav"), "num_samples": 12000}
    waveform, problem = OriginalReader(tmp_path / "tokens", [row]).read(row, SPEC, 12000)
    assert problem is None
    assert np.allclose(waveform, speech_like(0.5), atol=1e-4)


@pytest.mark.parametrize(("seconds", "says"), [(0.4, "has changed"), (0.6, "has changed"), (None, "cannot be read")])
def test_what_is_not_there_any_more_is_said(planned, tmp_path, seconds, says):
    """A file that became shorter, longer, or was taken away is no original; the reason names it."""
    folder = tmp_path / "speech"
    folder.mkdir()
    path = folder / "a.wav"
    path.write_bytes(sound_file(0.5))
    dataset, rows, _ = planned(folder)
    if seconds is None:
        path.unlink()
    else:
        path.write_bytes(sound_file(seconds))
    waveform, problem = OriginalReader(dataset, rows).read(rows[0], SPEC, 12000)
    assert waveform is None
    assert says in problem
    assert "a.wav" in problem


def test_a_segment_of_a_file_that_became_shorter_is_said(planned, tmp_path):
    """Its input ends before it does."""
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "talk.wav").write_bytes(sound_file(9))
    dataset, rows, _ = planned(folder, max_segment_s=3)
    (folder / "talk.wav").write_bytes(sound_file(4))
    originals = OriginalReader(dataset, rows)
    assert originals.read(rows[0], SPEC, 24000)[1] is None
    assert originals.read(rows[-1], SPEC, 24000)[0] is None


def test_a_damaged_plan_is_an_error(planned, tmp_path):
    """It is not taken for a plan that lacks inputs."""
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "a.wav").write_bytes(sound_file(0.5))
    dataset, rows, _ = planned(folder)
    plan = dataset / "plan.parquet"
    plan.write_bytes(plan.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=r"plan\.parquet: damaged"):
        OriginalReader(dataset, rows)
