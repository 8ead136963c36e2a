"""Codes as a NumPy file: its header is read here by its grammar, and never by `numpy.load`, so nothing is unpickled.

Source of the format: numpy.lib.format, versions 1 to 3.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.codes_body import CodesBody, CodesLimits
from pipelines.serving.service_errors import bad_request
from tokenizer import CodesError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1024
_HEADER = re.compile(
    rb"\{'descr': *'(?P<type>[^'\\]{1,40})', *'fortran_order': *(?P<order>True|False), *"
    rb"'shape': *\((?P<shape>[\d, ]{0,99})\),? *\} *\n?"
)


def read_npy_codes(body: bytes, limits: CodesLimits) -> CodesBody:
    """Read an array of integers [K, T].

    Raises:
        RequestError: not a NumPy file, cut short, or too long.
        CodesError: other types or shapes.
    """
    header, start = _header(body)
    found = _HEADER.fullmatch(header)
    if found is None:
        raise bad_request("the header of the NumPy file is not one of a plain array")
    stored = found["type"].decode("latin-1")
    if not re.fullmatch(r"[<>|=]?[iu][1248]", stored):
        raise CodesError(f"codes are integers of 1, 2, 4 or 8 bytes, not {stored!r}")
    dtype = np.dtype(stored)
    shape = [int(size) for size in found["shape"].decode().replace(" ", "").split(",") if size]
    if len(shape) != 2:
        raise CodesError(f"codes are [K, T], not {shape}")
    limits.check_levels(shape[0])
    limits.check_frames(shape[1])
    expected = shape[0] * shape[1] * dtype.itemsize
    if len(body) - start != expected:
        raise bad_request(f"a NumPy file of {shape} {stored!r} has {expected} bytes of data, not {len(body) - start}")
    flat = np.frombuffer(body, dtype=dtype, offset=start)
    codes = flat.reshape(shape[::-1]).T if found["order"] == b"True" else flat.reshape(shape)
    return CodesBody(codes.astype(dtype.newbyteorder("=")))


def write_npy_codes(codes: NDArray[np.integer]) -> bytes:
    """Codes [K, T] as a NumPy file of uint16."""
    stream = io.BytesIO()
    np.save(stream, codes.astype("<u2"), allow_pickle=False)
    return stream.getvalue()


def _header(body: bytes) -> tuple[bytes, int]:
    """The header, and where the data begins."""
    width = {1: 2, 2: 4, 3: 4}.get(body[6], 0) if len(body) > 12 and body.startswith(_MAGIC) else 0
    if width == 0:
        raise bad_request("the body is not a NumPy file of version 1 to 3")
    length = int.from_bytes(body[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _MAX_HEADER or start > len(body):
        raise bad_request(f"the header of the NumPy file has {length} bytes, at most {_MAX_HEADER} are read")
    return body[8 + width : start], start
