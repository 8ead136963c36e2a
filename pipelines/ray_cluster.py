"""Whether a Ray cluster can be used: it answers, accepts us, and its nodes have the software that this process has.

Ray itself tries for many minutes to join a cluster that is not there, and gives no reason when a token is missing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from tokenizer import QuantoneError

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
NODE_TIMEOUT_S = 90.0  # a node starts a process for its first task
CLIENT_SCHEME = "ray://"
CLIENT_PORT = 10001
AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_HINT = "set RAY_AUTH_MODE=token and give its token by RAY_AUTH_TOKEN or in ~/.ray/auth_token"  # noqa: S105

Versions = Mapping[str, str | None]  # python, torch, quantone; None: not there


def check_reachable(address: str) -> None:
    """Find out within seconds that a cluster answers at an address and accepts us; call it before Ray is imported.

    If it wants a token, the one that this machine keeps is sent from then on: Ray 2.60 does so on its own only to a
    cluster on this machine. A cluster that wants none must get none: its workers could not answer.

    Args:
        address: "host:port", "ray://host:port" or "auto" (which Ray itself resolves at once).

    Raises:
        QuantoneError: nobody listens there, or it is not Ray, or another version of Ray, or wants a token.
        ValueError: an address of no such form.
    """
    if address == "auto":
        return
    host, port = _parse(address)
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise QuantoneError(f"no Ray cluster answers at {address}: {error}") from error
    if not address.startswith(CLIENT_SCHEME):
        _check_answer(f"{host}:{port}")
        return
    if find_spec("grpc") is None:
        raise QuantoneError(f"{CLIENT_SCHEME} addresses need packages of ray[default]: pip install 'ray[default]'")
    if _has_token_to_send():  # to the cluster's door alone: the driver itself is behind it
        os.environ[AUTH_MODE] = "token"


def _parse(address: str) -> tuple[str, int]:
    is_client = address.startswith(CLIENT_SCHEME)
    try:
        parts = urlsplit(f"//{address.removeprefix(CLIENT_SCHEME)}")
        host, port = parts.hostname, parts.port or (CLIENT_PORT if is_client else None)
    except ValueError:
        host = port = None
    if not host or port is None:
        raise ValueError(f"no address of a Ray cluster: {address!r}; it may be host:port, ray://host:port or auto")
    return host, port


def _has_token_to_send() -> bool:
    """Whether this machine keeps a token, and nobody has said whether to use it."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return AUTH_MODE not in os.environ and (bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(path).is_file())


def _check_answer(address: str) -> None:
    said = _health(address, {AUTH_MODE: os.environ.get(AUTH_MODE, "disabled")})
    if _is_about_a_token(said) and _has_token_to_send():
        os.environ[AUTH_MODE] = "token"
        said = _health(address, {})
    if _is_about_a_token(said):
        raise QuantoneError(f"the Ray cluster at {address} wants a token, and not what this process has: {TOKEN_HINT}")
    if said:
        raise QuantoneError(f"the Ray cluster at {address} cannot be joined: {said.partition(': ')[2] or said}")


def _is_about_a_token(said: str) -> bool:
    return "AuthToken" in said or "AuthenticationError" in said


def _health(address: str, environment: Mapping[str, str]) -> str:
    """What is wrong with a cluster, in one line; empty if nothing is.

    A child asks: Ray's client library cannot be interrupted, and writes its reasons to stderr alone.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(  # noqa: S603 - Ray's own command; the address has been parsed
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as error:
        raise QuantoneError(
            f"what listens at {address} does not answer as Ray does, in {ANSWER_TIMEOUT_S:g} s; "
            "the port is that of `ray start --head --port`, 6379 by default"
        ) from error
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]


def check_nodes(address: str) -> None:
    """Compare the software of every node with that of this process, by one small task on each.

    Args:
        address: of the cluster that has been joined, for messages.

    Raises:
        QuantoneError: a node lacks Quantone, or has other versions, or runs no task.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(make_probe())
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(): host
        for node_id, host in nodes.items()
    }
    ours = make_probe()()
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    if silent:
        raise QuantoneError(f"node {asked[silent[0]]} of {address} ran no task in {NODE_TIMEOUT_S:g} s")
    for answer, host in asked.items():
        try:
            theirs = ray.get(answer)
        except RayError as error:
            raise QuantoneError(f"node {host} of {address} cannot run a task: {str(error).splitlines()[-1]}") from error
        difference = describe_difference(ours, theirs)
        if difference:
            raise QuantoneError(f"node {host} of {address} {difference}: install the same on all nodes")


def make_probe() -> Callable[[], Versions]:
    """A function that tells versions where it runs; defined in here so that it travels by value.

    A node without Quantone could not import it from this module.
    """

    def versions() -> Versions:
        import platform
        from importlib import metadata
        from importlib.util import find_spec

        def version(package: str) -> str | None:
            try:
                return metadata.version(package).partition("+")[0]  # of torch, CPU and CUDA builds are one version
            except metadata.PackageNotFoundError:
                return None

        checkout = "a checkout" if find_spec("pipelines") else None  # of `ray job submit --working-dir`
        python = ".".join(platform.python_version_tuple()[:2])
        return {"python": python, "torch": version("torch"), "quantone": version("quantone") or checkout}

    return versions


def describe_difference(ours: Versions, theirs: Versions) -> str:
    """What keeps a node from working for us, in words that go after its name; empty if nothing does."""
    for name, version in ours.items():
        other = theirs.get(name)
        if other is None:
            return f"has no {name}"
        if other != version and "a checkout" not in (version, other):
            return f"has {name} {other}, and this process {version}"
    return ""
