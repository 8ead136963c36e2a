"""YAML files checked at the door and turned into frozen settings, whatever they are settings of."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from tokenizer.presets import PRESETS
from tokenizer.spec import CodecSpec

_RECIPES = Path(__file__).parent / "recipes"
_LM = "lm_"  # what the names of language models' recipes begin with
Settings = TypeVar("Settings")


def bundled_names(*, of_language_models: bool) -> list[str]:
    """Names of the bundled recipes of language models, or of those of codecs."""
    names = sorted(path.stem for path in _RECIPES.glob("*.yaml"))
    return [name for name in names if name.startswith(_LM) == of_language_models]


def read_recipe(kind: type[Settings], source: str | Path, bundled: Collection[str]) -> Settings:
    """Read settings of some kind.

    Args:
        kind: a dataclass; dataclasses inside it are mappings inside the file.
        source: a YAML file, or the name of a bundled recipe.
        bundled: names of the bundled recipes of that kind.

    Raises:
        ValueError: no such recipe, not YAML, a key that is unknown or missing, a value of another type or out of range.
    """
    path = Path(source)
    if not path.is_file():
        if str(source) not in bundled:
            raise ValueError(f"no recipe {str(source)!r}: not a file, and the bundled ones are {sorted(bundled)}")
        path = _RECIPES / f"{source}.yaml"
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _settings(kind, plain, "recipe")
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
    for option in _fitting(options, value, where):
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


def _fitting(options: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    """Of several kinds of settings those whose literals the mapping agrees with: it is read as the first of them."""
    if sum(map(dataclasses.is_dataclass, options)) < 2 or not isinstance(plain, dict):
        return options
    known: dict[str, list[Any]] = {}
    fitting = []
    for option in options:
        hints = typing.get_type_hints(option)
        literals = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}
        if all(plain[name] in values for name, values in literals.items() if name in plain):
            fitting.append(option)
        for name, values in literals.items():
            known.setdefault(name, []).extend(values)
    if not fitting:
        wrong = {name: values for name, values in known.items() if name in plain and plain[name] not in values}
        raise ValueError(
            "; ".join(f"{where}.{name} is one of {values}, not {plain[name]!r}" for name, values in wrong.items())
        )
    return tuple(fitting)
