"""Ray for the length of a block: the one that is there already, or a quiet local one that is stopped again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# One torch thread a worker: the job gets its parallelism from workers, and two teams of threads on one core stall.
WORKER_ENV = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Make sure that Ray runs.

    A Ray that this process has started or joined is used as it is. With RAY_ADDRESS set (as `ray job submit` does) the
    cluster is joined. Otherwise a local Ray starts, and stops when the block ends.

    Args:
        num_cpus: of a local Ray; None for all of the machine.
    """
    # Before the import: Ray reads these once. Nothing about a run leaves the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    environment = {"env_vars": WORKER_ENV}
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "runtime_env": environment}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**settings)
    else:
        ray.init(num_cpus=num_cpus or os.cpu_count(), include_dashboard=False, **settings)
    try:
        yield
    finally:
        ray.shutdown()
