"""Codes side by side in as few bits as they need: integers of 1 to 16 bits as bytes, and back.

The first value takes the lowest bits of the first byte, as in the files of the `encodec` package.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenizer.errors import BitstreamError, CodesError

MAX_WIDTH = 16
_AT_ONCE = 2**18  # values, a multiple of 8 so that every piece but the last fills its bytes: bounds the memory


def packed_size(width: int, count: int) -> int:
    """Bytes that `count` values of `width` bits take."""
    return -(-width * count // 8)


def pack_bits(values: npt.NDArray[np.integer], width: int) -> bytes:
    """Integers as bytes; the bits that the last byte has left are 0.

    Args:
        values: [N] integers in [0, 2**width).
        width: bits of each, 1 to 16.

    Raises:
        CodesError: values of another shape or type, or out of range.
        ValueError: another width.
    """
    _require_width(width)
    values = np.asarray(values)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise CodesError(f"values must be integers [N], not {values.dtype} {list(values.shape)}")
    if values.size and (int(values.min()) < 0 or int(values.max()) >= 2**width):
        raise CodesError(f"values range from {values.min()} to {values.max()}, allowed is 0 to {2**width - 1}")
    pieces = (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))
    return b"".join(np.packbits(_bits_of(piece, width), bitorder="little").tobytes() for piece in pieces)


def unpack_bits(data: bytes | bytearray | memoryview, width: int, count: int) -> npt.NDArray[np.uint16]:
    """The inverse of `pack_bits`.

    Args:
        data: exactly the `packed_size(width, count)` bytes.
        width: bits of each value, 1 to 16.
        count: N, at least 0.

    Returns:
        [N] integers in [0, 2**width).

    Raises:
        BitstreamError: too few bytes or too many, or a bit set behind the last value.
        ValueError: another width, or a negative count.
    """
    _require_width(width)
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    packed = np.frombuffer(data, np.uint8)
    if len(packed) != packed_size(width, count):
        raise BitstreamError(
            f"{count} values of {width} bits are {packed_size(width, count)} bytes, there are {len(packed)}"
        )
    padding = 8 * len(packed) - width * count
    if padding and packed[-1] >> (8 - padding):
        raise BitstreamError(f"the last {padding} bits of packed values are not 0: damaged, or of another width")
    values = np.empty(count, np.uint16)
    place = np.uint16(1) << np.arange(width, dtype=np.uint16)
    for start in range(0, count, _AT_ONCE):
        piece = values[start : start + _AT_ONCE]
        first = start // 8 * width
        bits = np.unpackbits(packed[first : first + packed_size(width, len(piece))], bitorder="little")
        np.matmul(bits[: width * len(piece)].reshape(-1, width), place, out=piece)
    return values


def _bits_of(values: npt.NDArray[np.integer], width: int) -> npt.NDArray[np.uint8]:
    """[N] to [N, width], lowest bit first."""
    octets = values.astype("<u2")[:, None].view(np.uint8)  # [N, 2]
    return np.unpackbits(octets, axis=1, count=width, bitorder="little")


def _require_width(width: int) -> None:
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"width must be 1 to {MAX_WIDTH} bits, not {width}")
