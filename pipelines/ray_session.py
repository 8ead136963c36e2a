"""Ray for the length of a block: the cluster that is there already, or a quiet local Ray that is stopped again."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.ray_cluster import CLIENT_SCHEME, TOKEN_HINT, check_nodes, check_reachable
from tokenizer import QuantoneError

# One torch thread a worker: the job gets its parallelism from workers, and two teams of threads on one core stall.
WORKER_ENV = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# What workers on other machines must know as well. Keys do not travel: Ray shows these variables to whoever asks.
TRAVELLING = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")


@contextmanager
def ray_session(num_cpus: int | None = None, address: str | None = None) -> Iterator[None]:
    """Make sure that Ray runs.

    A Ray that this process has started or joined is used as it is. With an address, or RAY_ADDRESS set (as `ray job
    submit` does), the cluster is joined, once it is clear that its nodes have this very software. Otherwise a local Ray
    starts, and stops when the block ends.

    Args:
        num_cpus: of a local Ray; None for all of the machine.
        address: "host:port" of the head node, "ray://host:port" from outside the cluster, "auto" for the Ray that runs
            on this machine; None for what RAY_ADDRESS says.

    Raises:
        QuantoneError: the cluster does not answer within seconds, wants a token, or runs other software.
        ValueError: an address of no such form.
    """
    # Before the import: Ray reads these once. Nothing about a run leaves the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A job has more processes than cores. Ray would end those that idle for a second, and each costs seconds to start.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":  # statistics that nobody reads without a dashboard: an eighth of what Ray takes at rest
        os.environ.setdefault("RAY_event_stats", "0")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    if address != "local" and not _ray_runs():
        check_reachable(address)
    import ray

    if ray.is_initialized():
        yield
        return
    # Workers elsewhere cannot know where this program's S3 is. Keys stay out of it: they belong to machines.
    place = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL",) if os.environ.get(name)}
    environment = {"env_vars": WORKER_ENV | place}
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "runtime_env": environment}
    if address == "local":  # said, because without an address Ray joins one that happens to run on this machine
        ray.init(address=address, num_cpus=num_cpus or os.cpu_count(), include_dashboard=False, **settings)
    else:
        _join(address, settings)
    try:
        yield
    finally:
        ray.shutdown()


def _worker_env() -> dict[str, str]:
    """Variables of every worker, without those that `ray job submit` has set already: Ray refuses to be told twice."""
    wanted = {**WORKER_ENV, **{name: os.environ[name] for name in TRAVELLING if os.environ.get(name)}}
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submitted = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in wanted.items() if name not in submitted}


def _ray_runs() -> bool:
    """Without importing it, if it has not been."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _join(address: str, settings: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say comes as an error too
            ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, RayError) as error:
        # The Ray client hides why it got no answer, in half a minute.
        hint = f"; if it wants a token, {TOKEN_HINT}" if address.startswith(CLIENT_SCHEME) else ""
        raise QuantoneError(f"the Ray cluster at {address} cannot be joined: {_one_line(error)}{hint}") from error
    try:
        check_nodes(address)
    except BaseException:
        ray.shutdown()
        raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
