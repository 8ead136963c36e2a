"""Bodies of requests: read within their limits, inflated, and turned into codes by their content type."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from functools import partial

from fastapi import Request

from pipelines.serving.arrow_codes import read_arrow_codes
from pipelines.serving.codes_body import CodesBody, CodesLimits
from pipelines.serving.json_codes import read_json_codes
from pipelines.serving.msgpack_codes import read_msgpack_codes
from pipelines.serving.npy_codes import read_npy_codes
from pipelines.serving.service_errors import bad_request, too_large, unsupported_media
from pipelines.serving.service_limits import Exchange

_INLINE_BYTES = 2**16  # read on the event loop: a millisecond at most, and handing it to a thread takes a tenth of that
_INFLATED_AT_ONCE = 2**20


CODES_READERS: dict[str, Callable[[bytes, CodesLimits], CodesBody]] = {
    "application/json": read_json_codes,
    "application/msgpack": read_msgpack_codes,
    "application/x-msgpack": read_msgpack_codes,
    "application/vnd.msgpack": read_msgpack_codes,
    "application/x-npy": read_npy_codes,
    "application/vnd.apache.arrow.stream": read_arrow_codes,
    "application/vnd.apache.arrow.file": read_arrow_codes,
}


def media_type(request: Request) -> str:
    """The content type of a request without its parameters, in small letters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_codes(request: Request, limits: CodesLimits, max_bytes: int) -> CodesBody:
    """What a request to decode says.

    Args:
        request: its body has not been read.
        limits: of codes.
        max_bytes: of the body, inflated.

    Raises:
        RequestError: a content type that nobody reads, a body that is not what it says, or one that is too large.
        CodesError: codes that are none.
        Overloaded: other requests hold too much memory.
    """
    reader = CODES_READERS.get(media_type(request))
    if reader is None:
        raise unsupported_media(f"Content-Type is one of {', '.join(CODES_READERS)}, not {media_type(request)[:60]!r}")
    body, inflate = await read_body(request, max_bytes)
    exchange: Exchange = request.state.exchange

    def parse() -> CodesBody:
        content = body if inflate is None else inflate(body)
        parsed = reader(content, limits)
        exchange.held.add(parsed.codes.nbytes)
        return parsed

    if inflate is None and len(body) <= _INLINE_BYTES:
        return parse()
    return await asyncio.to_thread(parse)


async def read_body(request: Request, max_bytes: int) -> tuple[bytes, Callable[[bytes], bytes] | None]:
    """The body as it came, and what inflates it: to be called in a thread; None where it is not deflated.

    Args:
        request: its size and pace are limited by `RequestLimits`.
        max_bytes: after inflating.

    Raises:
        RequestError: an encoding that nobody reads.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise unsupported_media(f"Content-Encoding is gzip or none, not {encoding[:40]!r}")
    body = b"".join([chunk async for chunk in request.stream()])
    if encoding == "identity":
        return body, None
    return body, partial(_inflated, max_bytes=max_bytes, exchange=request.state.exchange)


def _inflated(body: bytes, *, max_bytes: int, exchange: Exchange) -> bytes:
    """What gzip holds, counted while it grows: a few KiB can become many GiB."""
    pieces: list[bytes] = []
    size, rest = 0, body
    while rest:  # a gzip file may have several members
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            try:
                piece = member.decompress(rest, _INFLATED_AT_ONCE)
            except zlib.error as error:
                raise bad_request(f"the body is not gzip, or damaged: {error}") from error
            rest = member.unused_data if member.eof else member.unconsumed_tail
            size += len(piece)
            if size > max_bytes:
                raise too_large(f"the body inflates to more than {max_bytes} bytes, which is all that is read")
            exchange.held.add(len(piece))
            pieces.append(piece)
            if not piece and not member.eof:
                raise bad_request("the body is gzip that ends too early")
    return b"".join(pieces)
