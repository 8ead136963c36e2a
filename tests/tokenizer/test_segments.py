"""Codecs with segments: each is coded on its own, and cross-fades into the next."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_codec, tiny_spec
from tests.tokenizer.streaming import noise
from tokenizer import CodesError, Encoded
from tokenizer.segments import cross_fade, cut, frames_by_segment, normalize

LENGTH, STRIDE = 160, 152


@pytest.fixture(scope="module")
def codec():
    """Stereo, segments of 160 samples, 8 of them shared with the next."""
    return make_codec(tiny_spec("segmented"))


@given(num_samples=st.integers(1, 700), blocks=st.lists(st.integers(1, 300), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_segments_start_at_every_stride(num_samples, blocks):
    """However the samples arrive: one segment at each multiple of the stride, as long as there are samples."""
    x = noise(1, 2, num_samples)
    cuts = [size for size in blocks if sum(blocks[: blocks.index(size) + 1]) < num_samples]
    chunks = x.split([*cuts, num_samples - sum(cuts)], dim=-1) if sum(cuts) < num_samples else [x]
    expected = [x[..., start : start + LENGTH] for start in range(0, num_samples, STRIDE)]
    pieces = list(cut(chunks, LENGTH, STRIDE))
    assert len(pieces) == len(expected)
    assert all(torch.equal(piece, wanted) for piece, wanted in zip(pieces, expected, strict=True))


@given(num_samples=st.integers(1, 700))
@settings(max_examples=25, deadline=None)
def test_decoded_audio_is_as_long_as_the_original(codec, num_samples):
    """Any length, also those that end just after a segment has started."""
    waveform = 0.3 * noise(2, num_samples)
    encoded = codec.encode(waveform)
    assert encoded.codes.shape == (1, 4, sum(frames_by_segment(codec.spec, num_samples)))
    assert encoded.scales.shape == (1, codec.spec.num_segments(num_samples))
    assert codec.decode(encoded).shape == (1, 2, num_samples)


@given(num_samples=st.integers(1, 700), block=st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_blocks_give_the_codes_of_the_whole(codec, num_samples, block):
    """A waveform that arrives in blocks, and a decoder that answers in pieces: constant memory, same result."""
    waveform = 0.3 * noise(2, num_samples)
    whole, in_blocks = codec.encode(waveform), codec.encode_blocks(waveform.split(block, dim=-1))
    assert torch.equal(in_blocks.codes, whole.codes)
    assert torch.equal(in_blocks.scales, whole.scales)
    assert torch.equal(torch.cat(list(codec.decode_blocks(whole)), dim=-1), codec.decode(whole))


def test_batches_are_as_alone(codec):
    """Segments of neighbours do not touch, whatever the lengths."""
    items = [0.3 * noise(2, length) for length in (700, 1, 152, 161, 700)]
    for item, encoded in zip(items, codec.encode_batch(items), strict=True):
        alone = codec.encode(item)
        assert torch.equal(encoded.codes, alone.codes)
        assert torch.equal(encoded.scales, alone.scales)
    together = codec.encode(torch.stack([items[0], items[4]]))
    assert torch.equal(together.codes[1:], codec.encode(items[4]).codes)


def test_a_segment_of_the_file_decodes_alone(codec):
    """Nothing crosses a segment's border but the fade: its middle is that of the segment decoded on its own."""
    waveform = 0.3 * noise(2, 3 * STRIDE)
    encoded = codec.encode(waveform)
    codes = encoded.codes[..., 20:41]  # and a frame of the segment that starts in its last eight samples
    alone = codec.decode(Encoded(codes, encoded.scales[:, 1:3], LENGTH))
    torch.testing.assert_close(
        alone[..., 8 : LENGTH - 8], codec.decode(encoded)[..., STRIDE + 8 : STRIDE + LENGTH - 8], atol=1e-5, rtol=0
    )


def test_fading_keeps_what_all_segments_agree_on():
    """The weights add up to one: where every segment says the same, so does the result."""
    whole = noise(1, 2, 500)
    pieces = list(cut([whole], LENGTH, STRIDE))
    torch.testing.assert_close(torch.cat(list(cross_fade(pieces, STRIDE)), -1), whole, atol=1e-6, rtol=1e-6)


def test_loudness_is_stored_beside_the_codes(codec):
    """A quieter file has the same codes and smaller scales; silence has codes, too."""
    waveform = 0.3 * noise(2, 400)
    loud, quiet = codec.encode(waveform), codec.encode(waveform / 8)
    assert torch.equal(loud.codes, quiet.codes)
    torch.testing.assert_close(quiet.scales, loud.scales / 8)
    assert codec.decode(codec.encode(torch.zeros(2, 400))).abs().max() < 1e-6
    segment, loudness = normalize(torch.full((1, 2, 10), 0.5))
    torch.testing.assert_close(segment * loudness, torch.full((1, 2, 10), 0.5))


def test_scales_are_checked(codec):
    """Missing, too many, negative: nothing is decoded at a wrong loudness."""
    good = codec.encode(0.3 * noise(2, 400))
    for scales, reason in (
        (None, "needs scales"),
        (good.scales[:, :1], r"scales must be \[1, 3\]"),
        (-good.scales, "positive"),
        (good.scales * torch.nan, "positive and finite"),
    ):
        with pytest.raises(CodesError, match=reason):
            codec.decode(dataclasses.replace(good, scales=scales))


def test_there_are_no_streams(codec):
    """The error says what to use."""
    for call in (codec.encode_state, codec.decode_state):
        with pytest.raises(ValueError, match="use encode and decode"):
            call()
    assert not codec.streamable
    assert codec.algorithmic_latency_s == pytest.approx(160 / 24000)
