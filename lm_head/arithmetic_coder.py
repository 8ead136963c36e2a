"""The arithmetic coder of the original EnCodec files, bit for bit: symbols and their integer CDFs to bytes, and back.

Source: `encodec.quantization.ac` of the `encodec` package, whose streams these are. It scales CDFs by a float; its
products have fewer than 53 bits, so integers give the same numbers. Where it moves single bits, whole runs move here.

The coder keeps an interval of integers. A symbol narrows it to its share; doubling brings it back to at least
2**PRECISION values; leading bits that both ends have in common are output and dropped.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenizer.errors import BitstreamError, CheckpointError, CodesError

PRECISION = 24  # bits of a CDF's total
_TOTAL = 2**PRECISION
_ROUND_OFF = 1e-8  # probabilities are rounded down to multiples of it
_MIN_RANGE = 2  # of every symbol, however unlikely: less could vanish when scaled
_MOST_ROUNDING = 4  # of a range that holds everything: two steps of float32
_MIRRORED = bytes(int(f"{octet:08b}"[::-1], 2) for octet in range(256))  # streams fill bytes from the lowest bit

Cdf = npt.NDArray[np.int64]


def original_cdfs(probabilities: Tensor) -> Cdf:
    """Probabilities as the integer ranges that the original files are coded with.

    The order of the float operations decides about the last bit, so it is the original's.

    Args:
        probabilities: [K, V] float32, each row adding up to 1.

    Returns:
        [K, V] exclusive upper ends, increasing; the first range starts at 0. Rounding can take the last end beyond
        2**PRECISION by a few: see `ArithmeticEncoder.push`.

    Raises:
        CheckpointError: probabilities that are not finite: the model is of no use.
    """
    if not bool(torch.isfinite(probabilities).all()):
        raise CheckpointError("the language model gives probabilities that are not finite")
    rounded = (probabilities / _ROUND_OFF).floor() * _ROUND_OFF
    uniform = _MIN_RANGE * probabilities.shape[-1] / _TOTAL
    ranges = (((1 - uniform) * _TOTAL) * rounded).floor().long() + _MIN_RANGE
    return np.ascontiguousarray(torch.cumsum(ranges, dim=-1).numpy())


def fewest_bits(count: int, codebook_size: int) -> int:
    """Bits that `count` symbols take at least, since no probability reaches 1."""
    most_likely = min(_TOTAL, _TOTAL - _MIN_RANGE * (codebook_size - 1) + _MOST_ROUNDING)
    return math.floor(count * -math.log2(most_likely / _TOTAL))


class BitWriter:
    """Bits to bytes, each filled from its lowest bit."""

    def __init__(self) -> None:
        self._mirrored = bytearray()
        self._pending = 0  # less than a byte, the first bit as the highest
        self._num_pending = 0

    def write(self, value: int, count: int) -> None:
        """The `count` bits of an integer, the highest first."""
        pending, length = (self._pending << count) | value, self._num_pending + count
        octets, self._num_pending = divmod(length, 8)
        self._mirrored += (pending >> self._num_pending).to_bytes(octets)
        self._pending = pending & _ones(self._num_pending)

    def finish(self) -> bytes:
        """All bytes; unused bits of the last one are 0."""
        self.write(0, -self._num_pending % 8)
        return bytes(self._mirrored.translate(_MIRRORED))


class BitReader:
    """The bits that `BitWriter` wrote, in order.

    Args:
        data: all of the file.
        start: the byte to begin at.
    """

    def __init__(self, data: bytes, start: int = 0) -> None:
        self._data = data
        self.position = 8 * start  # bit

    def read(self, count: int) -> int:
        """The next bits, the first one as the highest.

        Raises:
            BitstreamError: the file ends before.
        """
        first, end = self.position >> 3, self.position + count
        if end > 8 * len(self._data):
            raise _mismatch("ends before its codes do")
        self.position = end
        octets = self._data[first : (end + 7) >> 3].translate(_MIRRORED)
        return (int.from_bytes(octets) >> (-end % 8)) & _ones(count)


class ArithmeticEncoder:
    """Symbols to bytes."""

    def __init__(self) -> None:
        self._low = self._high = 0  # both ends belong to the interval
        self._width = 0  # bits of the ends
        self._bits = BitWriter()

    def push(self, symbol: int, cdf: Cdf) -> None:
        """Code a symbol.

        Args:
            symbol: in [0, V).
            cdf: [V] exclusive upper ends of the symbols' ranges, see `original_cdfs`.

        Raises:
            CodesError: the last symbol, of a CDF that ends beyond 2**PRECISION, where the interval ends with the last
                number of so many bits. The original stops there, too.
        """
        size = self._high - self._low + 1
        shift = max(0, PRECISION + 1 - size.bit_length())
        low, size = self._low << shift, size << shift
        width = self._width + shift
        first, last = _scaled_range(symbol, cdf, size)
        low, high = low + first, low + last
        rest = (low ^ high).bit_length()
        if rest > width:
            raise CodesError("the original's arithmetic coder cannot code these codes with this language model")
        self._bits.write(low >> rest, width - rest)
        self._low, self._high, self._width = low & _ones(rest), high & _ones(rest), rest

    def finish(self) -> bytes:
        """The stream, up to the lower end of the interval that is left; unused bits of the last byte are 0."""
        self._bits.write(self._low, self._width)
        return self._bits.finish()


class ArithmeticDecoder:
    """Bytes to symbols, given the CDFs that they were coded with.

    Args:
        bits: where the stream starts. No bit behind the stream is read.
    """

    def __init__(self, bits: BitReader) -> None:
        self._bits = bits
        self._low = self._high = self._current = 0

    def pull(self, cdf: Cdf) -> int:
        """The next symbol.

        Raises:
            BitstreamError: the stream has ended, or is none that these CDFs can give.
        """
        size = self._high - self._low + 1
        shift = max(0, PRECISION + 1 - size.bit_length())
        low, size = self._low << shift, size << shift
        current = (self._current << shift) | self._bits.read(shift)
        offset = current - low
        # The first range that begins behind offset / size follows the symbol's: c <= offset * TOTAL / size is exact
        # for integers c when rounded down.
        symbol = int(np.searchsorted(cdf, (offset << PRECISION) // size, side="right"))
        if symbol == len(cdf):
            raise _mismatch("has a code that is none")
        first, last = _scaled_range(symbol, cdf, size)
        if not first <= offset <= last:  # rounding leaves gaps between ranges, where no encoder ends up
            raise _mismatch("has a code that is none")
        low, high = low + first, low + last
        rest = (low ^ high).bit_length()
        self._low, self._high, self._current = low & _ones(rest), high & _ones(rest), current & _ones(rest)
        return symbol

    def finish(self) -> None:
        """Check that the stream ends here, as every encoder ends it: with the lower end of the interval, and zeros.

        Raises:
            BitstreamError: it does not, so that some symbol before was not the encoder's, or a bit is wrong.
        """
        padding = self._bits.read(-self._bits.position % 8)
        if self._current != self._low or padding:
            raise _mismatch("does not end as its codes do")


def _scaled_range(symbol: int, cdf: Cdf, size: int) -> tuple[int, int]:
    """First and last value of a symbol's share of an interval of `size` values."""
    start = int(cdf[symbol - 1]) if symbol else 0
    return -(-start * size >> PRECISION), (int(cdf[symbol]) - 1) * size >> PRECISION


def _ones(count: int) -> int:
    return (1 << count) - 1


def _mismatch(what: str) -> BitstreamError:
    return BitstreamError(
        f"the stream {what}: it is cut off or damaged, or was coded with another language model, machine or version of "
        "torch"
    )
