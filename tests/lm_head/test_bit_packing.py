"""Values of some bits each, without gaps between them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_head import bit_packing
from lm_head.bit_packing import pack_bits, packed_size, unpack_bits
from tests.tokenizer.reference_models import import_encodec
from tokenizer import BitstreamError, CodesError

WIDTHS = range(1, 17)


def random_values(width, count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**width, count, dtype=np.uint16)


@given(st.integers(1, 16), st.data())
def test_unpacking_inverts_packing(width, data):
    """Any values of any width come back, in exactly as many bytes as their bits fill."""
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), np.int64)
    packed = pack_bits(values, width)
    assert len(packed) == packed_size(width, len(values)) == (width * len(values) + 7) // 8
    np.testing.assert_array_equal(unpack_bits(packed, width, len(values)), values)


def test_the_first_value_takes_the_lowest_bits():
    """The format, frozen: 10 bits of 0x3FF, then 0x155, then 0x201, little end first."""
    assert pack_bits(np.array([0x3FF, 0x155, 0x201]), 10) == bytes.fromhex("ff571520")
    assert pack_bits(np.array([1, 0, 1, 1]), 1) == b"\x0d"
    assert pack_bits(np.array([0x1234]), 16) == b"\x34\x12"
    assert pack_bits(np.array([], np.int64), 10) == b""


@pytest.mark.parametrize("width", WIDTHS)
def test_bytes_are_those_of_the_encodec_package(width):
    """Its packer pushes one value at a time; the bytes are the same."""
    import_encodec()
    from encodec.binary import BitPacker

    values, stream = random_values(width, 37), io.BytesIO()
    packer = BitPacker(width, stream)
    for value in values.tolist():
        packer.push(value)
    packer.flush()
    assert pack_bits(values, width) == stream.getvalue()


@pytest.mark.parametrize("width", [3, 10, 16])
def test_large_arrays_are_packed_piece_by_piece_without_a_seam(monkeypatch, width):
    """The pieces that bound the memory leave no trace in the bytes."""
    values = random_values(width, 1003)
    whole = pack_bits(values, width)
    monkeypatch.setattr(bit_packing, "_AT_ONCE", 64)
    assert pack_bits(values, width) == whole
    np.testing.assert_array_equal(unpack_bits(whole, width, 1003), values)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_truncation_and_every_added_byte_is_noticed(width):
    """Neither fewer nor more bytes than the values fill."""
    packed = pack_bits(random_values(width, 11), width)
    for data in [packed[:length] for length in range(len(packed))] + [packed + b"\0"]:
        with pytest.raises(BitstreamError, match=f"are {len(packed)} bytes, there are {len(data)}"):
            unpack_bits(data, width, 11)


@pytest.mark.parametrize("bit", range(4, 8))
def test_bits_behind_the_last_value_must_be_zero(bit):
    """Two values of 10 bits leave 4 bits of the third byte: any that is set is damage."""
    packed = bytearray(pack_bits(np.array([5, 1023]), 10))
    packed[-1] |= 1 << bit
    with pytest.raises(BitstreamError, match="last 4 bits"):
        unpack_bits(packed, 10, 2)


@pytest.mark.parametrize(
    "values", [np.array([1024]), np.array([-1]), np.array([0.5]), np.array([[1]]), np.array([2**16 + 1])], ids=str
)
def test_values_are_checked(values):
    """Out of range, no integers, or not one row: an error, never a value cut to fit."""
    with pytest.raises(CodesError):
        pack_bits(values, 10)


def test_widths_and_counts_are_checked():
    """What can never be right is a wrong argument, not damaged bytes."""
    for width in (0, 17, -1):
        with pytest.raises(ValueError, match="width must be 1 to 16"):
            pack_bits(np.array([0]), width)
        with pytest.raises(ValueError, match="width must be 1 to 16"):
            unpack_bits(b"", width, 0)
    with pytest.raises(ValueError, match="count"):
        unpack_bits(b"", 10, -1)
