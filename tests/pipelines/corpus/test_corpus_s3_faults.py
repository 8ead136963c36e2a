"""A bad network between a corpus job and its S3: no code, row or error differs, and what cannot work says why at once.

The server is moto, or a real one: QUANTONE_TEST_S3_ENDPOINT is its URL, and QUANTONE_TEST_S3_KEY and
QUANTONE_TEST_S3_SECRET are keys that may make buckets.
"""

import os
import random
import signal
import subprocess
import sys
import time
import uuid

import pytest

from pipelines import storage
from pipelines.s3_server import _filesystem_of
from tests.pipelines.corpus.corpus_runs import (
    BAD,
    NUM_GOOD,
    REPOSITORY,
    Driver,
    assert_same_dataset,
    contents,
    file_names,
    make_corpus,
    num_parts,
    wait_until,
)
from tests.pipelines.corpus.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.slow  # processes by the dozen: minutes

READER = "pipelines.corpus.bundle_reader.read_bundle"
IS_REAL = "QUANTONE_TEST_S3_ENDPOINT" in os.environ
SLOW_DOWN, RESET = Fault("slow_down", 0.1), Fault("reset", 0.05, ("GET",), "wav")
LATE, LOST = Fault("late", 0.05), Fault("lost_answer", 0.1, ("PUT",))


@pytest.fixture(scope="module")
def server(s3_server):
    """URL of the S3 server; its keys are in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        if IS_REAL:
            patch.setenv("AWS_ENDPOINT_URL", os.environ["QUANTONE_TEST_S3_ENDPOINT"])
            patch.setenv("AWS_ACCESS_KEY_ID", os.environ["QUANTONE_TEST_S3_KEY"])
            patch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["QUANTONE_TEST_S3_SECRET"])
        _filesystem_of.cache_clear()
        yield os.environ["AWS_ENDPOINT_URL"]
    _filesystem_of.cache_clear()


@pytest.fixture(scope="module")
def place(server, tmp_path_factory):
    """The URI of a bucket with the corpus in it."""
    import s3fs

    files, name = s3fs.S3FileSystem(), f"faults-{uuid.uuid4().hex[:8]}"
    files.mkdir(name)
    corpus = make_corpus(tmp_path_factory.mktemp("corpus"))
    files.put(str(corpus), f"{name}/corpus", recursive=True)
    assert len(files.find(f"{name}/corpus")) == NUM_GOOD + len(BAD)
    yield f"s3://{name}"
    files.rm(name, recursive=True)


@pytest.fixture
def proxy(server):
    """A network in front of the server, good until it gets faults."""
    with FaultProxy(server) as network:
        yield network


@pytest.fixture(scope="module")
def start(ray_session, place, tiny_codec_dir):
    """Start a job on the corpus as a program of its own; whatever is left of it ends with the tests."""
    import ray

    # It joins the Ray that runs already, except where that has the keys of another server.
    address = None if IS_REAL else ray.get_runtime_context().gcs_address
    drivers = []

    def begin(dataset, endpoint, **options):
        options.setdefault("environment", {})["AWS_ENDPOINT_URL"] = endpoint
        drivers.append(Driver(f"{place}/corpus", dataset, tiny_codec_dir, address=address, **options))
        return drivers[-1]

    yield begin
    for driver in drivers:
        driver.clean_up()


@pytest.fixture(scope="module")
def undisturbed(start, place, server):
    """What a run on a good network makes of the corpus."""
    dataset = f"{place}/undisturbed"
    code, _, said = start(dataset, server).end()
    assert code == 0, said
    found = contents(dataset)
    assert (found.rows.height, set(found.errors["id"])) == (NUM_GOOD, BAD.keys())
    return found


@pytest.fixture
def dataset(place):
    """A URI where nothing is."""
    return f"{place}/{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([SLOW_DOWN, RESET, LATE, LOST], id="all"),
        pytest.param([SLOW_DOWN], id="slow_down", marks=pytest.mark.slow),
        pytest.param([RESET], id="reset", marks=pytest.mark.slow),
        pytest.param([LATE], id="late", marks=pytest.mark.slow),
        pytest.param([LOST], id="lost_answer", marks=pytest.mark.slow),
    ],
)
def test_a_bad_network_changes_nothing(start, proxy, undisturbed, dataset, faults):
    """503 for a tenth of the calls, files broken off, answers two seconds late or lost after the deed."""
    proxy.faults = faults
    code, summary, said = start(dataset, proxy.url).end(240.0)
    assert code == 0, said
    assert summary["num_ok"] == NUM_GOOD
    assert proxy.counts.keys() == {fault.kind for fault in faults}
    assert_same_dataset(dataset, undisturbed)


@pytest.mark.slow
def test_an_outage_is_waited_out(start, proxy, undisturbed, dataset):
    """For twenty seconds in mid-run the server answers nothing but 503: no input becomes an error row by it."""
    driver = start(dataset, proxy.url, faults={READER: ["slow_reader", {"seconds": 0.5}]})
    assert wait_until(lambda: num_parts(dataset) > 2, 120.0, 0.1)
    proxy.faults = [Fault("slow_down")]
    time.sleep(20.0)
    assert driver.alive
    proxy.faults = []
    code, _, said = driver.end(200.0)
    assert code == 0, said
    assert proxy.counts["slow_down"] > 0
    assert_same_dataset(dataset, undisturbed)


def test_an_outage_that_is_not_waited_out_stops_the_job_and_costs_no_input(start, proxy, undisturbed, dataset):
    """Exit code 1 with the reason once patience ends; the next run goes on, and its dataset is the undisturbed one."""
    driver = start(dataset, proxy.url, faults={READER: ["slow_reader", {"seconds": 0.5}]})
    assert wait_until(lambda: num_parts(dataset) > 2, 120.0, 0.1)
    proxy.faults = [Fault("slow_down")]
    code, _, said = driver.end(250.0)
    assert code == 1
    assert "the server does not answer" in said or "a part cannot be written" in said
    proxy.faults = []
    code, summary, said = start(dataset, proxy.url).end()
    assert code == 0, said
    assert summary["num_skipped"] > 0
    assert_same_dataset(dataset, undisturbed)


def test_a_driver_killed_while_it_writes_to_s3(start, proxy, undisturbed, dataset):
    """No part of an object is ever visible, and the next run ends with the same dataset."""
    dice = random.Random(0)  # noqa: S311 - not a secret
    for kill in range(2):
        proxy.faults = [Fault("late", 0.5, ("PUT",), seconds=0.5)]
        driver = start(dataset, proxy.url)
        assert wait_until(lambda number=kill: num_parts(dataset) > 2 * number, 120.0, 0.1)
        time.sleep(dice.uniform(0.0, 1.0))
        driver.kill()
        assert driver.end()[0] == -signal.SIGKILL
    proxy.faults = []
    code, summary, said = start(dataset, proxy.url).end()
    assert code == 0, said
    assert summary["num_skipped"] > 0
    assert_same_dataset(dataset, undisturbed)


def test_parts_that_may_not_be_written_stop_the_job(start, proxy, dataset):
    """Refused by the server for good: one clear error, and no file of the source becomes an error row by it."""
    proxy.faults = [Fault("denied", 1.0, ("PUT",), "/parts/")]
    code, _, said = start(dataset, proxy.url).end()
    assert code == 1
    assert f"DatasetError: {dataset}: a part cannot be written: PermissionError: " in said
    assert num_parts(dataset) == 0


@pytest.mark.parametrize("kind", ["source", "dataset"])
def test_refused_keys_are_told_at_once(proxy, place, dataset, tiny_codec_dir, tmp_path, kind):
    """Exit code 1 and one line with the server's reason, seconds after the start; nothing is written."""
    if not IS_REAL:
        proxy.faults = [Fault("wrong_key")]
    corpus = make_corpus(tmp_path / "corpus")
    source, target = (f"{place}/corpus", tmp_path / "tokens") if kind == "source" else (corpus, dataset)
    before = file_names(place)
    variables = {"AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    seconds, _ = run_command(tmp_path / "nothing", target, tiny_codec_dir, variables)
    seconds_refused, done = run_command(source, target, tiny_codec_dir, variables)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {place}/")
    assert "check AWS_ACCESS_KEY_ID" in line
    assert seconds_refused - seconds < 10.0
    assert file_names(place) == before
    assert not (tmp_path / "tokens").exists()


def run_command(source, target, codec, variables):
    """`quantone tokenize`: the seconds that it took, and how it ended."""
    begin = time.monotonic()
    program = "import sys; from pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "tokenize", source, target, "--codec", codec, "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, timeout=200)
    return time.monotonic() - begin, done


def test_a_lost_answer_is_no_lost_race(proxy, dataset, monkeypatch):
    """The server has the bytes, and its refusal of our second try means ourselves."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    _filesystem_of.cache_clear()
    try:
        proxy.faults = [Fault("lost_answer", 0.5, ("PUT",))]
        for number in range(4):
            assert storage.create(f"{dataset}/{number}", b"ours" * 1000)
            assert not storage.create(f"{dataset}/{number}", b"others" * 1000)
            assert storage.read_bytes(f"{dataset}/{number}") == b"ours" * 1000
        assert proxy.counts["lost_answer"] > 1
    finally:
        _filesystem_of.cache_clear()
