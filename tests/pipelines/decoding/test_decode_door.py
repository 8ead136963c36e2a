"""What comes into the decoding service: codes, lengths and scales that fit the codec and each other, or CodesError."""

import numpy as np
import pytest

from pipelines.decoding.decode_door import checked_codes, checked_length, checked_loudness
from tests.conftest import tiny_spec
from tokenizer import CodesError


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64, np.uint64, np.dtype(">i4")], ids=str)
def test_any_integers_become_two_bytes_each(kind):
    """A copy: what the caller does to its array afterwards changes nothing."""
    codes = np.arange(12).reshape(4, 3).astype(kind)
    checked = checked_codes(codes, tiny_spec())
    assert checked.dtype == np.uint16
    assert np.array_equal(checked, np.arange(12).reshape(4, 3))
    codes[:] = 0
    assert checked.max() == 11


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        (np.full((4, 3), 16, np.uint16), "range from 16 to 16, allowed is 0 to 15"),
        (np.full((4, 3), -1, np.int64), "range from -1 to -1"),
        (np.full((4, 3), 65536, np.int64), "range from 65536"),
        (np.full((4, 3), 2**63, np.uint64), "range from 9223372036854775808"),
        (np.zeros((5, 3), np.uint16), "1 to 4 levels, not 5"),
        (np.zeros((0, 3), np.uint16), "1 to 4 levels, not 0"),
        (np.zeros((4, 0), np.uint16), "at least one frame"),
        (np.zeros((4, 3), np.float32), r"integers \[K, T\], not float32"),
        (np.zeros((4, 3), bool), "not bool"),
        (np.zeros((4, 3), object), "not object"),
        (np.zeros(3, np.uint16), r"not uint16 \[3\]"),
        (np.zeros((1, 4, 3), np.uint16), r"not uint16 \[1, 4, 3\]"),
        ([[0, 0, 0]], "not list"),
    ],
)
def test_codes_that_the_codec_cannot_mean_are_refused(codes, why):
    """The message says what was wrong and what is allowed."""
    with pytest.raises(CodesError, match=why):
        checked_codes(codes, tiny_spec())


def test_a_stream_takes_the_levels_that_it_was_opened_for():
    """Neither fewer nor more."""
    assert checked_codes(np.zeros((2, 3), np.uint16), tiny_spec(), num_codebooks=2).shape == (2, 3)
    with pytest.raises(CodesError, match="must have 2 levels, not 4"):
        checked_codes(np.zeros((4, 3), np.uint16), tiny_spec(), num_codebooks=2)


@pytest.mark.parametrize("kind", ["seanet", "segmented"])
def test_a_length_is_found_where_none_is_given(kind):
    """It is the longest that needs just so many frames, for codecs with segments too."""
    spec = tiny_spec(kind)
    for num_samples in range(1, 500):
        frames = spec.num_frames(num_samples)
        assert checked_length(frames, num_samples, spec) == num_samples
        longest = checked_length(frames, None, spec)
        assert longest >= num_samples
        assert spec.num_frames(longest) == frames < spec.num_frames(longest + 1)


@pytest.mark.parametrize(("frames", "num_samples"), [(3, 0), (3, -8), (3, 16), (3, 25)])
def test_frames_must_be_just_enough_for_the_samples(frames, num_samples):
    """Too few or too many would be another utterance."""
    with pytest.raises(CodesError, match="samples"):
        checked_length(frames, num_samples, tiny_spec())


@pytest.mark.parametrize(
    "scales",
    [
        None,
        np.array([0.5], np.float32),
        np.array([0.5, 0.5, 0.5], np.float32),
        np.array([0.5, np.nan], np.float32),
        np.array([0.5, 1e300]),
        np.array([0.5, 0.0], np.float32),
        np.array([0.5, -1.0], np.float32),
        np.array([[0.5, 0.5]], np.float32),
        np.array([1, 1]),
        [0.5, 0.5],
    ],
    ids=["none", "few", "many", "nan", "infinite", "zero", "negative", "batch", "integers", "list"],
)
def test_scales_are_one_positive_number_for_each_segment(scales):
    """160 samples are two segments of this codec: the last 8 samples are in both."""
    spec = tiny_spec("segmented")
    loudness = checked_loudness(np.array([0.5, 2.0]), 160, spec)
    assert loudness.tolist() == [[0.5, 2.0]]
    with pytest.raises(CodesError, match="scales"):
        checked_loudness(scales, 160, spec)


def test_a_codec_without_scales_takes_none():
    """They would say that these are codes of another codec."""
    assert checked_loudness(None, 24, tiny_spec()) is None
    with pytest.raises(CodesError, match="has no scales"):
        checked_loudness(np.ones(1, np.float32), 24, tiny_spec())
