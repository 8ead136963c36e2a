"""Recipes of token language models: everything that decides what a training run does, except the tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lm_head.coarse_first import LanguageModelConfig
from lm_head.lm_training import LMObjective
from lm_head.token_lm import LMConfig
from pipelines.training.recipe_reader import bundled_names, read_recipe
from pipelines.training.schedule import Schedule
from tokenizer.optimization import OptimizerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LMSchedule(Schedule):
    """How long, and on how many frames at a time."""

    crop_frames: int = 262  # of each row: the paper's context. With text, the most of an utterance


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Utterances that are never trained on; the hash of an utterance's id decides, in every run the same way."""

    share: float = 0.01
    utterances: int = 16  # so many of them, at most, are judged at each checkpoint

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.utterances < 0:
            raise ValueError("share lies in [0, 1), utterances is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class LMRecipe:
    """What a language model's recipe says."""

    name: str
    schedule: LMSchedule
    model: LanguageModelConfig = field(default_factory=LMConfig)  # num_codebooks: the most; a dataset may store less
    objective: LMObjective = field(default_factory=LMObjective)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    held_out: HeldOut = field(default_factory=HeldOut)

    def __post_init__(self) -> None:
        self.objective.require_fit(self.model)


def bundled_lm_recipes() -> list[str]:
    """Names that `load_lm_recipe` knows."""
    return bundled_names(of_language_models=True)


def load_lm_recipe(source: str | Path) -> LMRecipe:
    """Read a language model's recipe.

    Args:
        source: a YAML file, or the name of a bundled recipe.

    Raises:
        ValueError: no such recipe, not YAML, a key that is unknown or missing, a value of another type or out of range.
    """
    return read_recipe(LMRecipe, source, bundled_lm_recipes())
