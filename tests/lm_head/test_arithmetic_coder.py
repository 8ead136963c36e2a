"""The original's arithmetic coder: its CDFs, its bytes, and an error where a stream is none."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_head.arithmetic_coder import (
    PRECISION,
    ArithmeticDecoder,
    ArithmeticEncoder,
    BitReader,
    BitWriter,
    fewest_bits,
    original_cdfs,
)
from tests.tokenizer.reference_models import import_encodec
from tokenizer import BitstreamError, CheckpointError, CodesError

import_encodec()
from encodec.quantization import ac  # noqa: E402 - importable only now

SHARPNESS = {"even": 0.0, "soft": 1.0, "sharp": 4.0, "one of all": 100.0}


def source(num_symbols, codebook_size, sharpness, seed=0):
    """Symbols [N] and the CDFs [N, V] of the distributions that they are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (sharpness * torch.randn(num_symbols, codebook_size, generator=generator)).softmax(dim=-1)
    symbols = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return symbols.tolist(), original_cdfs(probabilities)


def encode(symbols, cdfs):
    encoder = ArithmeticEncoder()
    for symbol, cdf in zip(symbols, cdfs, strict=True):
        encoder.push(symbol, cdf)
    return encoder.finish()


def decode(data, cdfs, start=0):
    decoder = ArithmeticDecoder(BitReader(data, start))
    symbols = [decoder.pull(cdf) for cdf in cdfs]
    decoder.finish()
    return symbols


def originally_encoded(symbols, cdfs):
    stream = io.BytesIO()
    coder = ac.ArithmeticCoder(stream)
    for symbol, cdf in zip(symbols, cdfs, strict=True):
        coder.push(symbol, torch.from_numpy(cdf))
    coder.flush()
    return stream.getvalue()


def originally_decoded(data, cdfs):
    decoder = ac.ArithmeticDecoder(io.BytesIO(data))
    return [decoder.pull(torch.from_numpy(cdf)) for cdf in cdfs]


@pytest.mark.parametrize("sharpness", SHARPNESS.values(), ids=SHARPNESS)
@pytest.mark.parametrize("codebook_size", [2, 16, 1000, 1024])
def test_cdfs_are_those_of_the_original(sharpness, codebook_size):
    """Every integer of them, from even distributions to certainty."""
    logits = torch.randn(50, codebook_size, generator=torch.Generator().manual_seed(1))
    probabilities = (sharpness * logits).softmax(dim=-1)
    expected = torch.stack([ac.build_stable_quantized_cdf(pdf, PRECISION, check=False) for pdf in probabilities])
    np.testing.assert_array_equal(original_cdfs(probabilities), expected)
    np.testing.assert_array_equal(original_cdfs(probabilities.T.contiguous().T), expected)


@given(
    st.integers(1, 60),
    st.sampled_from([2, 5, 1024]),
    st.sampled_from(list(SHARPNESS.values())),
    st.integers(0, 2**32),
)
def test_streams_are_those_of_the_original(num_symbols, codebook_size, sharpness, seed):
    """The same bytes, and each reads what the other wrote; where the original stops, ours does, too."""
    symbols, cdfs = source(num_symbols, codebook_size, sharpness, seed)
    try:
        expected = originally_encoded(symbols, cdfs)
    except AssertionError:
        with pytest.raises(CodesError, match="cannot code"):
            encode(symbols, cdfs)
        return
    data = encode(symbols, cdfs)
    assert data == expected
    assert decode(data, cdfs) == symbols
    assert originally_decoded(data, cdfs) == symbols


@pytest.mark.parametrize("symbol", [0, 1, 2, 1023])
def test_the_least_likely_symbols_can_be_coded(symbol):
    """First, second, third or last, all others being certain: some 23 bits each, and the original reads them."""
    logits = torch.full((20, 1024), -200.0)
    logits[:, 5] = 0.0
    cdfs = original_cdfs(logits.softmax(dim=-1))
    data = encode([symbol] * 20, cdfs)
    assert 20 * 22 <= 8 * len(data) <= 20 * 24
    assert decode(data, cdfs) == originally_decoded(data, cdfs) == [symbol] * 20


def test_an_interval_may_stay_astride_of_the_middle_for_long():
    """No leading bit is decided for 2,000 bits: the ends grow as long, and the stream is read all the same."""
    middle = 2 ** (PRECISION - 1)
    cdfs = np.array([[middle - 4, middle + 4, 2**PRECISION]] * 100)
    symbols = [1] * 99 + [2]
    data = encode(symbols, cdfs)
    assert 8 * len(data) > 2000
    assert decode(data, cdfs) == originally_decoded(data, cdfs) == symbols


def test_a_stream_ends_at_its_last_byte():
    """Nothing behind it is read: streams can follow each other in a file, and each starts with a byte."""
    one, other = source(40, 16, 1.0, seed=1), source(30, 16, 1.0, seed=2)
    first, second = encode(*one), encode(*other)
    bits = BitReader(b"??" + first + second, start=2)
    for symbols, cdfs in (one, other):
        decoder = ArithmeticDecoder(bits)
        assert [decoder.pull(cdf) for cdf in cdfs] == symbols
        decoder.finish()
    assert bits.position == 8 * len(b"??" + first + second)
    assert encode([], []) == b""
    assert decode(b"", []) == []


def test_every_truncation_is_noticed():
    """Every byte of a stream is needed for its last symbol."""
    symbols, cdfs = source(60, 1024, 1.0)
    data = encode(symbols, cdfs)
    for length in range(len(data)):
        with pytest.raises(BitstreamError, match="ends before its codes do"):
            decode(data[:length], cdfs)


def test_damage_is_noticed_at_the_end_of_a_stream_if_not_before():
    """Of all single bits that flip, none goes unnoticed here; by chance one in some ten thousand streams would."""
    symbols, cdfs = source(150, 1024, 1.0)
    data = encode(symbols, cdfs)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(BitstreamError):
            decode(bytes(damaged), cdfs)


def test_other_probabilities_are_noticed():
    """A stream read with CDFs that differ by one in one place: the end does not fit."""
    symbols, cdfs = source(300, 1024, 1.0)
    data = encode(symbols, cdfs)
    others = cdfs.copy()
    others[150, symbols[150] :] -= 1
    with pytest.raises(BitstreamError, match="coded with another language model, machine or version of torch"):
        decode(data, others)


def test_what_no_encoder_writes_is_refused():
    """A number beyond the last range, and bits behind the stream that are not 0."""
    with pytest.raises(BitstreamError, match="code that is none"):
        decode(b"\xff\xff\xff", np.array([[2**23, 2**PRECISION - 2**19]]))
    for num_symbols in range(1, 9):
        symbols, cdfs = source(num_symbols, 16, 1.0)
        data, bits = encode(symbols, cdfs), BitReader(encode(symbols, cdfs))
        decoder = ArithmeticDecoder(bits)
        assert [decoder.pull(cdf) for cdf in cdfs] == symbols
        for bit in range(bits.position, 8 * len(data)):
            damaged = data[:-1] + bytes([data[-1] | 1 << bit % 8])
            with pytest.raises(BitstreamError, match="does not end as its codes do"):
                decode(damaged, cdfs)


def test_gaps_between_ranges_are_refused():
    """The original finds no symbol there either."""
    cdf = np.arange(1, 2**16 + 1, dtype=np.int64) * 2 ** (PRECISION - 16)
    first = np.array([2**PRECISION - 2**PRECISION // 3, 2**PRECISION])  # leaves two thirds, doubled: gaps
    refused = 0
    for value in range(2**12):
        data = (value * 4093 % 2**24).to_bytes(3, "little") + bytes(8)
        try:
            originally_decoded(data, [first, cdf])
        except RuntimeError:
            refused += 1
            decoder = ArithmeticDecoder(BitReader(data))
            with pytest.raises(BitstreamError, match="code that is none"):
                [decoder.pull(row) for row in (first, cdf)]
        else:
            decoder = ArithmeticDecoder(BitReader(data))
            assert [decoder.pull(row) for row in (first, cdf)] == originally_decoded(data, [first, cdf])
    assert refused > 0


@pytest.mark.parametrize("codebook_size", [256, 1024])
def test_no_stream_is_shorter_than_the_fewest_bits(codebook_size):
    """However likely the symbols, some thousands of them take a bit: the bound that headers are measured by."""
    certain = torch.zeros(1, codebook_size)
    certain[0, 3] = 1.0
    cdf = original_cdfs(certain)[0]
    data = encode([3] * 200_000, [cdf] * 200_000)
    bound = fewest_bits(200_000, codebook_size)
    assert 0 < bound <= 8 * len(data) <= bound + 40
    assert fewest_bits(0, codebook_size) == 0


def test_rounding_may_take_a_cdf_beyond_its_total():
    """Certain of the last symbol, the original's floats add up to one too many: coded all the same where there is room.

    Where there is none, at the start of a stream for one, the original stops, and so does ours, with a typed error.
    """
    cdf = np.array([3, 2**PRECISION + 1])
    symbols = [0, 1, 1]
    data = encode(symbols, [cdf] * 3)
    assert data == originally_encoded(symbols, [cdf] * 3)
    assert decode(data, [cdf] * 3) == originally_decoded(data, [cdf] * 3) == symbols
    with pytest.raises(AssertionError):
        originally_encoded([1], [cdf])
    with pytest.raises(CodesError, match="cannot code"):
        encode([1], [cdf])


@pytest.mark.parametrize("worthless", [torch.nan, torch.inf])
def test_probabilities_that_are_none_are_refused(worthless):
    """From a model that overflows: an error, never a stream that nobody can read."""
    probabilities = torch.full((2, 16), 1 / 16)
    probabilities[1, 7] = worthless
    with pytest.raises(CheckpointError, match="not finite"):
        original_cdfs(probabilities)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**40 - 1)), max_size=20))
def test_bits_are_read_as_they_were_written(pieces):
    """Any numbers of bits at a time, none included, filling bytes from their lowest bit."""
    writer, text = BitWriter(), ""
    for count, value in pieces:
        low_bits = value & (2**count - 1)
        writer.write(low_bits, count)
        text += f"{low_bits:0{count}b}" if count else ""
    data = writer.finish()
    assert data == np.packbits(np.array([int(bit) for bit in text], np.uint8), bitorder="little").tobytes()
    bits = BitReader(data)
    assert [bits.read(count) for count, _ in pieces] == [value & (2**count - 1) for count, value in pieces]
