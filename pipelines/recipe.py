"""Training recipes: a YAML file checked at the door and turned into frozen settings."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml

from pipelines.data_settings import DataSettings
from tokenizer.objective import Objective
from tokenizer.optimization import OptimizerSettings
from tokenizer.presets import PRESETS
from tokenizer.quantizer_training import QuantizerTraining
from tokenizer.spec import CodecSpec
from tokenizer.training import TrainingSettings

RECIPES = Path(__file__).parent / "recipes"
Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long, and on how much audio at a time."""

    steps: int
    batch_size: int  # of all processes together
    crop_seconds: float = 1.0
    warmup_steps: int = 0
    decay_steps: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"  # of the networks and discriminators
    seed: int = 0
    log_every: int = 25  # steps
    checkpoint_every: int = 500  # steps

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop_seconds", "log_every", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.warmup_steps < 0 or not 0 <= self.decay_steps <= self.steps:
            raise ValueError("warmup_steps must not be negative, decay_steps not outside 0 to steps")
        if self.checkpoint_every % self.log_every:
            raise ValueError("checkpoint_every must be a multiple of log_every: a resumed run then logs the same rows")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is not float32 or bfloat16")

    def rate_factor(self, step: int) -> float:
        """Share of the learning rate at a step: a linear rise, a plateau, and a fall along 1 - sqrt to zero.

        The plateau makes a run extendable: until the fall begins, its checkpoints do not depend on `steps`.
        """
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        into_fall = step - (self.steps - self.decay_steps)
        fall = 1.0 - (into_fall / self.decay_steps) ** 0.5 if into_fall > 0 else 1.0
        return min(rise, fall)

    def lasting(self, steps: int) -> Schedule:
        """The same with another number of steps; the fall is part of them."""
        return dataclasses.replace(self, steps=steps, decay_steps=min(self.decay_steps, steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run does, except the audio."""

    name: str
    codec: CodecSpec
    schedule: Schedule
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
            autocast=torch.bfloat16 if self.schedule.precision == "bfloat16" else None,
        )


def bundled_recipes() -> list[str]:
    """Names that `load_recipe` knows."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        source: a YAML file, or the name of a bundled recipe.

    Raises:
        ValueError: no such recipe, not YAML, a key that is unknown or missing, a value of another type or out of range.
    """
    path = Path(source)
    if not path.is_file():
        path = RECIPES / f"{source}.yaml"
        if not path.is_file():
            raise ValueError(f"no recipe {str(source)!r}: not a file, and the bundled ones are {bundled_recipes()}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _settings(Recipe, plain, "recipe")
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _settings(kind: type[Settings], plain: Any, where: str) -> Settings:
    """A dataclass from a mapping, with the dataclasses inside it."""
    if not isinstance(plain, dict):
        raise TypeError(f"{where} is a mapping, not {plain!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(map(str, plain.keys() - hints.keys()))
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown)}; it has {', '.join(sorted(hints))}")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in plain.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value as the field's type wants it: dataclasses from mappings, tuples from lists, floats from integers."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is CodecSpec:
            return PRESETS[value] if isinstance(value, str) and value in PRESETS else CodecSpec.from_dict(value)
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return _settings(option, value, where)
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, list):
            return tuple(value)
        if origin is Literal or (isinstance(origin, type) and isinstance(value, origin)):
            return value
    raise TypeError(f"{where} cannot be {value!r}")
