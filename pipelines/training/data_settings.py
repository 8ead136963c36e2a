"""How a recipe treats its training audio: what is drawn, how loud, and with which room around it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


def _number(settings: Any, name: str) -> float:
    value = getattr(settings, name)
    _require(isinstance(value, (int, float)) and math.isfinite(value), f"{name} is a number, not {value!r}")
    return float(value)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Probability of each way to make one training example; they add up to 1, and what is not named has 0.

    `ENCODEC_SAMPLING` is the paper's. Speech alone is `Sampling(one=1.0)`.
    """

    one: float = 0.0  # one source of any kind
    one_music: float = 0.0
    one_other: float = 0.0  # anything but music
    two: float = 0.0  # a mix of two sources of any kind
    three_without_music: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _require(0 <= _number(self, field.name) <= 1, f"sampling: {field.name} is a probability, from 0 to 1")
        total = sum(dataclasses.astuple(self))
        _require(math.isclose(total, 1.0, abs_tol=1e-6), f"sampling: probabilities add up to {total:g}, not to 1")


ENCODEC_SAMPLING = Sampling(one_music=0.32, one_other=0.32, two=0.24, three_without_music=0.12)
"""Source: EnCodec, arXiv:2210.13438, 4.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What a recipe says about its data.

    Raises:
        ValueError: a value is out of range.
    """

    sampling: Sampling = ENCODEC_SAMPLING
    gain_db: tuple[float, float] = (-10.0, 6.0)  # drawn uniformly, for each source
    reverb_probability: float = 0.0  # EnCodec: 0.2
    store_hours: float = 100.0  # corpora up to this length are decoded once, longer ones are read in place

    def __post_init__(self) -> None:
        _require(isinstance(self.sampling, Sampling), "sampling is a mapping of strategies to probabilities")
        _require(
            isinstance(self.gain_db, tuple)
            and len(self.gain_db) == 2
            and all(isinstance(gain, (int, float)) and math.isfinite(gain) for gain in self.gain_db)
            and self.gain_db[0] <= self.gain_db[1],
            f"gain_db is a lowest and a highest gain in dB, not {self.gain_db!r}",
        )
        _require(0 <= _number(self, "reverb_probability") <= 1, "reverb_probability is from 0 to 1")
        _require(_number(self, "store_hours") >= 0, "store_hours must not be negative")
