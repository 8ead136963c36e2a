"""Codes as msgpack, checked before msgpack makes anything of them.

A list of msgpack says how long it will be, and the parser takes memory for it before it has seen an item; lists in
lists take it a thousand times. So only scalars, and lists that were seen to hold nothing but integers, get to the
parser. A level is such a list, or the bytes of uint16 in little-endian order, which is smaller and ten times faster.
"""

from __future__ import annotations

import re
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from pipelines.serving.codes_body import MAX_SCALES, CodesBody, CodesLimits, stacked_levels, whole_numbers
from pipelines.serving.service_errors import bad_request, invalid_argument
from tokenizer import CodesError

_MAX_KEYS = 32
_MAX_CHARS = 1000  # of a text
_WHOLE = "codes are K lists of T whole numbers, or K byte strings of uint16"
# fixint, then (u)int of 8, 16, 32 and 64 bits. Source: https://github.com/msgpack/msgpack/blob/master/spec.md
_INTEGER = rb"(?:[\x00-\x7f\xe0-\xff]|[\xcc\xd0].|[\xcd\xd1]..|[\xce\xd2].{4}|[\xcf\xd3].{8})"
_BYTES = (0xC4, 0xC5, 0xC6)
_SCALARS = re.compile(rb"[\x00-\x7f\xa0-\xc0\xc2\xc3\xca-\xd3\xd9-\xdb\xe0-\xff]")  # numbers, text, nil, bool


def read_msgpack_codes(body: bytes, limits: CodesLimits) -> CodesBody:
    """Read a map with `codes` and options.

    Raises:
        RequestError: not msgpack, cut short, not such a map, or too long.
        CodesError: codes that are not integers, K levels of T.
    """
    try:
        return _MapReader(body, limits).read()
    except (msgpack.UnpackException, ValueError) as error:  # ValueError: types, UTF-8, limits of the parser
        raise bad_request(f"the body is not msgpack, or cut short: {str(error) or type(error).__name__}") from error


def write_msgpack_codes(codes: NDArray[np.integer], fields: dict[str, Any]) -> bytes:
    """Fields, and codes [K, T] as K byte strings of uint16."""
    packed: bytes = msgpack.packb({**fields, "codes": [level.astype("<u2").tobytes() for level in codes]})
    return packed


class _MapReader:
    """Goes through the bytes of one map."""

    def __init__(self, body: bytes, limits: CodesLimits) -> None:
        self._body, self._limits = body, limits
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=max(1, len(body)),
            max_str_len=_MAX_CHARS,
            max_bin_len=len(body),
            max_array_len=max(limits.max_frames, MAX_SCALES),
            max_map_len=0,
            max_ext_len=0,
        )
        self._unpacker.feed(body)

    def read(self) -> CodesBody:
        codes: NDArray[np.integer] | None = None
        options: dict[str, Any] = {}
        num_keys = self._unpacker.read_map_header()
        if num_keys > _MAX_KEYS:
            raise bad_request(f"the msgpack map has more than {_MAX_KEYS} keys")
        for _ in range(num_keys):
            key = self._scalar()
            if not isinstance(key, str):
                raise bad_request("keys of the msgpack map are text")
            if key in options or (key == "codes" and codes is not None):
                raise bad_request(f"the key {key[:40]!r} stands twice in the msgpack map")
            if key == "codes":
                codes = self._codes()
            else:
                options[key] = self._option(key)
        if self._unpacker.tell() != len(self._body):
            raise ValueError(f"something follows the map, at byte {self._unpacker.tell()}")
        if codes is None:
            raise invalid_argument("codes: a list of levels is needed")
        return CodesBody(codes, options)

    def _codes(self) -> NDArray[np.integer]:
        if not self._is_list():
            raise CodesError(_WHOLE)
        num_levels = self._unpacker.read_array_header()
        self._limits.check_levels(num_levels)
        return stacked_levels([self._level(number) for number in range(num_levels)], self._limits)

    def _level(self, number: int) -> NDArray[np.integer]:
        if self._next_byte() in _BYTES:
            stored = self._unpacker.unpack()
            if len(stored) % 2:
                raise CodesError(f"level {number} has {len(stored)} bytes: uint16 are two each")
            return np.frombuffer(stored, dtype="<u2")
        if not self._is_list():
            raise CodesError(_WHOLE)
        count, start = self._list_header()
        self._limits.check_frames(count)
        if not re.compile(_INTEGER + b"{%d}+" % count, re.DOTALL).match(self._body, start):
            raise CodesError(f"level {number} does not hold {count} whole numbers, as it says")
        return whole_numbers(self._unpacker.unpack(), number)

    def _option(self, key: str) -> Any:
        if not self._is_list():
            return self._scalar()
        count = self._unpacker.read_array_header()
        if count > MAX_SCALES:
            raise invalid_argument(f"{key[:40]}: a list has at most {MAX_SCALES} numbers here, not {count}")
        return [self._scalar() for _ in range(count)]

    def _scalar(self) -> Any:
        if not _SCALARS.match(self._body, self._unpacker.tell()):
            raise ValueError(f"no number, text or truth value at byte {self._unpacker.tell()}")
        return self._unpacker.unpack()

    def _is_list(self) -> bool:
        return 0x90 <= self._next_byte() <= 0x9F or self._next_byte() in (0xDC, 0xDD)

    def _list_header(self) -> tuple[int, int]:
        """Items of the list that follows, and where the first one stands."""
        at, kind = self._unpacker.tell(), self._next_byte()
        width = {0xDC: 2, 0xDD: 4}.get(kind, 0)
        count = int.from_bytes(self._body[at + 1 : at + 1 + width], "big") if width else kind & 0x0F
        return count, at + 1 + width

    def _next_byte(self) -> int:
        at: int = self._unpacker.tell()
        if at >= len(self._body):
            raise ValueError(f"it ends at byte {at}")
        return self._body[at]
