"""What a request to decode says, whatever format it came in: codes, options, and the limits of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.service_errors import too_large
from tokenizer import CodesError

MAX_SCALES = 4096  # of one request: segments of an hour


@dataclass(frozen=True, slots=True)
class CodesLimits:
    """The largest codes that any codec of the service takes; checked while a body is read."""

    max_levels: int
    max_frames: int

    def check_levels(self, count: int) -> None:
        """Refuse more levels than there are.

        Raises:
            CodesError: also for none.
        """
        if not 1 <= count <= self.max_levels:
            raise CodesError(f"codes have {count} levels, allowed is 1 to {self.max_levels}")

    def check_frames(self, count: int) -> None:
        """Refuse codes that are too long.

        Raises:
            CodesError: no frames.
            RequestError: too many.
        """
        if count == 0:
            raise CodesError("codes have no frames, at least 1 is needed")
        if count > self.max_frames:
            raise too_large(f"codes have {count} frames, at most {self.max_frames} are decoded at once")


@dataclass(frozen=True, slots=True, eq=False)
class CodesBody:
    """What stood in the body of a request to decode."""

    codes: NDArray[np.integer]  # [K, T], of any integer type; their range is not checked yet
    options: dict[str, Any] = field(default_factory=dict)  # by their names in DecodeOptions, not checked yet


def stacked_levels(levels: Sequence[NDArray[np.integer]], limits: CodesLimits) -> NDArray[np.integer]:
    """Levels [T] as codes [K, T].

    Raises:
        CodesError: of different lengths, or none.
        RequestError: too long.
    """
    limits.check_levels(len(levels))
    lengths = sorted({len(level) for level in levels})
    if len(lengths) > 1:
        raise CodesError(f"all levels have equally many frames: these have from {lengths[0]} to {lengths[-1]}")
    limits.check_frames(lengths[0])
    return np.stack(levels)


def whole_numbers(values: Sequence[Any], level: int) -> NDArray[np.int64]:
    """Python's numbers of one level as an array.

    Raises:
        CodesError: something else stands among them, or a number that no codec has as a code.
    """
    if not set(map(type, values)) <= {int}:  # bool is no int here
        stranger = next(value for value in values if type(value) is not int)
        raise CodesError(f"codes are whole numbers: level {level} has {str(stranger)[:40]!r}")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise CodesError(f"codes are at most 65535: level {level} has one beyond 64 bits") from error
