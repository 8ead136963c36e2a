"""A corpus job on several machines: all of them work, and the loss of one costs nothing but its work in flight."""

import pytest

from tests.pipelines.cluster_driver import CPUS_OF_A_NODE
from tests.pipelines.corpus_runs import UNIT_SECONDS, Program, assert_same_dataset, contents, make_corpus

READER, ENCODER = "pipelines.bundle_reader.read_bundle", "pipelines.encoder.Encoder"
# So small that what workers hand over stays on their node, and is lost with it, as in a large job.
INLINED_BYTES = {"RAY_max_direct_call_object_size": "100"}
# A node that is gone is noticed after two seconds, and not after fifteen.
ATTENTION = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}

# Ray's own test clusters have none, wherever their user has one.
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def run_jobs(tmp_path, tiny_codec_dir):
    """Run jobs on the same corpus on one cluster, each with what is special about it."""
    corpus, drivers = make_corpus(tmp_path / "corpus"), []

    def run(*jobs):
        usual = {"source": str(corpus), "faults": {}, "nodes": 1, "lose_after": None}
        settings = {"codec": str(tiny_codec_dir), "unit_seconds": UNIT_SECONDS}
        filled = [{**usual, "dataset": str(tmp_path / job["name"]), "settings": settings, **job} for job in jobs]
        drivers.append(Program("tests.pipelines.cluster_driver", filled, {**INLINED_BYTES, **ATTENTION, **NO_TOKEN}))
        code, _, said = drivers[-1].end(280.0)
        assert code == 0, said

    yield run
    for driver in drivers:
        driver.clean_up()


def test_two_nodes_do_twice_as_much_at_once(run_jobs, tmp_path):
    """As many encoders as the cluster has cores, on all of its nodes; the dataset does not tell how many there were."""
    jobs = []
    for nodes in (1, 2):
        folder = tmp_path / f"{nodes} at work"
        folder.mkdir()
        options = {"folder": str(folder), "num_expected": nodes * CPUS_OF_A_NODE, "patience_s": 60.0}
        jobs.append({"name": str(nodes), "nodes": nodes, "faults": {ENCODER: ["meeting_encoder", options]}})
    run_jobs(*jobs)
    for nodes in (1, 2):
        at_work = [path.name.split(".")[0] for path in (tmp_path / f"{nodes} at work").iterdir()]
        assert (len(at_work), len(set(at_work))) == (nodes * CPUS_OF_A_NODE, nodes)
    assert_same_dataset(tmp_path / "2", contents(tmp_path / "1"))


def test_a_node_is_lost(run_jobs, tmp_path):
    """With its readers, its encoders and what they have handed over."""
    slow = {READER: ["slow_reader", {"seconds": 0.1}], ENCODER: ["slow_encoder", {"seconds": 0.3}]}
    lossy = {"name": "lossy", "nodes": 2, "faults": slow, "lose_after": 3}
    run_jobs(lossy, {"name": "undisturbed", "nodes": 1})
    assert_same_dataset(tmp_path / "lossy", contents(tmp_path / "undisturbed"))
