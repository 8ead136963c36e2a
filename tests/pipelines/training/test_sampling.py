"""Sources are drawn by the recipe's probabilities, and every second of audio is as likely as any other."""

import math
from collections import Counter

import numpy as np
import pytest

from pipelines.training.data_settings import ENCODEC_SAMPLING, DataSettings, Sampling
from pipelines.training.sampling import STRATEGIES, Sampler
from tokenizer import DatasetError

DRAWS = 4000
KINDS = np.array(["speech", "music", "sound", "music", "speech"])
LENGTHS = np.array([1000, 4000, 2000, 1000, 0])


def shares(draws):
    """How often each value came."""
    return {value: count / len(draws) for value, count in Counter(draws).items()}


def within_binomial_bounds(found, expected):
    """Whether shares of DRAWS draws lie within five standard deviations: wrong once in a million runs, if random."""
    bounds = {name: 5 * math.sqrt(share * (1 - share) / DRAWS) for name, share in expected.items()}
    return found.keys() == expected.keys() and all(abs(found[name] - expected[name]) < bounds[name] for name in bounds)


def draw_names(sampler, seed=0):
    names = {strategy: name for name, strategy in STRATEGIES.items()}
    rng = np.random.default_rng(seed)
    return [names[sampler.draw_strategy(rng)] for _ in range(DRAWS)]


def test_strategies_come_with_their_probabilities():
    """Of EnCodec: 0.32 one music source, 0.32 one other, 0.24 two, 0.12 three without music."""
    sampler = Sampler(KINDS, LENGTHS, ENCODEC_SAMPLING)
    expected = {"one_music": 0.32, "one_other": 0.32, "two": 0.24, "three_without_music": 0.12}
    assert sampler.probabilities == pytest.approx(expected)
    assert sampler.left_out == []
    assert within_binomial_bounds(shares(draw_names(sampler)), expected)


def test_strategies_without_clips_are_left_out():
    """Speech alone has no music strategy; the others share its part."""
    sampler = Sampler(np.array(["speech"] * 2), LENGTHS[:2], ENCODEC_SAMPLING)
    assert sampler.left_out == ["one_music"]
    assert sampler.probabilities == pytest.approx(
        {"one_other": 0.32 / 0.68, "two": 0.24 / 0.68, "three_without_music": 0.12 / 0.68}
    )
    assert within_binomial_bounds(shares(draw_names(sampler)), sampler.probabilities)
    with pytest.raises(DatasetError, match="one_music"):
        Sampler(np.array(["speech"]), LENGTHS[:1], Sampling(one_music=1.0))


@pytest.mark.parametrize(
    ("group", "expected"),
    [("any", {0: 1 / 8, 1: 1 / 2, 2: 1 / 4, 3: 1 / 8}), ("music", {1: 0.8, 3: 0.2}), ("other", {0: 1 / 3, 2: 2 / 3})],
)
def test_clips_are_drawn_by_their_lengths(group, expected):
    """Within their group; a clip without samples never."""
    sampler, rng = Sampler(KINDS, LENGTHS, ENCODEC_SAMPLING), np.random.default_rng(1)
    assert within_binomial_bounds(shares([sampler.draw_crop(rng, group, 100)[0] for _ in range(DRAWS)]), expected)


def test_crops_lie_anywhere_within_their_clip():
    """Every start that fits is as likely as any other; what is shorter than a crop is taken from its start."""
    sampler, rng = Sampler(KINDS[:1], np.array([13]), Sampling(one=1.0)), np.random.default_rng(2)
    starts = shares([sampler.draw_crop(rng, "any", 1)[1] for _ in range(DRAWS)])
    assert within_binomial_bounds(starts, dict.fromkeys(range(13), 1 / 13))
    assert {sampler.draw_crop(rng, "any", 10)[1] for _ in range(DRAWS)} == {0, 1, 2, 3}
    assert {sampler.draw_crop(rng, "any", 20)[1] for _ in range(100)} == {0}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda: Sampling(one=0.5), "add up to 0.5"),
        (lambda: Sampling(one=1.5, two=-0.5), "probability"),
        (lambda: Sampling(one="all"), "number"),
        (lambda: DataSettings(sampling={"one": 1.0}), "sampling"),
        (lambda: DataSettings(gain_db=(6.0, -10.0)), "gain_db"),
        (lambda: DataSettings(gain_db=(0.0,)), "gain_db"),
        (lambda: DataSettings(reverb_probability=1.2), "reverb_probability"),
        (lambda: DataSettings(store_hours=-1.0), "store_hours"),
        (lambda: DataSettings(store_hours=math.nan), "store_hours"),
    ],
)
def test_wrong_settings_are_refused(wrong, reason):
    """With the name of what is wrong."""
    with pytest.raises(ValueError, match=reason):
        wrong()
