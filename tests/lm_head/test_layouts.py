"""Layouts: orders of codes that can be undone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_head.layouts import LAYOUTS, make_layout
from tokenizer import CodesError

CODES = torch.tensor([[[1, 2, 3], [4, 5, 6]]])  # K 2, T 3


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("parallel", [[1, 2, 3], [4, 5, 6]]),
        ("delay", [[1, 2, 3, 8], [8, 4, 5, 6]]),
        ("flatten", [1, 12, 2, 13, 3, 14]),
        ("coarse_first", [1, 2, 3, 12, 13, 14]),
    ],
)
def test_what_each_layout_looks_like(name, tokens):
    """Two levels of 8 entries: level 1 is a step later, or 8 higher."""
    layout = make_layout(name, num_codebooks=2, codebook_size=8)
    assert layout.tokens(CODES)[0].tolist() == tokens
    assert layout.name == name


@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(0, 12)),
    codebook_size=st.integers(1, 1024),
    seed=st.integers(0, 99),
)
def test_every_layout_can_be_undone(name, shape, codebook_size, seed):
    """Any codes come back exactly, from tokens inside the vocabulary."""
    codes = torch.randint(codebook_size, shape, generator=torch.Generator().manual_seed(seed))
    layout = make_layout(name, num_codebooks=shape[1], codebook_size=codebook_size)
    tokens = layout.tokens(codes)
    assert torch.equal(layout.codes(tokens), codes)
    assert tokens.numel() == 0 or 0 <= int(tokens.min()) <= int(tokens.max()) < layout.vocabulary_size


@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    tokens=st.lists(st.integers(0, 4), min_size=6, max_size=6),
)
def test_what_can_be_undone_is_what_comes_out_of_a_layout(name, tokens):
    """Random tokens either are those of the codes that they give, or are refused."""
    layout = make_layout(name, num_codebooks=2, codebook_size=3)
    given_tokens = torch.tensor(tokens).reshape((1, 2, 3) if name in ("parallel", "delay") else (1, 6))
    try:
        codes = layout.codes(given_tokens)
    except CodesError:
        return
    assert torch.equal(layout.tokens(codes), given_tokens)


def test_special_tokens_lie_behind_the_codes():
    """Nothing is V in layout "delay"; no other layout needs a token that is no code."""
    special = {name: make_layout(name, num_codebooks=3, codebook_size=16).special_tokens for name in LAYOUTS}
    assert special == {"parallel": {}, "delay": {"nothing": 16}, "flatten": {}, "coarse_first": {}}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_codes_are_checked(name):
    """Another number of levels, out of range, or not int64."""
    layout = make_layout(name, num_codebooks=2, codebook_size=8)
    for codes in (CODES[:, :1], CODES[0], CODES + 2, CODES - 2, CODES.int()):
        with pytest.raises(CodesError):
            layout.tokens(codes)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("parallel", [[[1, 8], [0, 0]]]),  # not a code
        ("parallel", [[[1, 2]]]),  # a level is missing
        ("delay", [[[1, 2, 3], [8, 4, 5]]]),  # a frame without its level 0 behind the end
        ("delay", [[[1, 8, 8], [8, 4, 5]]]),  # a hole
        ("delay", [[[], []]]),  # no room for the delay
        ("flatten", [[1, 12, 2]]),  # half a frame
        ("flatten", [[12, 1]]),  # levels swapped
        ("coarse_first", [[1, 12, 2, 13]]),  # frame by frame
        ("coarse_first", [[[1, 12]]]),  # too many dimensions
    ],
    ids=str,
)
def test_tokens_of_no_codes_are_refused(name, tokens):
    """Never noise: an error that names the layout."""
    with pytest.raises(CodesError, match=name):
        make_layout(name, num_codebooks=2, codebook_size=8).codes(torch.tensor(tokens, dtype=torch.int64))


def test_tokens_are_integers():
    """Floats are no tokens, even whole ones."""
    with pytest.raises(CodesError, match="int64"):
        make_layout("parallel", num_codebooks=2, codebook_size=8).codes(CODES.float())


def test_unknown_layouts_are_named():
    """The error lists what there is."""
    with pytest.raises(ValueError, match="parallel, delay, flatten, coarse_first"):
        make_layout("diagonal", num_codebooks=2, codebook_size=8)
    with pytest.raises(ValueError, match="0 levels"):
        make_layout("delay", num_codebooks=0, codebook_size=8)
