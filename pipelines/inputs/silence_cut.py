"""Long waveforms in segments, cut where it is quiet: every sample in exactly one of them, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_HOPS_PER_SECOND = 100
_STRETCH_HOPS = 30  # 0.3 s: longer than the closures inside words


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an input at the codec's rate and channel count."""

    start_sample: int  # in the input
    waveform: npt.NDArray[np.float32]  # [C, S]


class SilenceCutter:
    """Cuts a waveform that comes in pieces; where it cuts depends on the samples alone, not on the pieces.

    A segment is cut off once more than `longest` samples wait. What is left at the end is the last segment.

    Args:
        longest: samples of a segment, at most; at least a second.
        sample_rate: Hz.
        hop_length: samples of a frame: segments are whole frames, all but the last.
        pending: samples [C, n] that no segment has yet.
        start_sample: of `pending` in the input.
    """

    def __init__(
        self,
        longest: int,
        sample_rate: int,
        hop_length: int,
        *,
        pending: npt.NDArray[np.float32],
        start_sample: int = 0,
    ) -> None:
        self._longest, self._sample_rate, self._hop_length = longest, sample_rate, hop_length
        self._pieces, self._num_pending = [pending], pending.shape[-1]
        self.start_sample = start_sample

    def add(self, piece: npt.NDArray[np.float32]) -> Iterator[Segment]:
        """Segments that are complete, now that samples [C, n] follow."""
        self._pieces.append(piece)
        self._num_pending += piece.shape[-1]
        while self._num_pending > self._longest:
            pending = self.pending()
            cut = silence_cut(pending[:, : self._longest], self._sample_rate, self._hop_length)
            segment = Segment(self.start_sample, pending[:, :cut])
            self._pieces, self._num_pending = [pending[:, cut:]], pending.shape[-1] - cut
            self.start_sample += cut
            yield segment

    def finish(self) -> Iterator[Segment]:
        """The last segment, if any samples wait."""
        if self._num_pending:
            yield Segment(self.start_sample, self.pending())

    def pending(self) -> npt.NDArray[np.float32]:
        """The samples [C, n] that no segment has yet."""
        if len(self._pieces) > 1:
            self._pieces = [np.concatenate(self._pieces, axis=-1)]
        return self._pieces[0]


def silence_cut(waveform: npt.NDArray[np.float32], sample_rate: int, hop_length: int) -> int:
    """Where to end a segment that may take up to all of `waveform` [C, S]: in the middle of its quietest stretch.

    Looked at are stretches of 0.3 s in the last third, every 10 ms; of equally quiet ones the latest is taken. The
    result is rounded down to whole frames of `hop_length`.
    """
    longest = waveform.shape[-1]
    first = -(-2 * longest // 3)
    hop = max(1, sample_rate // _HOPS_PER_SECOND)
    num_hops = (longest - first) // hop
    window = waveform[:, first : first + num_hops * hop].reshape(len(waveform), num_hops, hop)
    power = np.square(window, dtype=np.float64).sum(axis=(0, 2))  # [num_hops]
    # sums of windows and not differences of running sums: stretches of digital silence are to be equal
    stretches = np.lib.stride_tricks.sliding_window_view(power, min(_STRETCH_HOPS, num_hops)).sum(axis=-1)
    quietest = len(stretches) - 1 - int(np.argmin(stretches[::-1]))
    cut = first + (quietest + _STRETCH_HOPS // 2) * hop
    return int(max(1, cut // hop_length) * hop_length)
