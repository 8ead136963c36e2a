"""Ray Serve for the length of a command: started or joined, the service run on it, and drained at a signal."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from pipelines.ray_session import ray_session
from pipelines.serving.http_server import STOP_SIGNALS, bound_socket
from pipelines.serving.serve_arguments import ServeArguments
from tokenizer import QuantoneError

POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Where the service runs on Ray, and how often.

    Args:
        address: of a cluster, as `ray_session` takes it; None for a local Ray.
        count: replicas.
        gpus_each: GPUs, or the share of one, that Ray counts for each.
        haproxy: HAProxy in front of them instead of Ray's proxy in Python.
    """

    address: str | None = None
    count: int = 1
    gpus_each: float = 0.0
    haproxy: bool = False


def serve_on_ray(
    arguments: ServeArguments, replicas: Replicas, host: str, port: int, on_start: Callable[[], None]
) -> signal.Signals:
    """Serve until SIGTERM or Ctrl-C, then let every replica finish what it has begun.

    Args:
        arguments: codecs, device and limits of each replica.
        replicas: how many, and where.
        host: address that Ray's proxy listens on.
        port: likewise.
        on_start: called when requests are answered.

    Returns:
        The signal that ended it.

    Raises:
        QuantoneError: the port is in use, the cluster cannot be joined, or no replica could start.
    """
    joins = replicas.address is not None or "RAY_ADDRESS" in os.environ
    if not joins:
        bound_socket(host, port).close()  # what Ray says of a port in use has many lines
    if replicas.haproxy:
        _ask_for_haproxy(arguments.stop_timeout_s, own_ports=not joins)
    cpus = arguments.threads or 1
    with ray_session(num_cpus=max(os.cpu_count() or 1, replicas.count * cpus), address=replicas.address):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        try:
            _run(replace(arguments, threads=cpus), replicas)
            on_start()
            return _wait_for_stop()
        finally:
            _drain(arguments.stop_timeout_s, keep_serve=joins)


def _ask_for_haproxy(stop_timeout_s: float, *, own_ports: bool) -> None:
    """Say so in the environment: Ray Serve reads it when it is imported, here and in the processes that it starts.

    With ports of its own for what HAProxy says of itself, two services run on one machine.
    """
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    for name, value in {
        "RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # between threads Ray takes in all that a slow reader leaves
        "HAPROXY_RETRY_ON": "conn-failure empty-response",  # what a replica that died had in hand, another one does
        "HAPROXY_HARD_STOP_AFTER_S": str(round(stop_timeout_s) + 30),  # after a reload; two minutes would cut streams
        "HAPROXY_BALANCE_ALGORITHM": "hdr(x-session-id)",  # a lost stream is resumed where it is parked
        "DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # half a minute is for load balancers on other machines
    }.items():
        os.environ.setdefault(f"RAY_SERVE_{name}", value)
    if own_ports:
        with bound_socket("127.0.0.1", 0) as metrics, bound_socket("127.0.0.1", 0) as stats:
            for name, free in {"METRICS": metrics, "STATS": stats}.items():
                os.environ.setdefault(f"RAY_SERVE_HAPROXY_{name}_PORT", str(free.getsockname()[1]))


def _run(arguments: ServeArguments, replicas: Replicas) -> None:
    from ray import serve

    from pipelines.serving.serve_app import APP_NAME, bound

    app = bound(arguments, num_replicas=replicas.count, num_cpus=arguments.threads or 1, num_gpus=replicas.gpus_each)
    try:
        serve.run(app, name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        raise QuantoneError(f"no replica could start: {_reason(APP_NAME) or error}") from error


def _reason(app_name: str) -> str:
    """The last line of what a replica said of its end: Ray puts its traceback in front."""
    from ray import serve

    status = serve.status().applications.get(app_name)
    said = [one.message for one in status.deployments.values()] if status else []
    lines = [line.strip() for message in said for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _wait_for_stop() -> signal.Signals:
    """The first signal; a second one, while replicas drain, does what it did before."""
    heard: SimpleQueue[int] = SimpleQueue()
    before = {number: signal.signal(number, lambda given, _frame: heard.put(given)) for number in STOP_SIGNALS}
    try:
        return signal.Signals(heard.get())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drain(timeout_s: float, *, keep_serve: bool) -> None:
    """Delete the application and wait for its replicas, which finish what they have begun.

    `serve.shutdown` alone would give them half a minute.
    """
    from ray import serve

    from pipelines.serving.serve_app import APP_NAME

    serve.delete(APP_NAME, _blocking=False)
    deadline = time.monotonic() + timeout_s
    while APP_NAME in _applications() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if not keep_serve:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _applications() -> dict[str, Any]:
    from ray import serve

    return dict(serve.status().applications)
