"""The training loop around anything that learns."""

import pytest
import torch

from pipelines.training.schedule import Schedule
from pipelines.training.training_log import Preview, read_log
from pipelines.training.training_loop import LoopSettings, train
from tokenizer import CheckpointError


class Sum:
    """Learns the sum of the batches it has seen."""

    export_name = "sum"

    def __init__(self, fingerprint="sum", fails_at=None):
        self.fingerprint, self.fails_at, self.total, self.steps = fingerprint, fails_at, 0.0, []

    def step(self, batch, step, rate_factor):
        if step == self.fails_at:
            raise FloatingPointError("the sum is not finite")
        self.total += rate_factor * batch.item()
        self.steps.append(step)
        return {"total": self.total} | ({"odd": float(step)} if step % 2 else {})

    def details(self):
        return {"used": [0.5, 0.25]}

    def preview(self):
        return Preview()

    def export(self, directory):
        directory.write_text(str(self.total))

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


class Numbers:
    """Batch s is s itself."""

    wait_seconds = 0.0

    def from_step(self, step):
        while True:
            yield torch.tensor(float(step))
            step += 1


def run(folder, learner, steps, **changes):
    schedule = Schedule(steps=steps, batch_size=1, log_every=2, checkpoint_every=4, **changes)
    train(learner, Numbers(), LoopSettings(folder, schedule, amount_per_step=4.0, unit="audio s"))
    return learner


def test_every_step_happens_once_and_the_end_is_exported(tmp_path):
    """Seven batches, and the sum of their numbers."""
    learner = run(tmp_path, Sum(), 7)
    assert learner.steps == list(range(7))
    assert (tmp_path / "sum").read_text() == "21.0"


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    """It fails in step 7, after the checkpoint of step 4: later steps are made again, the log shows nothing of it."""
    with pytest.raises(FloatingPointError):
        run(tmp_path, Sum(fails_at=7), 9)
    resumed = run(tmp_path, Sum(), 9)
    assert resumed.steps == [4, 5, 6, 7, 8]
    assert resumed.total == run(tmp_path / "whole", Sum(), 9).total
    ours, theirs = (
        [(row["step"], row["total"], row.get("odd")) for row in read_log(folder)]
        for folder in (tmp_path, tmp_path / "whole")
    )
    assert ours == theirs


def test_a_finished_run_can_be_extended(tmp_path):
    """More steps, the same command: only the new ones are made."""
    run(tmp_path, Sum(), 4)
    assert run(tmp_path, Sum(), 6).steps == [4, 5]
    assert run(tmp_path, Sum(), 6).steps == []


def test_the_log_has_means_rates_and_details(tmp_path):
    """Over the steps since the last row; a scalar that only some of them have is averaged over those."""
    run(tmp_path, Sum(), 4)
    first, second = read_log(tmp_path)
    assert (first["step"], second["step"], second["steps"]) == (2, 4, 4)
    assert first["total"] == pytest.approx((0 + 1) / 2)
    assert first["odd"] == 1.0
    assert second["used"] == [0.5, 0.25]
    assert second["seen"] == 16.0
    assert second["per_s"] == pytest.approx(4 * second["steps_per_s"], rel=1e-4)


def test_only_the_first_process_writes(tmp_path):
    """The others learn the same, and leave no file."""
    schedule = Schedule(steps=3, batch_size=1, log_every=1, checkpoint_every=1)
    learner = Sum()
    train(learner, Numbers(), LoopSettings(tmp_path, schedule, amount_per_step=1.0, unit="audio s", first=False))
    assert learner.steps == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_the_rate_factor_follows_the_schedule(tmp_path):
    """Two steps of warm-up: the first batch that counts does so by half, and so on down at the end."""
    assert run(tmp_path, Sum(), 3, warmup_steps=4).total == pytest.approx(0.5 * 1 + 0.75 * 2)


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, damage):
    """Of something else that learns, or cut short: named, and left alone."""
    run(tmp_path, Sum(), 3)
    path = tmp_path / "checkpoint.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    kept = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"another recipe|not a checkpoint"):
        run(tmp_path, Sum(fingerprint="other" if damage == "other" else "sum"), 6)
    assert path.read_bytes() == kept
