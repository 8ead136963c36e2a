"""Codes through the integer language model and the range coder, and back."""

import numpy as np
import pytest
import torch

from lm_head.integer_coder import BLOCKS_AT_ONCE, IntegerCoder
from lm_head.integer_lm import IntegerLM
from tests.lm_head.test_integer_lm import integer_weights
from tokenizer import BitstreamError, CodesError


@pytest.fixture(scope="module")
def coder():
    return IntegerCoder(IntegerLM(integer_weights()))


def some_blocks(lengths, levels=3, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 64, (levels, length)).astype(np.uint16) for length in lengths]


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_blocks_come_back_whatever_their_lengths(coder, levels):
    blocks = some_blocks([30, 1, 7, 30, 45], levels)
    payloads = coder.encode(blocks)
    decoded = coder.decode(payloads, levels, [block.shape[1] for block in blocks])
    assert all(np.array_equal(*pair) for pair in zip(blocks, decoded, strict=True))
    assert all(block.dtype == np.uint16 for block in decoded)


def test_a_block_has_the_same_bytes_in_any_company(coder):
    """More blocks than go together at once, each alone and all of them."""
    blocks = some_blocks([5 + index % 4 for index in range(BLOCKS_AT_ONCE + 3)])
    assert coder.encode(blocks) == [coder.encode([block])[0] for block in blocks]


def test_a_block_decodes_alone_as_in_company(coder):
    blocks = some_blocks([12, 20, 3])
    payloads = coder.encode(blocks)
    assert np.array_equal(coder.decode(payloads[1:2], 3, [20])[0], blocks[1])


def test_bytes_are_what_the_frequencies_say(coder):
    """The range coder spends what the model predicts, and a word or two."""
    block = some_blocks([200], levels=4)[0]
    codes = torch.from_numpy(block.astype(np.int64))[None]
    shifted = torch.nn.functional.pad(codes[..., :-1] + 1, (1, 0))
    frequencies = coder.lm.step(shifted, coder.lm.begin(1, 200)).double()[0]  # [T, K, V]
    share = frequencies.gather(-1, codes[0].T[..., None]).squeeze(-1) / frequencies.sum(dim=-1)
    bits = float(-share.log2().sum())
    assert bits <= len(coder.encode([block])[0]) * 8 <= bits + 72


def test_known_bytes(coder):
    """Frozen: a change of these is a change of the format, and needs another identity."""
    block = (np.arange(4 * 6).reshape(4, 6) * 13 % 64).astype(np.uint16)
    assert coder.encode([block])[0].hex() == KNOWN


KNOWN = "b19927008e8303ff43b8e3af5920005a3e32b970afa725a3c5095310"


def test_only_the_very_bytes_of_codes_are_read(coder):
    """Every flipped bit, missing or surplus byte is an error, or the payload of other codes, which a checksum tells."""
    block = some_blocks([12])[0]
    payload = coder.encode([block])[0]
    places = [(at, bit) for at in range(len(payload)) for bit in range(8)]
    damaged = [payload[:at] + bytes([payload[at] ^ 1 << bit]) + payload[at + 1 :] for at, bit in places]
    damaged += [payload[:at] for at in range(len(payload))]
    damaged += [payload + bytes(4), payload + b"\1\2\3\4", payload + b"\0"]
    errors = 0
    for data in damaged:
        try:
            codes = coder.decode([data], 3, [12])[0]
        except BitstreamError:
            errors += 1
            continue
        assert not np.array_equal(codes, block)
        assert coder.encode([codes])[0] == data
    assert errors > 0.95 * len(damaged)


def test_wrong_blocks_are_refused(coder):
    with pytest.raises(CodesError, match="levels"):
        coder.encode(some_blocks([4], levels=5))
    with pytest.raises(CodesError, match="levels"):
        coder.encode([*some_blocks([4], levels=2), *some_blocks([4], levels=3)])
    with pytest.raises(CodesError, match="0 to 63"):
        coder.encode([np.full((2, 3), 64, np.uint16)])
    with pytest.raises(CodesError, match="frames"):
        coder.encode([np.zeros((1, coder.max_frames + 1), np.uint16)])
    with pytest.raises(BitstreamError, match="levels"):
        coder.decode([b""], 5, [1])
    with pytest.raises(BitstreamError, match="frames"):
        coder.decode([b""], 1, [coder.max_frames + 1])
