"""Whatever dies in a corpus job, its dataset is in the end that of an undisturbed run."""

import os
import random
import signal
import threading
import time

import pytest

from pipelines import storage, tokenize_corpus
from tests.pipelines import worker_faults
from tests.pipelines.corpus_runs import (
    BAD,
    UNIT_SECONDS,
    Driver,
    assert_same_dataset,
    contents,
    file_names,
    leftovers,
    make_corpus,
    num_parts,
    wait_until,
)
from tokenizer import DatasetError

COMMITTER, READER, ENCODER = (
    "pipelines.unit_commit.commit_unit",
    "pipelines.bundle_reader.read_bundle",
    "pipelines.encoder.Encoder",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Thirty inputs."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(ray_session, corpus, tiny_codec_dir, tmp_path_factory):
    """What a run that nothing disturbs makes of them."""
    dataset = tmp_path_factory.mktemp("undisturbed") / "tokens"
    tokenize(corpus, dataset, tiny_codec_dir)
    found = contents(dataset)
    assert set(found.errors["id"]) == BAD.keys()
    assert len(found.parts) >= 10
    assert leftovers(dataset) == []
    return found


@pytest.fixture
def drive(corpus, tiny_codec_dir):
    """Start a job on the corpus as a program of its own; whatever is left of it ends with the test."""
    drivers = []

    def start(dataset, **options):
        drivers.append(Driver(corpus, dataset, tiny_codec_dir, **options))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.clean_up()


@pytest.fixture
def cluster(ray_session):
    """The address of the Ray that runs already: a driver that joins it is at work sooner, and leaves workers behind."""
    import ray

    return ray.get_runtime_context().gcs_address


def tokenize(source, dataset, codec, **settings):
    """The job in this process."""
    chosen = {"num_workers": 1, "unit_seconds": UNIT_SECONDS, **settings}
    return tokenize_corpus(source, dataset, codec=codec, progress=False, **chosen)


def test_a_driver_killed_at_the_worst_moments(drive, cluster, undisturbed, tmp_path):
    """Between errors and record, record and part, file and name: the next run does what is missing, and cleans up."""
    dataset = tmp_path / "tokens"
    for cut in worker_faults.CUTS[:3]:
        marker = tmp_path / cut
        driver = drive(dataset, address=cluster, faults={COMMITTER: ["powerless_committer", cut, str(marker)]})
        code, _, said = driver.end()
        assert (code, marker.exists()) == (-signal.SIGKILL, True), said
    driver = drive(dataset, address=cluster)
    code, summary, said = driver.end()
    assert code == 0, said
    assert summary["num_skipped"] + summary["num_ok"] + sum(summary["errors"].values()) == summary["num_files"]
    assert_same_dataset(dataset, undisturbed)
