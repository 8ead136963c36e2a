"""Entropy of codes by level."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_head import code_histogram, order_zero_entropy, perplexity
from tokenizer import CodesError


def test_uniform_codes_cost_all_their_bits():
    """Every entry equally often: log2(V) bits, and a perplexity of V."""
    codes = np.tile(np.arange(16), (3, 5))
    histogram = code_histogram(codes, 16)
    np.testing.assert_allclose(order_zero_entropy(histogram), 4.0)
    np.testing.assert_allclose(perplexity(histogram), 16.0)


def test_constant_codes_cost_nothing():
    """One entry only: no information."""
    histogram = code_histogram(np.full((1, 9), 7), 16)
    assert order_zero_entropy(histogram) == [0.0]
    assert perplexity(histogram) == [1.0]


def test_entropy_follows_the_formula():
    """Shares 1/2, 1/4, 1/4 carry 1.5 bits."""
    assert order_zero_entropy(np.array([[2, 1, 1, 0]])) == [1.5]


def test_an_empty_level_has_no_entropy():
    """No codes at all is 0 bits, not a division by zero."""
    assert order_zero_entropy(np.zeros((1, 4), np.int64)) == [0.0]


@given(st.lists(st.integers(0, 15), min_size=2, max_size=60))
def test_histograms_of_parts_add_up(values):
    """A corpus can be counted part by part, in any cut, batched or not."""
    codes = np.array([values, values[::-1]])
    cut = len(values) // 2
    parts = code_histogram(codes[:, :cut], 16) + code_histogram(codes[:, cut:], 16)
    np.testing.assert_array_equal(parts, code_histogram(codes, 16))
    np.testing.assert_array_equal(2 * parts, code_histogram(np.stack([codes, codes]), 16))


@pytest.mark.parametrize("codes", [np.array([[16]]), np.array([[-1]]), np.array([[0.5]]), np.array([1, 2])], ids=str)
def test_codes_are_checked(codes):
    """Out of range, not integers, or without levels: an error, never a wrapped index."""
    with pytest.raises(CodesError):
        code_histogram(codes, 16)
