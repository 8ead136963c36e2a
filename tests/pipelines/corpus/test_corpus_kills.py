"""Whatever dies in a corpus job, its dataset is in the end that of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from functools import partial

import polars as pl
import pytest

from pipelines.datasets.verify import verify_dataset
from tests.pipelines.corpus import worker_faults
from tests.pipelines.corpus.corpus_runs import (
    BAD,
    Driver,
    assert_same_dataset,
    contents,
    file_names,
    kill_heartbeats,
    leftovers,
    make_corpus,
    num_parts,
    temporaries,
    tokenize,
    wait_until,
)
from tokenizer import DatasetError

pytestmark = pytest.mark.slow  # processes by the dozen: minutes

COMMITTER, READER, ENCODER = (
    "pipelines.corpus.unit_commit.commit_unit",
    "pipelines.corpus.bundle_reader.read_bundle",
    "pipelines.corpus.encoder.Encoder",
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


@pytest.mark.parametrize("cut", worker_faults.CUTS)
def test_a_committer_that_dies_is_replaced(corpus, undisturbed, tiny_codec_dir, tmp_path, monkeypatch, cut):
    """Whatever it had written by then."""
    marker = tmp_path / "struck"
    committer = worker_faults.mortal_committer(cut, marker, with_driver=False)
    monkeypatch.setattr(COMMITTER, committer)
    tokenize(corpus, tmp_path / "tokens", tiny_codec_dir)
    assert marker.exists()
    assert_same_dataset(tmp_path / "tokens", undisturbed)


def test_a_driver_killed_at_the_worst_moments(drive, cluster, undisturbed, tmp_path):
    """Between errors and record, record and part, file and name: the next run does what is missing, and cleans up."""
    dataset = tmp_path / "tokens"
    for cut in worker_faults.CUTS[:3]:
        marker = tmp_path / cut
        fault = ["mortal_committer", {"cut": cut, "marker": str(marker), "with_driver": True}]
        code, _, said = drive(dataset, address=cluster, faults={COMMITTER: fault}).end()
        assert (code, marker.exists()) == (-signal.SIGKILL, True), said
    code, summary, said = drive(dataset, address=cluster).end()
    assert code == 0, said
    assert summary["num_skipped"] + summary["num_ok"] + summary["num_errors"] == summary["num_files"]
    assert_same_dataset(dataset, undisturbed)


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_driver_killed_at_random_moments(drive, cluster, undisturbed, tmp_path, num_kills):
    """And started again at once, while what the dead one had begun may still be written."""
    dataset, dice = tmp_path / "tokens", random.Random(num_kills)  # noqa: S311 - not a secret
    address = cluster if num_kills < 20 else None  # a Ray of its own dies with its driver
    slow = {READER: ["slow_reader", {"seconds": 0.2}], ENCODER: ["slow_encoder", {"seconds": 0.2}]}
    for _ in range(num_kills):
        driver, before = drive(dataset, address=address, faults=slow), len(file_names(dataset))
        after, moment = dice.randint(1, 3), dice.uniform(0.0, 0.3)
        wait_until(lambda d=driver, n=before + after: not d.alive or len(file_names(dataset)) >= n, 120.0)
        time.sleep(moment)
        driver.kill()
    code, _, said = drive(dataset, address=address).end()
    assert code == 0, said
    assert_same_dataset(dataset, undisturbed)


def test_a_killed_driver_leaves_the_cluster_to_others(drive, cluster, tmp_path):
    """Its workers end, and all cores are free again."""
    import ray

    faults = {ENCODER: ["slow_encoder", {"seconds": 3600.0}]}
    driver = drive(tmp_path / "tokens", address=cluster, faults=faults)
    assert wait_until(lambda: ray.available_resources().get("CPU", 0.0) < 2.0, 60.0, 0.1)
    driver.kill()
    assert wait_until(lambda: ray.available_resources().get("CPU", 0.0) == 2.0, 60.0, 0.1)


def test_workers_killed_from_outside(corpus, undisturbed, tiny_codec_dir, tmp_path, monkeypatch):
    """Two readers, two encoders and the actor that watches over them: nothing is missing or there twice."""
    monkeypatch.setattr(READER, worker_faults.slow_reader(0.2, tmp_path / "readers"))
    monkeypatch.setattr(ENCODER, worker_faults.slow_encoder(0.2, tmp_path / "encoders"))
    killed = []

    def kill_some():
        for kind in ("readers", "encoders") * 2:
            killed.append(kill_one_of(tmp_path / kind, spared=killed))
        kill_heartbeats()

    killer = threading.Thread(target=kill_some)
    killer.start()
    summary = tokenize(corpus, tmp_path / "tokens", tiny_codec_dir)
    killer.join()
    assert len(set(killed)) == 4
    assert summary.num_ok + summary.num_errors == summary.num_files
    assert_same_dataset(tmp_path / "tokens", undisturbed)


def test_two_jobs_at_once_on_one_dataset(corpus, undisturbed, tiny_codec_dir, tmp_path, monkeypatch):
    """Both end well, whichever of them is faster with a unit."""
    monkeypatch.setattr(COMMITTER, worker_faults.slow_committer(0.3))
    ends = []
    run = partial(tokenize, corpus, tmp_path / "tokens", tiny_codec_dir)
    jobs = [threading.Thread(target=lambda: ends.append(run())) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [end.num_skipped + end.num_ok + end.num_errors for end in ends] == [ends[0].num_files] * 2
    assert sum(end.num_ok for end in ends) > undisturbed.rows.height, "they did not overlap"
    assert_same_dataset(tmp_path / "tokens", undisturbed)


@pytest.fixture(params=["an error", "a small disk"])
def full_disk(request, tmp_path, monkeypatch):
    """A directory with room for a few parts, and how to make more room in it."""
    directory, ballast = tmp_path / "disk", tmp_path / "disk" / "ballast"
    directory.mkdir()
    if request.param == "an error":
        (tmp_path / "counted").mkdir()
        monkeypatch.setattr(COMMITTER, worker_faults.full_committer(tmp_path / "counted", 3))
        yield directory, partial(shutil.rmtree, tmp_path / "counted")
        return
    if os.geteuid() != 0:
        pytest.skip("mounting a disk takes root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory], check=True)
    try:
        room = os.statvfs(directory)
        ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - 100_000))
        yield directory, ballast.unlink
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_full_disk_stops_the_job_until_there_is_room(corpus, undisturbed, tiny_codec_dir, full_disk):
    """One clear error, nothing half-written; then the same call goes on."""
    directory, make_room = full_disk
    dataset = directory / "tokens"
    with pytest.raises(DatasetError, match=r"tokens: a part cannot be written: .*No space left on device"):
        tokenize(corpus, dataset, tiny_codec_dir)
    assert 3 <= num_parts(dataset) < len(undisturbed.parts)
    assert temporaries(dataset) == []
    for problem in verify_dataset(dataset, num_threads=1).problems:
        assert problem.remedy.startswith("run the same `quantone tokenize` again")
    rows = contents(dataset).rows
    assert rows.equals(undisturbed.rows.filter(pl.col("id").is_in(rows["id"].implode())))
    make_room()
    tokenize(corpus, dataset, tiny_codec_dir)
    assert_same_dataset(dataset, undisturbed)


def kill_one_of(folder, spared):
    """SIGKILL for a process that left its id in a folder, another one than before; its id."""

    def found():
        return [int(path.name) for path in folder.glob("*") if int(path.name) not in spared]

    assert wait_until(found, 120.0)
    os.kill(found()[0], signal.SIGKILL)
    return found()[0]
