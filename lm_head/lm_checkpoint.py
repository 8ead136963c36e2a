"""Token language models on disk: a directory with config.json and model.safetensors, in integers or floating point."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lm_head.coarse_first import LanguageModel, build_language_model
from lm_head.integer_coder import IntegerCoder
from lm_head.integer_lm import IntegerLM
from lm_head.integer_weights import IntegerWeights, dequantize, quantize
from lm_head.known_answer import known_answer, require_known_answer
from lm_head.token_lm import LMConfig, TokenLM
from tokenizer.checkpoint_file import SAFETENSORS_NAME, read_json, read_safetensors
from tokenizer.errors import CheckpointError

MODELS = Path(__file__).parent / "models"
FORMAT_VERSION = 1
CONFIG_NAME = "config.json"


@dataclass(frozen=True, slots=True)
class LMCard:
    """What a language model is, and whose codes it knows."""

    name: str
    codec: dict[str, Any]  # the codec's card, `Codec.card()`


def bundled_lms() -> list[str]:
    """Names that `load_lm` and `load_coder` know."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG_NAME}"))


def save_lm(lm: LanguageModel, directory: str | Path, card: LMCard, steps: Tensor | None = None) -> None:
    """Write a language model.

    Args:
        lm: to write.
        directory: made where it is missing.
        card: its name and codec.
        steps: [layers + 1, slots] of its activations: the model is rounded to integers, which the entropy coder needs
            and which take a quarter of the space. None writes floating point.

    Raises:
        CheckpointError: steps for a model that has no integer form.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT_VERSION,
        "name": card.name,
        "codec": card.codec,
        "model": lm.config.to_dict(),
        "form": "float" if steps is None else "integer",
    }
    if steps is None:
        tensors = lm.state_dict()
    elif not isinstance(lm, TokenLM):
        raise CheckpointError(f"{type(lm).__name__} has no integer form")
    else:
        weights = quantize(lm, steps)
        tensors = weights.to_tensors()
        config["known_answer"] = known_answer(IntegerLM(weights))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (directory / SAFETENSORS_NAME).write_bytes(save(tensors))
    (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_lm(source: str | Path) -> LanguageModel:
    """Load a language model for generation, or to train it further; floating point, on the CPU.

    Args:
        source: a bundled name, or a directory that `save_lm` wrote.

    Raises:
        CheckpointError: neither, or damaged.
    """
    directory, config = _read_config(source)
    tensors = read_safetensors(directory)
    if config["form"] == "integer":
        return dequantize(IntegerWeights.from_tensors(_coder_config(directory, config), tensors))
    with _blamed_on(directory):
        lm = build_language_model(config["model"])
        lm.load_state_dict(tensors)
    return lm.eval().requires_grad_(requires_grad=False)


def load_token_lm(source: str | Path) -> TokenLM:
    """The same as `load_lm`, for what only models that predict all levels frame by frame can do.

    Raises:
        CheckpointError: another kind of model too.
    """
    lm = load_lm(source)
    if not isinstance(lm, TokenLM):
        raise CheckpointError(f"{str(source)[:200]}: a model of layout 'coarse_first' cannot do this")
    return lm


def load_coder(source: str | Path, device: str = "cpu") -> IntegerCoder:
    """Load a language model as an entropy coder, after a test that this machine computes it as all others do.

    Args:
        source: a bundled name, or a directory that `save_lm` wrote with steps.
        device: where it computes.

    Raises:
        CheckpointError: no such model, damaged, in floating point, or computed differently here.
    """
    directory, config = _read_config(source)
    if config["form"] != "integer":
        raise CheckpointError(
            f"{directory}: a model in floating point cannot code: its numbers differ between machines. Train it on the "
            "integer grid (grid_from in the recipe)"
        )
    weights = IntegerWeights.from_tensors(_coder_config(directory, config), read_safetensors(directory))
    lm = IntegerLM(weights, device)
    require_known_answer(lm, str(config.get("known_answer")))
    return IntegerCoder(lm)


def read_lm_card(source: str | Path) -> LMCard:
    """Name and codec of a language model, without its weights.

    Raises:
        CheckpointError: no such model, or damaged.
    """
    directory, config = _read_config(source)
    if not isinstance(config.get("codec"), dict):
        raise CheckpointError(f"{directory}: does not say whose codes it knows")
    return LMCard(str(config.get("name")), config["codec"])


def has_integer_form(source: str | Path) -> bool:
    """Whether `load_coder` is for it.

    Raises:
        CheckpointError: no such model, or damaged.
    """
    return bool(_read_config(source)[1]["form"] == "integer")


def lm_directory(source: str | Path) -> Path:
    """Where a language model lies.

    Args:
        source: a bundled name, or a directory.

    Raises:
        CheckpointError: neither.
    """
    if Path(source).is_dir():
        return Path(source)
    if str(source) not in bundled_lms():
        raise CheckpointError(
            f"no language model {str(source)[:200]!r}: not a directory, and the bundled ones are "
            f"{', '.join(bundled_lms()) or 'none'}"
        )
    return MODELS / str(source)


def _read_config(source: str | Path) -> tuple[Path, dict[str, Any]]:
    directory = lm_directory(source)
    config = read_json(directory / CONFIG_NAME)
    if config.get("format") != FORMAT_VERSION or config.get("form") not in ("integer", "float"):
        raise CheckpointError(f"{directory}: not a language model of format {FORMAT_VERSION}")
    return directory, config


def _coder_config(directory: Path, config: dict[str, Any]) -> LMConfig:
    with _blamed_on(directory):
        return LMConfig.from_dict(config["model"])


@contextmanager
def _blamed_on(directory: Path) -> Iterator[None]:
    """Turn what wrong settings and tensors raise into an error that names the model."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: {error}") from error
