"""Recipes of codecs: everything that decides what a training run does, except the audio."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.training.data_settings import DataSettings
from pipelines.training.recipe_reader import bundled_names, read_recipe
from pipelines.training.schedule import Schedule
from tokenizer.objective import Objective
from tokenizer.optimization import OptimizerSettings
from tokenizer.quantizer_training import QuantizerTraining
from tokenizer.spec import CodecSpec
from tokenizer.training import TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSchedule(Schedule):
    """How long, and on how much audio at a time. The precision is that of the networks and discriminators."""

    crop_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a codec's recipe says."""

    name: str
    codec: CodecSpec
    schedule: CodecSchedule
    objective: Objective = field(default_factory=Objective)
    quantizer: QuantizerTraining = field(default_factory=QuantizerTraining)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    data: DataSettings = field(default_factory=DataSettings)

    @property
    def training(self) -> TrainingSettings:
        """What the training step needs of it."""
        return TrainingSettings(
            objective=self.objective,
            quantizer=self.quantizer,
            optimizer=self.optimizer,
            autocast=self.schedule.autocast,
        )


def bundled_recipes() -> list[str]:
    """Names that `load_recipe` knows."""
    return bundled_names(of_language_models=False)


def load_recipe(source: str | Path) -> Recipe:
    """Read a codec's recipe.

    Args:
        source: a YAML file, or the name of a bundled recipe.

    Raises:
        ValueError: no such recipe, not YAML, a key that is unknown or missing, a value of another type or out of range.
    """
    return read_recipe(Recipe, source, bundled_recipes())
