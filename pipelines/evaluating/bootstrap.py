"""How far a mean may be trusted: bootstrap intervals, over clips or over listeners and clips at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0  # the same for every mean: rows over the same clips are resampled alike, so that they compare
_CHUNK = 1_000_000  # numbers drawn at once

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where it would mostly lie if the clips had been others of their kind."""

    mean: float
    low: float | None  # None: a single value has nothing to resample
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half of the distance from low to high."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def mean_interval(values: Sequence[float] | Floats) -> Interval:
    """Percentile bootstrap interval of the mean: values are drawn with replacement, as many as there are.

    Args:
        values: [N], independent of one another; finite.

    Raises:
        ValueError: no values, or one that is not finite.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), 13.3.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"a mean needs one or more finite numbers, got {sample.size} of shape {sample.shape}")
    if sample.size == 1:
        return Interval(float(sample[0]), None, None)
    rng = np.random.default_rng(SEED)
    means = [sample[rng.integers(sample.size, size=(rows, sample.size))].mean(axis=1) for rows in _chunks(sample.size)]
    return _interval(float(sample.mean()), np.concatenate(means))


def crossed_interval(ratings: Floats) -> Interval:
    """Bootstrap interval of a mean over ratings that share listeners and clips.

    Ratings by one listener resemble each other, and so do ratings of one clip: drawing ratings one by one would take
    them for more evidence than they are. Here listeners and clips are drawn, each with replacement, and a rating counts
    as often as both of its own were drawn. With one listener this is the bootstrap over clips, and the reverse.

    Args:
        ratings: [listeners, clips]; NaN where there is none.

    Raises:
        ValueError: not a matrix, or no rating in it.

    Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007), arXiv:0712.1111.
    """
    known = ~np.isnan(ratings)
    if ratings.ndim != 2 or not known.any():
        raise ValueError(f"a mean needs a matrix with at least one rating, got shape {ratings.shape}")
    mean = float(ratings[known].mean())
    if known.sum() == 1:
        return Interval(mean, None, None)
    sums, counts = np.where(known, ratings, 0.0), known.astype(np.float64)
    rng = np.random.default_rng(SEED)
    means = []
    for rows in _chunks(sum(ratings.shape)):
        listeners, clips = (rng.multinomial(size, np.full(size, 1 / size), rows) for size in ratings.shape)
        drawn = ((listeners @ counts) * clips).sum(axis=1)
        some = drawn > 0  # sparse ratings: a draw may meet none of them
        means.append(((listeners @ sums) * clips).sum(axis=1)[some] / drawn[some])
    return _interval(mean, np.concatenate(means))


def _chunks(width: int) -> Iterator[int]:
    """Rows to draw at a time, NUM_RESAMPLES in all."""
    most = max(1, _CHUNK // width)
    for start in range(0, NUM_RESAMPLES, most):
        yield min(most, NUM_RESAMPLES - start)


def _interval(mean: float, means: Floats) -> Interval:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))
