"""Where a training loop runs: in this process, or in one process a CPU or GPU of a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipelines.ray_session import ray_session
from tokenizer import QuantoneError

RESTARTS = 3  # of the group of processes after one has died; each goes on from the last checkpoint


def run_training(
    loop: Callable[[dict[str, Any]], None], config: dict[str, Any], *, run_dir: Path, num_processes: int = 1
) -> None:
    """Run `loop(config)` in each process of a Ray Train group, with torch.distributed set up between them.

    One process without a cluster (no RAY_ADDRESS) is this one, and no Ray is started. Several get a GPU each where
    there are as many, in this machine or in the cluster.

    Args:
        loop: ends when training ends; finds its rank through `ray.train.get_context()`.
        config: what it needs, picklable.
        run_dir: for the group's own records; a folder that all nodes see.
        num_processes: how many; each has its share of every batch.

    Raises:
        Exception: what the loop raised, as it was; after RESTARTS attempts where there are several processes.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # the view of the run says what there is to say
    here = num_processes == 1 and not os.environ.get("RAY_ADDRESS")
    with nullcontext() if here else ray_session():
        trainer = TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=0 if here else num_processes,
                use_gpu=not here and _ray_has_gpus(num_processes),  # in this process torch finds its own
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(run_dir.resolve()),
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise next(iter(error.worker_failures.values())) from error
        except TrainingFailedError as error:
            raise QuantoneError(str(error)) from error


def _ray_has_gpus(count: int) -> bool:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0) >= count
