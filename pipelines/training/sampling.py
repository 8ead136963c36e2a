"""Drawing the sources of a training example: how many, of which kind, from which clip, and where in it.

Source: EnCodec, arXiv:2210.13438, 4.1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipelines.training.data_settings import Sampling
from tokenizer import DatasetError

MUSIC = "music"
Group = Literal["any", "music", "other"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """How many sources are added up, and which clips they come from."""

    num_sources: int
    group: Group


STRATEGIES = {
    "one": Strategy(1, "any"),
    "one_music": Strategy(1, "music"),
    "one_other": Strategy(1, "other"),
    "two": Strategy(2, "any"),
    "three_without_music": Strategy(3, "other"),
}


@dataclass(frozen=True, slots=True)
class _ClipGroup:
    clips: npt.NDArray[np.int64]  # their numbers
    ends: npt.NDArray[np.int64]  # of each, in samples, when laid end to end


class Sampler:
    """Draws sources from clips of known kinds and lengths.

    Strategies that need a kind which the clips lack are left out, and the probabilities of the others grow to 1.

    Args:
        kinds: of each clip.
        lengths: of each clip in samples; a clip of length 0 is never drawn.
        sampling: probability of each strategy.

    Attributes:
        probabilities: of the strategies in use, by name.
        left_out: names of strategies that these clips cannot serve.

    Raises:
        DatasetError: no strategy is left.
    """

    def __init__(self, kinds: npt.NDArray[np.str_], lengths: npt.NDArray[np.int64], sampling: Sampling) -> None:
        members: dict[Group, npt.NDArray[np.bool_]] = {
            "any": lengths > 0,
            "music": (lengths > 0) & (kinds == MUSIC),
            "other": (lengths > 0) & (kinds != MUSIC),
        }
        self._lengths = lengths
        self._groups: dict[Group, _ClipGroup] = {
            group: _ClipGroup(np.flatnonzero(chosen), np.cumsum(lengths[chosen]))
            for group, chosen in members.items()
            if chosen.any()
        }
        wanted = {name: value for name, value in dataclasses.asdict(sampling).items() if value > 0}
        served = {name: value for name, value in wanted.items() if STRATEGIES[name].group in self._groups}
        if not served:
            raise DatasetError(f"no clips for sampling {', '.join(wanted)}: kinds are {sorted(set(kinds.tolist()))}")
        self.probabilities = {name: value / sum(served.values()) for name, value in served.items()}
        self.left_out = sorted(wanted.keys() - served.keys())
        self._thresholds = np.cumsum(list(self.probabilities.values()))

    def draw_strategy(self, rng: np.random.Generator) -> Strategy:
        """One of the strategies in use, by its probability."""
        index = int(np.searchsorted(self._thresholds[:-1], rng.random(), side="right"))
        return STRATEGIES[list(self.probabilities)[index]]

    def draw_crop(self, rng: np.random.Generator, group: Group, num_samples: int) -> tuple[int, int]:
        """Number of a clip, and where in it a crop starts.

        Every second of a group's audio is as likely as any other: clips are drawn by their lengths, and crops lie
        anywhere within. A crop longer than its clip starts with it.
        """
        members = self._groups[group]
        position = int(rng.integers(members.ends[-1]))
        index = int(np.searchsorted(members.ends, position, side="right"))
        clip = int(members.clips[index])
        length = int(self._lengths[clip])
        into = position - (int(members.ends[index]) - length)  # uniform in [0, length)
        return clip, into * max(1, length - num_samples + 1) // length
