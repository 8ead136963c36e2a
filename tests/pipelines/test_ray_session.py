"""Joining a cluster: what works, and what is said within seconds where it does not."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import ray_cluster
from pipelines import ray_session as ray_room
from pipelines.ray_cluster import check_reachable, describe_difference, make_probe
from tokenizer import QuantoneError

REPOSITORY = Path(__file__).parents[2]
JOIN = """
import sys
from pipelines.ray_session import ray_session
with ray_session(address=sys.argv[1] or None):
    import ray
    print(ray.get_runtime_context().gcs_address, len(ray.nodes()))
"""


def join(address="", **environment):
    """A driver of its own that joins a cluster and tells which; its last lines of stdout and stderr."""
    variables = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    command = [sys.executable, "-c", JOIN, address]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env={**variables, **environment}, timeout=120
    )
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


@pytest.fixture
def cluster(ray_session):
    """The address of a Ray that another process has started."""
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture
def listener():
    """The address of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_cluster_is_joined_by_its_address(cluster, way):
    """--address and RAY_ADDRESS lead to the cluster that runs there; the token of this machine is sent unasked."""
    joined, said = join(cluster) if way == "argument" else join(RAY_ADDRESS=cluster)
    assert joined == f"{cluster} 1", said


def test_a_wrong_token_is_named(cluster):
    """Not "failed to connect" after 20 seconds, but what to set."""
    joined, said = join(cluster, RAY_AUTH_TOKEN="f" * 64)
    assert not joined
    assert "QuantoneError" in said
    assert "wants a token" in said
    assert "RAY_AUTH_MODE=token" in said


@pytest.mark.slow
def test_without_an_address_a_ray_of_ones_own_is_started(cluster):
    """A Ray that somebody else runs on this machine is left alone."""
    joined, said = join()
    assert joined.endswith(" 1"), said
    assert not joined.startswith(cluster)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_an_error_at_once(listener, scheme):
    """Ray alone would try for a quarter of an hour."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(QuantoneError, match="no Ray cluster answers at"):
        check_reachable(closed)
    assert time.monotonic() - started < 2


def test_something_else_at_the_address_is_an_error_in_bounded_time(listener, monkeypatch):
    """A web server, a firewall that swallows: the wait ends, and the message says which port is meant."""
    monkeypatch.setattr(ray_cluster, "ANSWER_TIMEOUT_S", 3.0)
    with pytest.raises(QuantoneError, match=r"does not answer as Ray does, in 3 s.*--port"):
        check_reachable(listener)


def test_the_ray_client_needs_its_packages(listener, monkeypatch):
    """ray:// without them is an error that names what to install."""
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: None)
    with pytest.raises(QuantoneError, match=r"pip install 'ray\[default\]'"):
        check_reachable(f"ray://{listener}")


@pytest.mark.parametrize("address", ["head", "ray://", "head:port", "host:99999", "http://[::1", ":6379"])
def test_what_is_no_address_is_refused(address):
    """A wrong argument is told apart from a cluster that is down."""
    with pytest.raises(ValueError, match="it may be host:port"):
        check_reachable(address)


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        (
            "ray://head:10001",
            ConnectionError("ray client connection timeout"),
            "connection timeout; if it wants a token",
        ),
        ("head:6379", RuntimeError("Version mismatch: it has\n  Ray: 2.59.0"), "Version mismatch: it has Ray: 2.59.0$"),
    ],
)
def test_what_ray_refuses_is_one_line(monkeypatch, address, error, said):
    """Other versions, a client that is not answered: one sentence, and no traceback on the command line."""
    import ray

    def refuse(**settings):
        raise error

    monkeypatch.setattr(ray_room, "check_reachable", lambda _: None)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(QuantoneError, match=f"the Ray cluster at {address} cannot be joined: .*{said}"):
        ray_room._join(address, {})


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({}, ""),
        ({"quantone": None}, "has no quantone"),
        ({"quantone": "0.2.0"}, "has quantone 0.2.0, and this process 0.1.0"),
        ({"torch": "2.12.1"}, "has torch 2.12.1, and this process 2.13.0"),
        ({"torch": None}, "has no torch"),
        ({"quantone": "a checkout"}, ""),
    ],
)
def test_nodes_must_have_the_same_software(theirs, said):
    """Codes may depend on it. Code that a job brought along in its working directory is taken as it is."""
    ours = {"python": "3.11", "torch": "2.13.0", "quantone": "0.1.0"}
    assert describe_difference(ours, {**ours, **theirs}) == said


def test_versions_are_told_where_quantone_cannot_be_imported():
    """The first task on a node travels by value: that the package is missing there is what it has to tell."""
    from ray import cloudpickle

    code = (
        "import sys, pickle; sys.modules['pipelines'] = sys.modules['tokenizer'] = None; "
        "print(pickle.loads(sys.stdin.buffer.read())()['python'])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=cloudpickle.dumps(make_probe()), capture_output=True)
    assert done.stdout.decode().strip() == make_probe()()["python"], done.stderr


@pytest.fixture
def port():
    """Something that listens; what it would answer is up to the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def without_token(monkeypatch, tmp_path):
    """Nobody has a token, or has said whether to use one."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was, even from not being there
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def guarded(_address, environment):
    """A cluster that wants a token."""
    mode = environment.get("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE"))
    return "" if mode == "token" else "AuthenticationError: no token"


@pytest.mark.parametrize("where", ["variable", "named file", "home"])
def test_a_stored_token_is_used_where_one_is_wanted(monkeypatch, tmp_path, port, without_token, where):
    """Whoever has a token need not say so as well."""
    monkeypatch.setattr(ray_cluster, "_health", guarded)
    with pytest.raises(QuantoneError, match="wants a token"):
        check_reachable(port)  # there is none yet
    if where == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    else:
        path = tmp_path / ("token" if where == "named file" else ".ray/auth_token")
        path.parent.mkdir(exist_ok=True)
        path.write_text("f" * 64)
        if where == "named file":
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    check_reachable(port)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_no_token_is_sent_where_none_is_wanted(monkeypatch, port, without_token):
    """Workers of such a cluster have none, and a driver with one would take their answers for a stranger's."""
    monkeypatch.setattr(ray_cluster, "_health", lambda *_: "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    check_reachable(port)
    assert "RAY_AUTH_MODE" not in os.environ


def test_what_was_said_about_tokens_stands(monkeypatch, port, without_token):
    """RAY_AUTH_MODE=disabled is respected, token or not."""
    monkeypatch.setattr(ray_cluster, "_health", guarded)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(QuantoneError, match="wants a token"):
        check_reachable(port)


def test_workers_elsewhere_learn_where_s3_is(monkeypatch):
    """The endpoint and the region travel with the job; keys never do, because Ray shows such variables to others."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    variables = ray_room._worker_env()
    assert variables["AWS_ENDPOINT_URL"] == "http://s3.example"
    assert "secret" not in variables.values()


def test_variables_of_a_submitted_job_are_left_to_it(monkeypatch):
    """Ray fails a driver that sets what `ray job submit --runtime-env-json` has set."""
    job = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "2"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    variables = ray_room._worker_env()
    assert "OMP_NUM_THREADS" not in variables
    assert variables["MKL_NUM_THREADS"] == "1"
