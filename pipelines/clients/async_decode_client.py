"""AsyncDecodeClient: the service for programs with an asyncio loop. It needs neither torch nor Ray.

async with AsyncDecodeClient("http://127.0.0.1:8000") as client:
    waveform = await client.decode(codes)                     # [K, T] to [C, S]
    async with client.stream(num_codebooks=8) as stream:
        await stream.push(codes)
        await stream.finish()
        async for samples in stream: ...                      # [C, n], while it is made
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import numpy as np
from numpy.typing import NDArray

from pipelines.clients import decode_requests as wire
from pipelines.clients.client_errors import ServiceUnreachable
from pipelines.clients.decode_requests import EncodedSound, ServiceAnswer, ServiceRequest
from pipelines.clients.retry_policy import RetryPolicy
from pipelines.clients.stream_client import AsyncClientStream, StreamAddress
from pipelines.clients.stream_progress import Samples
from pipelines.decoding.decode_errors import DeadlineExceeded, StreamClosed
from pipelines.serving.stream_protocol import PATH, PcmFormat, StreamStart


class AsyncDecodeClient:
    """Calls of one service; any number at once.

    Every call is idempotent and tried again where the connection fails, the service is full (429, after its
    Retry-After) or a replica of it has failed (500 to 504).

    Args:
        url: of the service, as "http://127.0.0.1:8000".
        token: the bearer token, where the service wants one.
        timeout_s: of one call with all its attempts.
        retries: attempts after the first one.

    Raises:
        ValueError: a url that is none of HTTP.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0, retries: int = 3) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"the service's url begins with http:// or https:// and a host, not {url!r}")
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be a positive number of seconds, not {timeout_s}")
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._policy = RetryPolicy(retries=retries)
        self._http = httpx2.AsyncClient(headers=self._headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; streams have to be closed by themselves."""
        await self._http.aclose()

    async def decode(
        self,
        codes: NDArray[np.integer[Any]],
        *,
        codec: str | None = None,
        num_samples: int | None = None,
        bandwidth_kbps: float | None = None,
        scales: NDArray[np.floating[Any]] | None = None,
    ) -> NDArray[np.float32]:
        """Codes to a waveform, rounded to 16 bits on the way; a stream with pcm "f32le" has it in full.

        Args:
            codes: [K, T] of any integer type.
            codec: where the service has several.
            num_samples: length of the result; T frames must be just enough for it. None for whole frames.
            bandwidth_kbps: to leave out finer levels of the codes.
            scales: [N], for codecs that have scales.

        Returns:
            [C, S] float32 at the codec's sample rate.

        Raises:
            CodesError: the codes or scales do not fit the codec.
            Overloaded, Draining, DeadlineExceeded, ServiceUnreachable, ServiceError: after all attempts.
            Unauthorized, RequestRefused: another attempt would not help.
        """
        options = {"codec": codec, "num_samples": num_samples, "bandwidth_kbps": bandwidth_kbps}
        return wire.read_waveform(await self._ask(wire.decode_request(codes, options, scales)))

    async def decode_file(
        self,
        codes: NDArray[np.integer[Any]],
        response_format: str,
        *,
        codec: str | None = None,
        num_samples: int | None = None,
        bandwidth_kbps: float | None = None,
        scales: NDArray[np.floating[Any]] | None = None,
    ) -> bytes:
        """Codes to an audio file: "wav", "flac", "opus", "mp3" or "pcm". The rest is as in `decode`."""
        options = {"codec": codec, "num_samples": num_samples, "bandwidth_kbps": bandwidth_kbps}
        options["response_format"] = response_format
        return (await self._ask(wire.decode_request(codes, options, scales))).content

    async def encode(
        self, sound: bytes | str | Path, *, codec: str | None = None, bandwidth_kbps: float | None = None
    ) -> EncodedSound:
        """An audio file of any format and sample rate to codes.

        Args:
            sound: the file's bytes, or its path on this machine.
            codec: where the service has several.
            bandwidth_kbps: None for all levels.

        Raises:
            AudioError: the file cannot be read as audio.
            OSError: there is no such file.
            QuantoneError: as in `decode`.
        """
        request = wire.encode_request(sound, {"codec": codec, "bandwidth_kbps": bandwidth_kbps, "format": "json"})
        return wire.read_encoded(await self._ask(request))

    async def codecs(self) -> list[dict[str, Any]]:
        """Cards of the codecs that are served: name, sample_rate, hop_length, num_codebooks and more."""
        return wire.read_codecs(await self._ask(wire.codecs_request()))

    def stream(
        self,
        *,
        codec: str | None = None,
        num_codebooks: int | None = None,
        bandwidth_kbps: float | None = None,
        pcm: PcmFormat = "f32le",
    ) -> AsyncClientStream:
        """Codes in, sound out, while both are being made. To be entered: `async with client.stream() as stream`.

        Args:
            codec: where the service has several.
            num_codebooks: levels of the codes; None for all.
            bandwidth_kbps: the same in other words.
            pcm: "f32le" for samples as float32, "s16le" for int16 and half the bytes.
        """
        start = StreamStart(codec=codec, num_codebooks=num_codebooks, bandwidth_kbps=bandwidth_kbps, pcm=pcm)
        # a load balancer that knows the header sends every connection of a stream to the same replica
        headers = {**self._headers, "x-session-id": uuid.uuid4().hex}
        address = StreamAddress(f"ws{self._url[4:]}{PATH}", headers, self._timeout_s, self._policy)
        return AsyncClientStream(start, address)

    async def decode_chunks(
        self,
        chunks: AsyncIterable[NDArray[np.integer[Any]]],
        *,
        codec: str | None = None,
        num_codebooks: int | None = None,
        bandwidth_kbps: float | None = None,
        pcm: PcmFormat = "f32le",
    ) -> AsyncIterator[Samples]:
        """One utterance whose codes are still being made: its sound, as it comes. It is a stream of its own.

        Args:
            chunks: codes [K, n] each. What it raises is raised here.
            codec: as in `stream`, like the others.
            num_codebooks: levels of the codes; None for all.
            bandwidth_kbps: the same in other words.
            pcm: "f32le" or "s16le".

        Yields:
            [C, n] each, without a gap. Left early, the stream is closed and `chunks` cancelled.
        """
        options: dict[str, Any] = {"codec": codec, "num_codebooks": num_codebooks, "bandwidth_kbps": bandwidth_kbps}
        async with self.stream(**options, pcm=pcm) as stream:
            feeding = asyncio.create_task(_feed(stream, chunks))
            try:
                async for samples in stream:
                    yield samples
            except StreamClosed:
                await feeding  # raises why
                raise
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    async def _ask(self, request: ServiceRequest) -> ServiceAnswer:
        """An answer with status 200, by as many attempts as it takes and the policy has."""
        end = time.monotonic() + self._timeout_s
        failures = 0
        while True:
            failure: Exception
            retry_after_s = None
            try:
                answer = await self._attempt(request, end - time.monotonic())
                error = wire.error_of(answer)
                if error is None:
                    return answer
                if answer.status not in wire.RETRIED_STATUSES:
                    raise error
                failure, retry_after_s = error, wire.retry_after_s(answer)
            except httpx2.TransportError as broken:
                failure = ServiceUnreachable(f"{self._url}: {broken or type(broken).__name__}")
                failure.__cause__ = broken
            failures += 1
            pause_s = self._policy.pause_s(failures, retry_after_s)
            if pause_s is None or time.monotonic() + pause_s >= end:
                raise failure
            await asyncio.sleep(pause_s)

    async def _attempt(self, request: ServiceRequest, left_s: float) -> ServiceAnswer:
        headers = {"Content-Type": request.content_type} if request.content_type else {}
        query = request.query
        if request.path == "/v1/audio/decode":
            query = {**query, "deadline_s": f"{min(3600.0, max(0.001, left_s)):.3f}"}  # the service drops what is late
        try:
            async with asyncio.timeout(left_s):
                response = await self._http.request(
                    request.method,
                    self._url + request.path,
                    params=query,
                    content=request.content,
                    headers=headers,
                    timeout=left_s,
                )
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise DeadlineExceeded(f"{self._url}: no answer within {self._timeout_s:g} s") from error
        return ServiceAnswer(response.status_code, response.content, response.headers.get("Retry-After"))


async def _feed(stream: AsyncClientStream, chunks: AsyncIterable[NDArray[np.integer[Any]]]) -> None:
    try:
        async for codes in chunks:
            await stream.push(codes)
        await stream.finish()
    except BaseException:
        await stream.close()  # who reads must not wait for codes that will never come
        raise
