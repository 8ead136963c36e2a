"""UnheardCodes: codes that were handed to a stream and whose sound has not all come: what must be sent, maybe again."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.stream_protocol import END_OF_UTTERANCE, codes_message


@dataclass(slots=True)
class _Utterance:
    pieces: list[NDArray[np.uint16]] = field(default_factory=list)  # [K, T] each
    starts: list[int] = field(default_factory=list)  # frames before each piece
    frames: int = 0  # with those of pieces that are forgotten
    ended: bool = False

    @property
    def forgotten(self) -> int:
        """Frames in front of the first piece."""
        return self.starts[0] if self.starts else self.frames


class UnheardCodes:
    """Utterances in order, and where sending stands. Numbers count ends and resets that were sent, from 0.

    Codes of an utterance stay until its end has been heard, so that a new stream on another server can make the same
    sound again. Of a very long one, the part that was heard goes.

    Args:
        max_frames: heard frames of one utterance that are kept at least, and at most twice as many.
    """

    def __init__(self, max_frames: int) -> None:
        self._max_frames = max_frames
        self._open: deque[_Utterance] = deque([_Utterance()])
        self._first = 0  # number of the first open one
        self._at = (0, 0)  # the utterance to send from, and how many of its frames have been sent

    @property
    def first(self) -> int:
        """The utterance whose sound comes next."""
        return self._first

    @property
    def sent(self) -> tuple[int, int]:
        """The utterance to send from, and how many of its frames have been sent."""
        return self._at

    @property
    def unsent_frames(self) -> int:
        """Frames that wait for a connection."""
        number, sent = self._at
        return sum(utterance.frames for utterance in self._from(number)) - sent

    @property
    def owed(self) -> bool:
        """Whether sound is to come that does not depend on more codes: an ended utterance has not been heard."""
        return self._open[0].ended

    @property
    def empty(self) -> bool:
        """Whether nothing was handed in that has not been heard."""
        return len(self._open) == 1 and self._open[0].frames == 0

    @property
    def repeatable(self) -> bool:
        """Whether all codes of the first open utterance are here."""
        return self._open[0].forgotten == 0

    def push(self, codes: NDArray[np.uint16]) -> None:
        """Codes [K, T] of the last utterance."""
        utterance = self._open[-1]
        utterance.pieces.append(codes)
        utterance.starts.append(utterance.frames)
        utterance.frames += codes.shape[1]

    def end(self) -> None:
        """The last utterance is whole; another one begins."""
        self._open[-1].ended = True
        self._open.append(_Utterance())

    def reset(self) -> int:
        """Forget all; the number of the utterance that begins, once the server has been told."""
        self._first = self._at[0] + 1
        self._open = deque([_Utterance()])
        self._at = (self._first, 0)
        return self._first

    def next_message(self, max_frames: int) -> bytes | None:
        """The next message to send, None where there is nothing."""
        number, sent = self._at
        utterance = self._open[number - self._first]
        if sent < utterance.frames:
            codes = _cut(utterance, sent, max_frames)
            self._at = (number, sent + codes.shape[1])
            return codes_message(codes)
        if utterance.ended:
            self._at = (number + 1, 0)
            return END_OF_UTTERANCE
        return None

    def heard(self, frames: int) -> None:
        """The sound of so many frames of the first open utterance has come."""
        utterance = self._open[0]
        if frames - utterance.forgotten > 2 * self._max_frames:
            gone = bisect_right(utterance.starts, frames - self._max_frames) - 1
            del utterance.pieces[:gone], utterance.starts[:gone]

    def heard_end(self) -> None:
        """The first open utterance has been heard to its end."""
        self._open.popleft()
        self._first += 1

    def send_from(self, number: int, frames: int) -> bool:
        """The server has everything before this point; False where it is none that can be sent from."""
        index = number - self._first
        if not 0 <= index < len(self._open):
            return False
        if not self._open[index].forgotten <= frames <= self._open[index].frames:
            return False
        self._at = (number, frames)
        return True

    def _from(self, number: int) -> list[_Utterance]:
        return list(self._open)[number - self._first :]


def _cut(utterance: _Utterance, start: int, max_frames: int) -> NDArray[np.uint16]:
    """At most so many frames [K, T] from `start`."""
    first = bisect_right(utterance.starts, start) - 1
    end = bisect_right(utterance.starts, start + max_frames - 1)
    offset = start - utterance.starts[first]
    return np.concatenate(utterance.pieces[first:end], axis=1)[:, offset : offset + max_frames]
