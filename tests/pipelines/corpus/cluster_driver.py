"""A program that starts a Ray cluster of several nodes on this machine, runs jobs on it, and takes nodes away.

Ray allows one cluster a process, and the tests' own has one already.
"""

import json
import sys
import threading

from ray.cluster_utils import Cluster

from pipelines import tokenize_corpus
from pipelines.datasets.dataset import list_parts
from tests.pipelines.corpus.corpus_driver import install
from tests.pipelines.corpus.corpus_runs import wait_until

CPUS_OF_A_NODE = 2


def main(arguments):
    """Run jobs one after another.

    Args:
        arguments: JSON of a list of jobs: `source`, `dataset`, `settings`, `faults`; `nodes`, which the cluster is to
            have when it begins, beside a head that does no work; and `lose_after`, parts after which one goes, or null.
    """
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = []
    try:
        for job in json.loads(arguments):
            while len(nodes) < job["nodes"]:
                nodes.append(cluster.add_node(num_cpus=CPUS_OF_A_NODE))
            cluster.wait_for_nodes()
            install(job["faults"])
            if job["lose_after"] is not None:
                threading.Thread(target=lose, args=(cluster, nodes.pop(), job), daemon=True).start()
            tokenize_corpus(job["source"], job["dataset"], address=cluster.address, progress=False, **job["settings"])
    finally:
        cluster.shutdown()


def lose(cluster, node, job):
    """Kill a node's processes once some units are committed."""
    wait_until(lambda: len(list_parts(job["dataset"])) >= job["lose_after"], 200.0)
    cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    main(sys.argv[1])
