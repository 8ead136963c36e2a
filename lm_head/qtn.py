"""The .qtn container: a header and independent blocks to bytes and back. docs/qtn.md is its specification."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenizer.errors import BitstreamError

MAGIC = b"QTN\x01"  # the last byte is the version
CODEC_DIGITS, MODEL_DIGITS = 12, 8  # hex digits of the sha256 that the header keeps
MAX_CODEBOOKS = 255
MAX_FRAMES_PER_BLOCK = 4096
MAX_HOP_LENGTH = 65536  # bounds what num_samples may claim
_MAX_COUNT = 2**53
_MAX_VARINT_BYTES = 8
_MODEL_FLAG, _SCALES_FLAG, _UNUSED_FLAGS = 0x10, 0x20, 0xC0
_MIN_BLOCK_BYTES = 5  # a length of one byte and a CRC

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class QtnHeader:
    """What holds for a whole stream.

    Raises:
        ValueError: on construction, a field that the format cannot hold.
    """

    codec: str  # first hex digits of the codec's sha256
    model: str | None  # first hex digits of the entropy model's identity; None where every block is packed
    num_codebooks: int
    codebook_size: int  # a power of two
    frames_per_block: int
    num_frames: int
    num_samples: int  # at the codec's rate
    scales: tuple[float, ...] | None = None  # float32 loudness of each segment, of codecs that have it

    def __post_init__(self) -> None:
        _require_hex("codec", self.codec, CODEC_DIGITS)
        if self.model is not None:
            _require_hex("model", self.model, MODEL_DIGITS)
        _require_between("num_codebooks", self.num_codebooks, 1, MAX_CODEBOOKS)
        _require_between("frames_per_block", self.frames_per_block, 1, MAX_FRAMES_PER_BLOCK)
        _require_between("num_frames", self.num_frames, 0, _MAX_COUNT)
        _require_between("num_samples", self.num_samples, 0, min(_MAX_COUNT, self.num_frames * MAX_HOP_LENGTH))
        if self.codebook_size not in {2**bits for bits in range(1, 17)}:
            raise ValueError(f"codebook_size {self.codebook_size} is not a power of two from 2 to 65536")
        if self.scales is not None and not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError("scales must be positive and finite")

    @property
    def bits_per_code(self) -> int:
        """Bits of a packed code."""
        return self.codebook_size.bit_length() - 1

    @property
    def num_blocks(self) -> int:
        """Blocks of the stream; all but the last have `frames_per_block` frames."""
        return -(-self.num_frames // self.frames_per_block)

    @property
    def packed_bytes(self) -> int:
        """Bytes that all codes take bit-packed, and nothing else: what savings are measured against."""
        return -(-self.num_frames * self.num_codebooks * self.bits_per_code // 8)

    def block_frames(self, index: int) -> int:
        """Frames of a block."""
        return min(self.frames_per_block, self.num_frames - index * self.frames_per_block)

    def block_packed_bytes(self, index: int) -> int:
        """Bytes of a block's payload when it is packed."""
        return -(-self.block_frames(index) * self.num_codebooks * self.bits_per_code // 8)

    def crc(self) -> int:
        """CRC32 of the header; it grows slower to compute with the number of scales, so ask once a stream."""
        return int.from_bytes(self.to_bytes()[-4:], "little")

    def to_bytes(self) -> bytes:
        """The header as it is stored, its CRC included."""
        flags = (_MODEL_FLAG if self.model is not None else 0) | (_SCALES_FLAG if self.scales is not None else 0)
        fields = [MAGIC, bytes([flags | (self.bits_per_code - 1)]), bytes.fromhex(self.codec)]
        if self.model is not None:
            fields.append(bytes.fromhex(self.model))
        fields.append(bytes([self.num_codebooks]))
        fields += [_varint(count) for count in (self.frames_per_block, self.num_frames, self.num_samples)]
        if self.scales is not None:
            fields += [_varint(len(self.scales)), struct.pack(f"<{len(self.scales)}f", *self.scales)]
        content = b"".join(fields)
        return content + struct.pack("<I", zlib.crc32(content))


class Block(NamedTuple):
    """One stretch of frames as it is stored."""

    payload: bytes
    coded: bool  # by the entropy coder; otherwise bit-packed
    crc: int


def write_qtn(header: QtnHeader, blocks: Sequence[Block]) -> bytes:
    """A stream of `header.num_blocks` blocks: packed ones are as long as the header says, coded ones shorter."""
    pieces = [header.to_bytes()]
    for block in blocks:
        length = _varint(1 + len(block.payload) if block.coded else 0)
        pieces += [length, struct.pack("<I", block.crc), block.payload]
    return b"".join(pieces)


def read_qtn(data: bytes | memoryview) -> tuple[QtnHeader, list[Block]]:
    """Header and blocks of a whole stream. Nothing is decoded, and nothing allocated that the bytes do not fill.

    Raises:
        BitstreamError: not a .qtn, of another version, cut off, damaged, or with bytes behind its end.
    """
    cursor = _Cursor(data)
    header = _read_header(cursor)
    if header.num_blocks * _MIN_BLOCK_BYTES > cursor.left:
        raise BitstreamError(f".qtn: cut off: {header.num_blocks} blocks do not fit into {cursor.left} bytes")
    blocks = [_read_block(cursor, header, index) for index in range(header.num_blocks)]
    if cursor.left:
        raise BitstreamError(f".qtn: damaged: {cursor.left} bytes behind the last block")
    return header, blocks


def block_crc(header_crc: int, index: int, codes: Codes) -> int:
    """CRC32 of a block's codes, their place and their stream: blocks that were moved are found as well.

    Args:
        header_crc: `QtnHeader.crc` of the stream.
        index: of the block.
        codes: [K, T] of the block.
    """
    place = struct.pack("<II", header_crc, index)
    return zlib.crc32(frame_major(codes).astype("<u2").tobytes(), zlib.crc32(place))


def frame_major(codes: Codes) -> Codes:
    """Codes [K, T] in the order in which they are stored: all levels of a frame, then the next frame."""
    return np.ascontiguousarray(codes.T, np.uint16).reshape(-1)


class _Cursor:
    """Bytes that are read from front to back, never beyond their end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self.at = memoryview(data).cast("B"), 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.left:
            raise BitstreamError(f".qtn: cut off after {len(self._data)} bytes")
        self.at += num_bytes
        return bytes(self._data[self.at - num_bytes : self.at])

    def byte(self) -> int:
        return self.take(1)[0]

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def varint(self) -> int:
        """Seven bits a byte, lowest first; the highest bit says that another byte follows."""
        value = 0
        for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise BitstreamError(".qtn: damaged: a count in more bytes than it needs")
                return value
        raise BitstreamError(f".qtn: damaged: a count in more than {_MAX_VARINT_BYTES} bytes")

    def taken(self) -> bytes:
        return bytes(self._data[: self.at])


def _read_header(cursor: _Cursor) -> QtnHeader:
    magic = cursor.take(min(len(MAGIC), cursor.left))
    if magic[:3] != MAGIC[: len(magic)][:3]:
        raise BitstreamError("not a .qtn stream: it does not begin with QTN")
    if magic[3:] != MAGIC[3:]:
        raise BitstreamError(
            f".qtn: version {magic[3]}, this software reads {MAGIC[3]}" if magic[3:] else ".qtn: cut off"
        )
    flags = cursor.byte()
    fields: dict[str, Any] = {"codec": cursor.take(CODEC_DIGITS // 2).hex()}
    fields["model"] = cursor.take(MODEL_DIGITS // 2).hex() if flags & _MODEL_FLAG else None
    fields["num_codebooks"] = cursor.byte()
    fields |= {name: cursor.varint() for name in ("frames_per_block", "num_frames", "num_samples")}
    if flags & _SCALES_FLAG:
        num_scales = cursor.varint()
        fields["scales"] = struct.unpack(f"<{num_scales}f", cursor.take(4 * num_scales))
    content = cursor.taken()
    if cursor.uint32() != zlib.crc32(content):
        raise BitstreamError(".qtn: damaged: the header does not match its CRC")
    if flags & _UNUSED_FLAGS:
        raise BitstreamError(f".qtn: unknown flags {flags & _UNUSED_FLAGS:#04x}")
    try:
        return QtnHeader(codebook_size=2 ** ((flags & 0x0F) + 1), **fields)
    except ValueError as error:
        raise BitstreamError(f".qtn: {error}") from error


def _read_block(cursor: _Cursor, header: QtnHeader, index: int) -> Block:
    length, crc, packed = cursor.varint(), cursor.uint32(), header.block_packed_bytes(index)
    if length > packed:
        raise BitstreamError(f".qtn: damaged: block {index} is {length - 1} bytes, packed it would have {packed}")
    if length and header.model is None:
        raise BitstreamError(f".qtn: damaged: block {index} is coded, and the header names no model")
    return Block(cursor.take(length - 1 if length else packed), bool(length), crc)


def _varint(value: int) -> bytes:
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _require_hex(name: str, value: str, digits: int) -> None:
    if len(value) != digits or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{name} must be {digits} hex digits, not {value!r}")


def _require_between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")
