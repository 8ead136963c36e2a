"""Checkpoints of a training run: one file, replaced as a whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenizer import CheckpointError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run between two steps."""

    fingerprint: str  # of what learns; says whether the rest fits
    step: int  # how many have been made
    seconds: float  # that they took
    learner: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside the old one, then replace it: a reader, or a killed run, finds one of the two."""
    temporary = path.with_suffix(".tmp")
    state = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Read one back, on the CPU; None where there is none.

    Raises:
        CheckpointError: the file is damaged, or what it holds does not fit.
    """
    if not path.exists():
        return None
    try:
        checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint of this version: {error}") from error
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(f"{path} belongs to another recipe: choose another run directory, or remove it")
    return checkpoint
