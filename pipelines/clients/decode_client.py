"""DecodeClient: the service for plain programs. It needs neither torch nor Ray.

    with DecodeClient("http://127.0.0.1:8000") as client:
        waveform = client.decode(codes)                           # [K, T] to [C, S]
        for samples in client.decode_chunks(model()): ...         # [K, n] each to [C, n] each, while they are made
        with client.stream(num_codebooks=8) as stream:            # the same by hand, for several utterances
            stream.push(codes)
            stream.finish()
            for samples in stream: ...

It is AsyncDecodeClient in a thread of its own: what that one promises holds here too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.clients.async_decode_client import AsyncDecodeClient
from pipelines.clients.decode_requests import EncodedSound
from pipelines.clients.loop_thread import LoopThread
from pipelines.clients.stream_client import AsyncClientStream
from pipelines.clients.stream_progress import Samples
from pipelines.decoding.decode_errors import StreamClosed
from pipelines.serving.stream_protocol import PcmFormat, StreamStarted

__all__ = ["AsyncDecodeClient", "ClientStream", "DecodeClient", "EncodedSound"]


class DecodeClient:
    """Calls of one service, from any thread.

    Args:
        url: of the service, as "http://127.0.0.1:8000".
        token: the bearer token, where the service wants one.
        timeout_s: of one call with all its attempts.
        retries: attempts after the first one.

    Raises:
        ValueError: a url that is none of HTTP.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0, retries: int = 3) -> None:
        self._client = AsyncDecodeClient(url, token, timeout_s, retries)
        self._loop = LoopThread("quantone-client")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        if not self._loop.closed:
            self._loop.run(self._client.close())
            self._loop.close()

    def decode(
        self,
        codes: NDArray[np.integer[Any]],
        *,
        codec: str | None = None,
        num_samples: int | None = None,
        bandwidth_kbps: float | None = None,
        scales: NDArray[np.floating[Any]] | None = None,
    ) -> NDArray[np.float32]:
        """Codes [K, T] to a waveform [C, S]; see `AsyncDecodeClient.decode`."""
        return self._loop.run(
            self._client.decode(
                codes, codec=codec, num_samples=num_samples, bandwidth_kbps=bandwidth_kbps, scales=scales
            )
        )

    def decode_file(
        self,
        codes: NDArray[np.integer[Any]],
        response_format: str,
        *,
        codec: str | None = None,
        num_samples: int | None = None,
        bandwidth_kbps: float | None = None,
        scales: NDArray[np.floating[Any]] | None = None,
    ) -> bytes:
        """Codes [K, T] to an audio file; see `AsyncDecodeClient.decode_file`."""
        return self._loop.run(
            self._client.decode_file(
                codes,
                response_format,
                codec=codec,
                num_samples=num_samples,
                bandwidth_kbps=bandwidth_kbps,
                scales=scales,
            )
        )

    def encode(
        self, sound: bytes | str | Path, *, codec: str | None = None, bandwidth_kbps: float | None = None
    ) -> EncodedSound:
        """An audio file to codes; see `AsyncDecodeClient.encode`."""
        return self._loop.run(self._client.encode(sound, codec=codec, bandwidth_kbps=bandwidth_kbps))

    def codecs(self) -> list[dict[str, Any]]:
        """Cards of the codecs that are served."""
        return self._loop.run(self._client.codecs())

    def stream(
        self,
        *,
        codec: str | None = None,
        num_codebooks: int | None = None,
        bandwidth_kbps: float | None = None,
        pcm: PcmFormat = "f32le",
    ) -> ClientStream:
        """Codes in, sound out, while both are being made; see `AsyncDecodeClient.stream`."""
        stream = self._client.stream(codec=codec, num_codebooks=num_codebooks, bandwidth_kbps=bandwidth_kbps, pcm=pcm)
        return ClientStream(stream, self._loop)

    def decode_chunks(
        self,
        chunks: Iterable[NDArray[np.integer[Any]]],
        *,
        codec: str | None = None,
        num_codebooks: int | None = None,
        bandwidth_kbps: float | None = None,
        pcm: PcmFormat = "f32le",
    ) -> Iterator[Samples]:
        """One utterance whose codes are still being made: its sound, as it comes.

        `chunks` is iterated in a thread of its own, so that making codes and playing sound go on side by side. The rest
        is as in `AsyncDecodeClient.decode_chunks`.
        """
        options: dict[str, Any] = {"codec": codec, "num_codebooks": num_codebooks, "bandwidth_kbps": bandwidth_kbps}
        with self.stream(**options, pcm=pcm) as stream:
            feeding = _Feeding(stream, chunks)
            feeding.start()
            try:
                yield from stream
            except StreamClosed:
                feeding.join()
                raise feeding.failure or StreamClosed("the stream is closed") from None


class ClientStream:
    """A stream of the service, made by `DecodeClient.stream`; see `AsyncClientStream`.

    Pushing and reading may be done by one thread after the other, or by two threads.
    """

    def __init__(self, stream: AsyncClientStream, loop: LoopThread) -> None:
        self._stream, self._loop = stream, loop

    @property
    def started(self) -> StreamStarted:
        """What the server said: sample rate, channels, levels."""
        return self._stream.started

    def __enter__(self) -> Self:
        self._loop.run(self._stream.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def push(self, codes: NDArray[np.integer[Any]]) -> None:
        """Hand in codes [K, T]; waits while very many wait for a connection."""
        self._loop.run(self._stream.push(codes))

    def finish(self) -> None:
        """The utterance is whole: the server sends the rest of its sound, and the next one begins."""
        self._loop.run(self._stream.finish())

    def reset(self) -> None:
        """Drop all that was pushed and all sound that was not read."""
        self._loop.run(self._stream.reset())

    def close(self) -> None:
        """Leave; the server frees the slot. A second call does nothing."""
        self._loop.run(self._stream.close())

    def __iter__(self) -> Iterator[Samples]:
        """Samples [C, n] of one utterance as they come, to its end. Without `finish` it has none."""
        while (samples := self._loop.run(_next(self._stream))) is not None:
            yield samples


async def _next(stream: AsyncClientStream) -> Samples | None:
    return await anext(stream, None)


class _Feeding(threading.Thread):
    """Codes into a stream, as they are made; ends at the next chunk where the stream has been closed."""

    def __init__(self, stream: ClientStream, chunks: Iterable[NDArray[np.integer[Any]]]) -> None:
        super().__init__(name="quantone-codes", daemon=True)
        self._stream, self._chunks = stream, chunks
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for codes in self._chunks:
                self._stream.push(codes)
            self._stream.finish()
        except BaseException as error:  # noqa: BLE001 - it is raised where the sound is read
            self.failure = error
            self._stream.close()  # who reads must not wait for codes that will never come
