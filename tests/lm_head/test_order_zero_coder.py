"""The baseline of a language model: codes by how often they occurred so far in their block."""

import math

import numpy as np
import pytest

from lm_head import compress, decompress
from lm_head.order_zero_coder import FREQUENCIES_AT_ONCE, INCREMENT, OrderZeroCoder
from tests.lm_head.small_coders import CODEC, predictable_codes, uniform_codes
from tokenizer import BitstreamError, CodesError

CODER = OrderZeroCoder(8, 16)


def counted_bits(block, codebook_size=16):
    """Bits of an ideal coder that counts, code after code."""
    bits = 0.0
    for level in block.tolist():
        counts = [1] * codebook_size
        for code in level:
            bits -= math.log2(counts[code] / sum(counts))
            counts[code] += INCREMENT
    return bits


def test_blocks_come_back_whatever_their_lengths():
    """In order, each on its own: its bytes do not depend on its company."""
    blocks = [predictable_codes(3, frames, seed) for seed, frames in enumerate([1, 200, 7])]
    payloads = CODER.encode(blocks)
    assert payloads == [CODER.encode([block])[0] for block in blocks]
    decoded = CODER.decode(payloads, 3, [1, 200, 7])
    assert all(np.array_equal(*pair) and pair[0].dtype == np.uint16 for pair in zip(decoded, blocks, strict=True))


@pytest.mark.parametrize("codes", [predictable_codes, uniform_codes], ids=["predictable", "uniform"])
def test_bytes_are_what_counting_gives(codes):
    """The entropy of adaptive frequencies, and a word or two."""
    block = codes(4, 600)
    bits = counted_bits(block)
    assert bits <= 8 * len(CODER.encode([block])[0]) <= bits + 72


def test_a_block_may_be_longer_than_what_is_held_at_once():
    """Frequencies go on where the stretch before ended: two stretches and a frame of 1024 codes in 16 levels."""
    frames = 2 * (FREQUENCIES_AT_ONCE // (16 * 1024)) + 1
    block = np.random.default_rng(0).integers(0, 50, (16, frames)).astype(np.uint16)
    coder = OrderZeroCoder(16, 1024)
    payload = coder.encode([block])[0]
    bits = counted_bits(block, 1024)
    assert bits <= 8 * len(payload) <= bits + 72
    assert np.array_equal(coder.decode([payload], 16, [frames])[0], block)


def test_known_bytes():
    """Frozen: figures in documents were measured with them."""
    block = (np.arange(3 * 8).reshape(3, 8) ** 2 % 7).astype(np.uint16)
    assert CODER.encode([block])[0].hex() == KNOWN


KNOWN = "35f8420110a1c9fd8964ea1d"


def test_streams_are_ordinary_ones():
    """The same container, header and checksums as with a language model; what it cannot shrink is packed."""
    for codes in (predictable_codes(4, 500), uniform_codes(4, 500)):
        stream = compress(codes, CODEC, CODER)
        assert np.array_equal(decompress(stream, CODER).codes[0].numpy(), codes)
        assert len(stream) <= len(compress(codes, CODEC))


def test_only_the_very_bytes_of_codes_are_read():
    """Flipped bits and missing or surplus bytes are errors, or the payload of other codes, which a checksum tells."""
    block = predictable_codes(3, 30)
    payload = CODER.encode([block])[0]
    damaged = [payload[:at] + bytes([payload[at] ^ 1 << at % 8]) + payload[at + 1 :] for at in range(len(payload))]
    damaged += [payload[:-1], payload[:-4], payload + bytes(4), payload + b"\1\2\3\4", payload + b"\0"]
    errors = 0
    for data in damaged:
        try:
            codes = CODER.decode([data], 3, [30])[0]
        except BitstreamError:
            errors += 1
            continue
        assert not np.array_equal(codes, block)
        assert CODER.encode([codes])[0] == data
    assert errors > 0


def test_wrong_blocks_are_refused():
    """Levels, codes and frames beyond what it was made for."""
    for block in (np.zeros((9, 1), np.uint16), np.full((1, 1), 16, np.uint16), np.zeros((1, 4097), np.uint16)):
        with pytest.raises(CodesError, match="allowed is"):
            CODER.encode([block])
