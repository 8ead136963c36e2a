"""Training recipes: a YAML file checked at the door and turned into frozen settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from tokenizer.spec import CodecSpec
from tokenizer.training import Objective, QuantizerTraining

RECIPES = Path(__file__).parent / "recipes"
Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long, how fast, and on how much audio at a time."""

    steps: int
    batch_size: int
    learning_rate: float
    crop_seconds: float = 1.0
    warmup_steps: int = 200
    decay_steps: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.8, 0.99)
    gradient_clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "crop_seconds", "checkpoint_every", "gradient_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.warmup_steps < 0 or not 0 <= self.decay_steps <= self.steps:
            raise ValueError("warmup_steps must not be negative, decay_steps not outside 0 to steps")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is not float32 or bfloat16")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: a linear rise, a plateau, and a fall along 1 - sqrt to zero.

        The plateau makes a run extendable: until the fall begins, its checkpoints do not depend on `steps`.
        """
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        into_fall = step - (self.steps - self.decay_steps)
        fall = 1.0 - (into_fall / self.decay_steps) ** 0.5 if into_fall > 0 else 1.0
        return self.learning_rate * min(rise, fall)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run does, except the audio."""

    name: str
    codec: CodecSpec
    schedule: Schedule
    objective: Objective
    quantizer: QuantizerTraining


def bundled_recipes() -> list[str]:
    """Names that `load_recipe` knows."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        source: a YAML file, or the name of a bundled recipe.

    Raises:
        ValueError: no such recipe, not YAML, a key that is unknown or missing, a value out of range.
    """
    path = Path(source)
    if not path.is_file():
        path = RECIPES / f"{source}.yaml"
        if not path.is_file():
            raise ValueError(f"no recipe {str(source)!r}: not a file, and the bundled ones are {bundled_recipes()}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _recipe(plain)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _recipe(plain: Any) -> Recipe:
    if not isinstance(plain, dict):
        raise TypeError("a recipe is a mapping of name, codec, schedule, objective and quantizer")
    unknown = plain.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise ValueError(f"unknown sections {sorted(unknown)}")
    return Recipe(
        name=str(plain["name"]),
        codec=CodecSpec.from_dict(plain["codec"]),
        schedule=_settings(Schedule, plain["schedule"]),
        objective=_settings(Objective, plain.get("objective", {})),
        quantizer=_settings(QuantizerTraining, plain.get("quantizer", {})),
    )


def _settings(kind: type[Settings], plain: dict[str, Any]) -> Settings:
    """Fields by name; lists become tuples, so that settings stay hashable."""
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()})
