"""Draws follow the distribution, the filters, and each row's own seed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_head.sampling import Sampling, draw_codes, row_generators

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.15, 0.3])
DRAWS = 20_000
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}  # by degrees of freedom: 99.9 % of honest draws stay below


def counts(sampling, seed=0):
    """How often each code is drawn from PROBABILITIES."""
    logits = PROBABILITIES.log().expand(1, DRAWS, -1)
    return torch.bincount(draw_codes(logits, sampling, row_generators(seed, 1))[0], minlength=5)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.05, 0.4, 0.1, 0.15, 0.3]),
        (Sampling(temperature=0.5), [0.0025, 0.16, 0.01, 0.0225, 0.09]),
        (Sampling(temperature=2.0), [0.05**0.5, 0.4**0.5, 0.1**0.5, 0.15**0.5, 0.3**0.5]),
        (Sampling(top_k=3), [0, 0.4, 0, 0.15, 0.3]),
        (Sampling(top_k=50), [0.05, 0.4, 0.1, 0.15, 0.3]),
        (Sampling(top_p=0.5), [0, 0.4, 0, 0, 0.3]),
        (Sampling(top_p=0.71), [0, 0.4, 0, 0.15, 0.3]),
        (Sampling(top_k=4, top_p=0.95), [0, 0.4, 0.1, 0.15, 0.3]),
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(sampling, expected):
    """Chi-square of 20,000 draws; what is filtered out never comes, and the rest keeps its proportions."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    wanted = wanted / wanted.sum() * DRAWS
    seen = counts(sampling).double()
    possible = wanted > 0
    assert seen[~possible].sum() == 0
    chi_square = ((seen - wanted) ** 2 / wanted)[possible].sum()
    assert chi_square < CHI_SQUARE_999[int(possible.sum()) - 1]


@given(st.integers(0, 10**6), st.floats(0.1, 5.0))
def test_the_likeliest_alone_is_greedy(seed, temperature):
    """temperature 0, top_k 1 and a tiny top_p are one and the same."""
    logits = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(seed))
    for sampling in (
        Sampling(temperature=0),
        Sampling(temperature=temperature, top_k=1),
        Sampling(temperature=temperature, top_p=1e-9),
    ):
        assert torch.equal(draw_codes(logits, sampling, row_generators(seed, 3)), logits.argmax(dim=-1))


@given(st.integers(0, 10**6))
def test_a_row_does_not_depend_on_its_neighbours(seed):
    """Alone, or with others whose distributions are anything: the same draws from the same seed."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, 16, generator=generator)
    together = draw_codes(logits, Sampling(top_p=0.9), row_generators(seed, 4))
    alone = draw_codes(logits[2:3], Sampling(top_p=0.9), row_generators(seed + 2, 1))
    other = torch.randn(4, 3, 16, generator=generator)
    other[2] = logits[2]
    assert torch.equal(together[2:3], alone)
    assert torch.equal(draw_codes(other, Sampling(top_p=0.9), row_generators(seed, 4))[2], together[2])


def test_the_seed_decides_everything():
    """The same seed, the same draws; another seed, others."""
    assert torch.equal(counts(Sampling(), seed=1), counts(Sampling(), seed=1))
    assert not torch.equal(counts(Sampling(), seed=1), counts(Sampling(), seed=2))


def test_impossible_codes_are_never_drawn():
    """A logit of minus infinity has probability 0, under every setting."""
    logits = torch.full((1, 2000, 8), -math.inf)
    logits[..., [2, 5]] = 0.0
    for sampling in (Sampling(), Sampling(top_k=4), Sampling(top_p=1.0), Sampling(temperature=3.0)):
        assert set(draw_codes(logits, sampling, row_generators(0, 1)).flatten().tolist()) == {2, 5}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
    ],
    ids=str,
)
def test_settings_are_checked(settings):
    """The error names the setting."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampling(**settings)


def test_every_row_needs_a_seed():
    """Seeds are counted up, or given for each row."""
    assert [g.initial_seed() for g in row_generators(5, 3)] == [5, 6, 7]
    assert [g.initial_seed() for g in row_generators([9, 1], 2)] == [9, 1]
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        row_generators([9, 1], 3)
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match="seeds are whole numbers"):
            row_generators(seed, 1)
