"""Batches of codes to train on: each follows from seed and step, and so any of them can be the next one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipelines.data_settings import Sampling
from pipelines.sampling import Sampler
from pipelines.token_store import TokenStore


class TokenBatches:
    """An endless sequence of batches, of which this process sees its part.

    Row i of step s of the whole batch follows from (seed, s, i) and the store alone. So a resumed run sees what an
    undisturbed one would; and rank r of w sees rows r * B/w up to (r + 1) * B/w of what one process would.

    Utterances are drawn by their lengths, and crops lie anywhere within. Of one that is shorter than a crop all is
    taken, and those behind it follow.

    Args:
        store: from `open_token_store`.
        batch_size: B, rows of all ranks together.
        num_frames: T, of one row.
        seed: not negative.
        rank: number of this process among those that train together.
        world_size: w, how many they are.

    Attributes:
        wait_seconds: how long the consumer has waited for batches so far.

    Raises:
        ValueError: a number is out of range, or batch_size is not a multiple of world_size.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        batch_size: int,
        num_frames: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if min(batch_size, num_frames, world_size) < 1 or seed < 0:
            raise ValueError("batch_size, num_frames and world_size are positive, seed not negative")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} gets no equal part of a batch of {batch_size} rows")
        part = batch_size // world_size
        self._store, self._num_frames, self._seed = store, num_frames, seed
        self._rows = range(rank * part, (rank + 1) * part)
        kinds = np.zeros(len(store.lengths), np.str_)  # tokens are all of one kind
        self._sampler = Sampler(kinds, store.lengths, Sampling(one=1.0))
        self.wait_seconds = 0.0

    def from_step(self, step: int) -> Iterator[Tensor]:
        """Batches [B/w, K, T] int64 of this and all later steps, without end."""
        for following in itertools.count(step):
            asked = time.perf_counter()
            crops = np.stack([self._crop(following, row) for row in self._rows])
            batch = torch.from_numpy(crops.astype(np.int64))
            self.wait_seconds += time.perf_counter() - asked
            yield batch

    def _crop(self, step: int, row: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
        rng = np.random.default_rng([self._seed, step, row])
        utterance, start = self._sampler.draw_crop(rng, "any", self._num_frames)
        return self._store.read(utterance, start, self._num_frames)
