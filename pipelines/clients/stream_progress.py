"""StreamProgress: where a client stands in a stream, over connections and servers: what to send, what has come."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.clients.client_errors import ServiceUnreachable, StreamCut
from pipelines.clients.unheard_codes import UnheardCodes
from pipelines.serving.stream_protocol import StreamResume, StreamStart, StreamStarted, parse_pcm, reset_message
from tokenizer.errors import CodesError

Samples = NDArray[np.float32] | NDArray[np.int16]

_KEPT_S = 600.0  # of one utterance's codes, to make its sound again where the server has forgotten it
_MESSAGE_S = 10.0  # of codes in one message


class ServerSays(Exception):  # noqa: N818
    """An error message of the server.

    Args:
        error: its contents.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.kind, self.retry_after_s = str(error.get("type", "")), error.get("retry_after_s")
        self.received = error.get("utterance", 0), error.get("received_frames", -1)
        """The utterance that the server was taking codes of, and how many frames of it."""


class StreamProgress:
    """Codes that were handed in, sound that came, and the position between them; no network, no tasks.

    A connection begins with `first_message` and `take_up` and goes on with `next_message` and `receive`. It may end at
    any point: the next one goes on from there.

    Args:
        start: the codec and its levels.
    """

    def __init__(self, start: StreamStart) -> None:
        self._start = start
        self.started: StreamStarted | None = None
        self.sound: deque[Samples | None] = deque()
        """Samples [C, n] that have come and were not read; None is the end of an utterance."""
        self.received_samples = 0  # of the first open utterance
        self.resumable = False  # the server may still have the stream
        self._codes = UnheardCodes(0)  # its limit follows from the frame rate
        self._base = 0  # our number of the server's utterance 0
        self._skip = 0  # samples that come a second time
        self._resets_unsent = 0
        self._awaited: int | None = None  # the utterance that begins with a reset which the server has not confirmed

    @property
    def unsent_frames(self) -> int:
        """Frames that wait for a connection."""
        return self._codes.unsent_frames

    @property
    def owed(self) -> bool:
        """Whether sound is to come without more codes."""
        return self._codes.owed

    @property
    def empty(self) -> bool:
        """Whether everything that was handed in has been heard."""
        return self._codes.empty

    def push(self, codes: Any) -> None:
        """Codes [K, T] of the utterance that is being made.

        Raises:
            CodesError: not integers [K, T], or a code out of range.
        """
        checked = _checked(codes, self.started)
        if checked.shape[1]:
            self._codes.push(checked)

    def finish(self) -> None:
        """The utterance is whole."""
        self._codes.end()

    def reset(self) -> None:
        """Forget what was handed in and what has come."""
        self._awaited = self._codes.reset()
        self._resets_unsent += 1
        self.received_samples = self._skip = 0
        self.sound.clear()

    def first_message(self) -> StreamStart | StreamResume:
        """What a new connection begins with: the old stream where it stood, or a new one that repeats the utterance.

        Raises:
            StreamCut: neither is possible.
        """
        if self.started is not None and self.resumable and self._awaited is None:
            return StreamResume(
                resume=self.started.resume_token,
                utterance=self._codes.first - self._base,
                received_samples=self.received_samples - self._skip,  # of this server's stream
            )
        if not self._codes.repeatable:
            raise self.cut(f"the server has lost it, and it is too long to begin again (over {_KEPT_S:g} s)")
        self._base, self._skip = self._codes.first, self.received_samples
        self._awaited, self._resets_unsent = None, 0
        return self._start

    def take_up(self, answer: str | bytes) -> None:
        """The server's first message.

        Raises:
            ServerSays: it refuses.
            ServiceUnreachable: it is no such message.
            StreamCut: the server stands where the client has never been.
        """
        message = _parsed(answer)
        try:
            started = StreamStarted.from_message(message)
        except (ValueError, TypeError) as error:
            raise ServiceUnreachable(f"the server does not speak this protocol: {error}") from error
        if self.started is None:
            self._codes = UnheardCodes(round(_KEPT_S * started.frame_rate))
        if not self._codes.send_from(self._base + started.utterance, started.received_frames):
            raise self.cut("the server's place in it is not the client's")
        self.started, self.resumable = started, True

    def next_message(self) -> str | bytes | None:
        """The next message to send; None where there is nothing."""
        if self._resets_unsent:
            self._resets_unsent -= 1
            return reset_message()
        rate = 1.0 if self.started is None else self.started.frame_rate
        return self._codes.next_message(max(1, round(_MESSAGE_S * rate)))

    def receive(self, message: str | bytes) -> bool:
        """A message of the server; whether it brought the stream on.

        Raises:
            ServerSays: an error.
            ServiceUnreachable: nothing that a server says.
            StreamCut: sound is missing.
        """
        if isinstance(message, bytes):
            return self._receive_sound(message)
        fields = _parsed(message)
        number = self._base + int(fields.get("utterance", 0))
        if fields["type"] == "reset" and number == self._awaited:
            self._awaited = None
            return True
        if fields["type"] == "end" and self._awaited is None:
            if fields.get("num_samples") != self.received_samples:
                raise self.cut(f"the utterance has {fields.get('num_samples')}")
            self._codes.heard_end()
            self.received_samples = 0
            self.sound.append(None)
            return True
        return False

    def has_arrived(self, received: tuple[int, int]) -> bool:
        """Whether a server that has received so much has all that was sent: nothing was lost on the way."""
        return self._codes.sent == (self._base + received[0], received[1]) and not self._resets_unsent

    def cut(self, why: str) -> StreamCut:
        """The error for a stream that cannot go on."""
        text = f"the stream was lost after {self.received_samples} samples of an utterance: {why}"
        return StreamCut(text, received_samples=self.received_samples)

    def _receive_sound(self, data: bytes) -> bool:
        if self._awaited is not None or self.started is None:
            return False
        try:
            samples = parse_pcm(data, self.started.channels, self.started.pcm)
        except ValueError as error:
            raise ServiceUnreachable(f"the server does not speak this protocol: {error}") from error
        known = min(self._skip, samples.shape[1])
        self._skip -= known
        if known == samples.shape[1]:
            return False
        self.sound.append(samples[:, known:])
        self.received_samples += samples.shape[1] - known
        self._codes.heard(self.received_samples // self.started.hop_length)
        return True


def _checked(codes: Any, started: StreamStarted | None) -> NDArray[np.uint16]:
    array = np.asarray(codes)
    levels = array.shape[0] if started is None and array.ndim else 0 if started is None else started.num_codebooks
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[0] != levels:
        raise CodesError(f"codes must be integers [{levels or 'K'}, T], not {array.dtype} {list(array.shape)}")
    largest = 2**16 - 1 if started is None else started.codebook_size - 1
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= largest:
        raise CodesError(f"codes are not all in 0 to {largest}")
    return array.astype(np.uint16)  # a copy: the caller may use the array again


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        message = None if isinstance(text, bytes) else json.loads(text)
    except ValueError:
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ServiceUnreachable(f"the server says {text[:80]!r}: it does not speak this protocol")
    if message["type"] == "error":
        raise ServerSays(message.get("error", {}))
    return message
