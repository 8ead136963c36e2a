"""A reader's bundle: every input of it comes out, whatever its length was thought to be."""

import dataclasses

import pytest
import soundfile

from pipelines import s3_server
from pipelines.corpus import bundle_reader
from pipelines.corpus.bundle_reader import ReadSettings, SourceUnreachableError, read_bundle
from pipelines.datasets.plan import make_plan
from pipelines.inputs.sources import list_source
from tests.conftest import speech_like, tiny_spec


@pytest.fixture
def work(tmp_path):
    """Six inputs of a second each."""
    for index in range(6):
        soundfile.write(tmp_path / f"{index}.wav", speech_like(1.0, 24000, seed=index), 24000)
    return make_plan(list_source(tmp_path), 3600.0).unit(0)


@pytest.mark.parametrize("bundle_seconds", [0.5, 2.0, 60.0])
@pytest.mark.parametrize("max_segment_s", [None, 10.0])
def test_inputs_that_are_longer_than_the_bundle_was_meant_to_be_are_read(work, bundle_seconds, max_segment_s):
    """Lengths are estimated from bytes, and may be wrong several times over."""
    _, items = read_bundle(work, ReadSettings(tiny_spec(), max_segment_s, bundle_seconds))
    assert [(item.id, item.waveform.shape) for item in items] == [(f"{index}.wav", (1, 24000)) for index in range(6)]


def test_what_a_call_leaves_over_of_long_inputs_is_read_in_the_next(work):
    """Segment after segment, each once."""
    settings = ReadSettings(tiny_spec(), 1.0, 0.5)
    seen = []
    while work:
        count, items = read_bundle(work, settings)
        seen += [(item.input_id, item.start_sample, item.waveform.shape[-1]) for item in items]
        assert count.stages.reading > 0
        work = count.unfinished
    ends = {name: start + length for name, start, length in sorted(seen)}
    assert ends == {f"{index}.wav": 24000 for index in range(6)}


@pytest.mark.parametrize("answers", [True, False], ids=["one file fails", "server is away"])
def test_a_server_that_is_away_is_no_fault_of_the_inputs(work, monkeypatch, answers):
    """A file that the server cannot give is an error row; where it answers nothing at all, reading ends."""

    def fail(*_):
        raise OSError("Service Unavailable")

    monkeypatch.setattr(bundle_reader, "_RETRY_AFTER_S", (0.0, 0.0))
    monkeypatch.setattr(bundle_reader.SourceReader, "open", fail)
    monkeypatch.setattr(s3_server, "is_reachable", lambda _: answers)
    remote = [dataclasses.replace(file, uri=f"s3://bucket/{file.id}") for file in work]
    settings = ReadSettings(tiny_spec(), None, 60.0)
    if answers:
        _, items = read_bundle(remote, settings)
        assert [(item.id, item.error) for item in items] == [(f"{index}.wav", "OSError") for index in range(6)]
    else:
        with pytest.raises(SourceUnreachableError, match=r"s3://bucket/0\.wav: the server does not answer: Service"):
            read_bundle(remote, settings)
