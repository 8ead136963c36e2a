"""An input that hangs or eats memory costs a corpus job that input, and no other."""

import threading
import time

import polars as pl
import pytest

from tests.pipelines.corpus import worker_faults
from tests.pipelines.corpus.corpus_runs import (
    BAD,
    Contents,
    Driver,
    assert_same_dataset,
    contents,
    kill_heartbeats,
    make_corpus,
    tokenize,
    wait_until,
)

pytestmark = pytest.mark.slow  # processes by the dozen: minutes

READER = "pipelines.corpus.bundle_reader.read_bundle"
TIMEOUT_S = 4.0
GIB = 2**30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Thirty inputs."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(ray_session, corpus, tiny_codec_dir, tmp_path_factory):
    """What a run that nothing disturbs makes of them, and the seconds that it took."""
    dataset = tmp_path_factory.mktemp("undisturbed") / "tokens"
    summary = tokenize(corpus, dataset, tiny_codec_dir)
    return contents(dataset), summary.wall_seconds


def assert_only_these_failed(dataset, whole, **culprits):
    """All rows but those of the culprits, and beside the errors of an undisturbed run theirs, of a class each."""
    found, good = contents(dataset), whole.rows.filter(~pl.col("id").is_in(list(culprits)))
    assert good.height == whole.rows.height - len(culprits)
    assert dict(found.errors.select("id", "error").rows()) == {**dict.fromkeys(BAD, "AudioError"), **culprits}
    assert_same_dataset(dataset, Contents(good, found.errors, whole.parts))


def test_inputs_that_hang_are_given_up(corpus, undisturbed, tiny_codec_dir, tmp_path, monkeypatch):
    """One sleeps, another holds Python's lock, so that nothing else in its process runs; others wait no longer."""
    whole, clean_s = undisturbed
    hang = {"04.wav": "sleeps", "11.wav": "holds the lock"}
    monkeypatch.setattr(READER, worker_faults.hanging_reader(hang))
    begin = time.monotonic()
    tokenize(corpus, tmp_path / "tokens", tiny_codec_dir, file_timeout_s=TIMEOUT_S)
    seconds = time.monotonic() - begin
    assert_only_these_failed(tmp_path / "tokens", whole, **dict.fromkeys(hang, "timed_out"))
    assert seconds < 2 * clean_s + len(hang) * 3 * TIMEOUT_S


def test_a_hang_is_noticed_although_its_beginning_was_forgotten(
    corpus, undisturbed, tiny_codec_dir, tmp_path, monkeypatch
):
    """The actor that watches over the workers dies after the input has begun to hang; another one knows nothing."""
    marker = tmp_path / "hangs"
    monkeypatch.setattr(READER, worker_faults.hanging_reader({"04.wav": "sleeps"}, marker))
    killer = threading.Thread(target=lambda: wait_until(marker.exists) and kill_heartbeats())
    killer.start()
    tokenize(corpus, tmp_path / "tokens", tiny_codec_dir, file_timeout_s=TIMEOUT_S)
    killer.join()
    assert_only_these_failed(tmp_path / "tokens", undisturbed[0], **{"04.wav": "timed_out"})


def test_an_input_that_asks_for_too_much_memory(corpus, undisturbed, tiny_codec_dir, tmp_path, monkeypatch):
    """Where the system refuses it, the reader lives on."""
    monkeypatch.setattr(READER, worker_faults.starved_reader("15.wav", GIB // 4))
    tokenize(corpus, tmp_path / "tokens", tiny_codec_dir)
    assert_only_these_failed(tmp_path / "tokens", undisturbed[0], **{"15.wav": "out_of_memory"})


@pytest.mark.slow
def test_an_input_that_eats_memory(corpus, undisturbed, tiny_codec_dir, tmp_path):
    """Where the system does not refuse it, Ray ends the reader before the machine has none left."""
    free, total = (worker_faults.memory_sizes()[name] for name in ("MemAvailable:", "MemTotal:"))
    if free < 6 * GIB:
        pytest.skip("too little memory is free to eat some")
    threshold = (total - free + 3 * GIB) / total  # what the job itself needs, and more
    environment = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    faults = {READER: ["hungry_reader", {"name": "15.wav", "spared_bytes": GIB}]}
    driver = Driver(corpus, tmp_path / "tokens", tiny_codec_dir, faults=faults, environment=environment)
    try:
        code, _, said = driver.end(580.0)
    finally:
        driver.clean_up()
    assert code == 0, said
    assert_only_these_failed(tmp_path / "tokens", undisturbed[0], **{"15.wav": "out_of_memory"})
