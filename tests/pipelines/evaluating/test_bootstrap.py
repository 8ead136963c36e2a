"""Bootstrap intervals: as wide as they should be, and the same every time."""

import numpy as np
import pytest
import scipy.stats

from pipelines.evaluating.bootstrap import Interval, crossed_interval, mean_interval


@pytest.fixture
def skewed():
    """Sixty draws from a distribution with a long tail."""
    return np.random.default_rng(5).gamma(2.0, 3.0, 60)


def test_the_interval_is_that_of_scipy(skewed):
    """The percentile method, up to the chance of which resamples were drawn."""
    ours = mean_interval(skewed)
    theirs = scipy.stats.bootstrap(
        (skewed,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours.mean == pytest.approx(skewed.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.06 * (theirs.high - theirs.low))
    assert ours.high == pytest.approx(theirs.high, abs=0.06 * (theirs.high - theirs.low))
    assert ours.half_width == pytest.approx((ours.high - ours.low) / 2)


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    """Of 200 samples of a known distribution about 95 % have its mean inside; 180 to 199 leave chance enough room."""
    rng = np.random.default_rng(1)
    intervals = [mean_interval(rng.normal(3.0, 2.0, 40)) for _ in range(200)]
    assert 180 <= sum(one.low <= 3.0 <= one.high for one in intervals) <= 199


def test_the_same_values_give_the_same_interval(skewed):
    """Nothing depends on the clock or on what was computed before."""
    assert mean_interval(skewed) == mean_interval(list(skewed))


def test_many_values_are_resampled_in_pieces(monkeypatch, skewed):
    """How many rows are drawn at a time bounds memory, and nothing else."""
    whole = mean_interval(skewed)
    monkeypatch.setattr("pipelines.evaluating.bootstrap._CHUNK", 600)
    assert mean_interval(skewed) == whole


def test_one_value_has_no_interval():
    """There is nothing to resample, and a width of zero would look like certainty."""
    assert mean_interval([2.5]) == crossed_interval(np.array([[2.5]])) == Interval(2.5, None, None)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]], ids=str)
def test_a_mean_needs_finite_values(values):
    """An interval around nothing, or around NaN, is refused."""
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


def test_one_listener_is_resampled_over_clips():
    """Without other listeners the crossed interval is the plain one over clips, and the reverse."""
    scores = np.random.default_rng(2).uniform(20, 90, 30)
    plain = mean_interval(scores)
    for ratings in (scores[None], scores[:, None]):
        crossed = crossed_interval(ratings)
        assert crossed.mean == pytest.approx(plain.mean)
        assert crossed.half_width == pytest.approx(plain.half_width, rel=0.08)


def test_ratings_of_one_listener_are_no_independent_evidence():
    """Four listeners who each give every clip one score: forty ratings tell as much as four do."""
    opinions = np.array([30.0, 45.0, 60.0, 85.0])
    ratings = np.repeat(opinions[:, None], 10, axis=1)
    crossed = crossed_interval(ratings)
    assert crossed.half_width == pytest.approx(mean_interval(opinions).half_width, rel=0.1)
    assert crossed.half_width > 2 * mean_interval(ratings.ravel()).half_width


def test_ratings_that_are_not_there_do_not_count():
    """The mean is over what was rated; draws that meet no rating are left out."""
    ratings = np.full((3, 3), np.nan)
    ratings[0, 0], ratings[1, 1] = 40.0, 60.0
    crossed = crossed_interval(ratings)
    assert (crossed.mean, crossed.low, crossed.high) == (50.0, 40.0, 60.0)
    with pytest.raises(ValueError, match="at least one rating"):
        crossed_interval(np.full((2, 2), np.nan))
