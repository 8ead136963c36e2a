"""A corpus job on several machines: all of them work, and the loss of one costs nothing but its work in flight."""

import pytest

from tests.pipelines.corpus.cluster_driver import CPUS_OF_A_NODE
from tests.pipelines.corpus.corpus_runs import (
    UNIT_SECONDS,
    Program,
    assert_same_dataset,
    contents,
    make_corpus,
    tokenize,
)

pytestmark = pytest.mark.slow  # processes by the dozen: minutes

READER, ENCODER = "pipelines.corpus.bundle_reader.read_bundle", "pipelines.corpus.encoder.Encoder"
# So small that what workers hand over stays on their node, and is lost with it, as in a large job.
INLINED_BYTES = {"RAY_max_direct_call_object_size": "100"}
# A node that is gone is noticed after two seconds, and not after fifteen.
ATTENTION = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}

# Ray's own test clusters have none, wherever their user has one.
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Thirty inputs."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(ray_session, corpus, tiny_codec_dir, tmp_path_factory):
    """What a run on this machine alone makes of them."""
    dataset = tmp_path_factory.mktemp("undisturbed") / "tokens"
    tokenize(corpus, dataset, tiny_codec_dir)
    return contents(dataset)


@pytest.fixture
def run_jobs(corpus, tiny_codec_dir, tmp_path):
    """Run jobs one after another on one cluster, each with what is special about it."""
    programs = []

    def run(*jobs):
        usual = {"source": str(corpus), "faults": {}, "nodes": 1, "lose_after": None}
        settings = {"codec": str(tiny_codec_dir), "unit_seconds": UNIT_SECONDS}
        filled = [{**usual, "dataset": str(tmp_path / job["name"]), "settings": settings, **job} for job in jobs]
        environment = {**INLINED_BYTES, **ATTENTION, **NO_TOKEN}
        programs.append(Program("tests.pipelines.corpus.cluster_driver", filled, environment))
        code, _, said = programs[-1].end(280.0)
        assert code == 0, said

    yield run
    for program in programs:
        program.clean_up()


def test_two_nodes_do_twice_as_much_at_once(run_jobs, undisturbed, tmp_path):
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
        assert_same_dataset(tmp_path / str(nodes), undisturbed)


def test_a_node_is_lost(run_jobs, undisturbed, tmp_path):
    """With its readers, its encoders and what they have handed over."""
    slow = {READER: ["slow_reader", {"seconds": 0.1}], ENCODER: ["slow_encoder", {"seconds": 0.3}]}
    run_jobs({"name": "tokens", "nodes": 2, "faults": slow, "lose_after": 3})
    assert_same_dataset(tmp_path / "tokens", undisturbed)
