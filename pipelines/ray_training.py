"""Where a training loop runs: in this process, or in one process a CPU or GPU of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipelines.ray_session import ray_session
from tokenizer import QuantoneError

RESTARTS = 3  # of the group of processes after one has died; each goes on from the last checkpoint


def run_training(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    run_dir: Path,
    num_processes: int = 1,
    use_gpu: bool = False,
) -> None:
    """Run `loop(config)` in each process of a Ray Train group, with torch.distributed set up between them.

    One process without a cluster (no RAY_ADDRESS) is this one, and no Ray is started.

    Args:
        loop: ends when training ends; finds its rank through `ray.train.get_context()`.
        config: what it needs, picklable.
        run_dir: for the group's own records; a folder that all nodes see.
        num_processes: how many; each has its share of every batch.
        use_gpu: one GPU for each.

    Raises:
        ImportError: Ray Train's packages are missing.
        Exception: what the loop raised, as it was; after RESTARTS attempts where there are several processes.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
    except ImportError as error:
        raise ImportError(
            f"training needs packages that are missing: pip install 'quantone[train]' ({error})"
        ) from error
    here = num_processes == 1 and not os.environ.get("RAY_ADDRESS")
    trainer = TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=0 if here else num_processes, use_gpu=use_gpu and not here),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run_dir.resolve()),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    with nullcontext() if here else ray_session(num_cpus=None):
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise next(iter(error.worker_failures.values())) from error
        except TrainingFailedError as error:
            raise QuantoneError(str(error)) from error
