"""In what order rows are visited, and who visits which: it follows from a seed and numbers, without any buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNEVEN = ("keep", "drop", "repeat")


@dataclass(frozen=True, slots=True)
class Visits:
    """Rows that are visited while a few groups are in memory."""

    groups: npt.NDArray[np.int64]  # [n] group of each row
    rows: npt.NDArray[np.int64]  # [n] its number in the group


class TokenOrder:
    """An order of all rows for each epoch, of which any stretch can be had without what comes before.

    Groups of rows come in an order of their own, and the rows of a few groups that follow each other are mixed. So a
    reader holds these groups and no more, and the place in the order is all that there is to remember.

    Args:
        sizes: rows in each group.
        seed: not negative; None for the order in which they are stored.
        groups_mixed: how many groups are in memory at once; 1 or more.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int | None, groups_mixed: int) -> None:
        self._sizes = np.array(sizes, np.int64)
        self._seed, self._groups_mixed = seed, groups_mixed
        self.num_rows = int(self._sizes.sum())

    def visits(self, epoch: int, start: int, stop: int) -> Iterator[Visits]:
        """The rows at places `start` up to `stop` of the order; behind the last row the first one follows."""
        while start < stop:
            end = min(stop, (start // self.num_rows + 1) * self.num_rows)
            yield from self._visits(epoch, start % self.num_rows, start % self.num_rows + end - start)
            start = end

    def _visits(self, epoch: int, start: int, stop: int) -> Iterator[Visits]:
        order = np.arange(len(self._sizes))
        if self._seed is not None:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        ends = np.cumsum(self._sizes[order])
        for first in range(0, len(order), self._groups_mixed):
            together = order[first : first + self._groups_mixed]
            begin = int(ends[first - 1]) if first else 0
            end = int(ends[min(first + self._groups_mixed, len(order)) - 1])
            low, high = max(start, begin), min(stop, end)
            if low >= high:
                continue
            places = np.arange(end - begin)
            if self._seed is not None:
                places = np.random.default_rng([self._seed, epoch, first + 1]).permutation(places)
            chosen = places[low - begin : high - begin]
            groups = np.repeat(together, self._sizes[together])
            rows = np.concatenate([np.arange(size) for size in self._sizes[together]])
            yield Visits(groups[chosen], rows[chosen])


def share_of(num_rows: int, rank: int, world_size: int, uneven: str) -> range:
    """The places of the order that one of several ranks visits; they may go on beyond the last row.

    Args:
        num_rows: of an epoch.
        rank: number of this one.
        world_size: how many they are.
        uneven: where rows cannot be dealt out equally: "keep" gives some ranks one more, "drop" leaves the last ones
            of the order out, "repeat" gives the first ones of the order once more.
    """
    if uneven == "keep":
        return range(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)
    each = num_rows // world_size if uneven == "drop" else -(-num_rows // world_size)
    return range(rank * each, (rank + 1) * each)


def part_of(share: range, worker: int, num_workers: int) -> range:
    """The places of a rank's share that one of its workers visits."""
    start, length = share.start, len(share)
    return range(start + worker * length // num_workers, start + (worker + 1) * length // num_workers)
