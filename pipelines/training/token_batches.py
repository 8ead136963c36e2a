"""Batches of codes to train on: each follows from seed and step, and so any of them can be the next one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipelines.training.data_settings import Sampling
from pipelines.training.sampling import Sampler
from pipelines.training.token_copy import Codes
from pipelines.training.token_store import StoredText, TokenStore

_LENGTH_GROUPS = 8  # rows of whole utterances come from one of them, so that little of a batch is padding


class TokenBatch(NamedTuple):
    """Rows to train on."""

    codes: Tensor  # [B, K, T] int64; 0 behind the end of a row
    lengths: Tensor | None = None  # [B] frames of each row; None for T in all of them
    text: list[str] | None = None  # what is said in each row


class TokenBatches:
    """An endless sequence of batches, of which this process sees its part.

    Row i of step s of the whole batch follows from (seed, s, i) and the store alone. So a resumed run sees what an
    undisturbed one would; and rank r of w sees rows r * B/w up to (r + 1) * B/w of what one process would.

    Without text, utterances are drawn by their lengths, and crops lie anywhere within. Of one that is shorter than a
    crop all is taken, and those behind it follow.

    With text, a row is an utterance from its beginning, all of which are as likely; what is longer than a crop is cut
    at its end. Rows of a step are of like length, as long as the longest of this process.

    Args:
        store: from `open_token_store`.
        batch_size: B, rows of all ranks together.
        num_frames: T, of one row; with text, the most of it.
        seed: not negative.
        rank: number of this process among those that train together.
        world_size: w, how many they are.

    Attributes:
        wait_seconds: how long the consumer has waited for batches so far.
        frames_per_step: of all ranks together; with text on average, without padding.

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
        self.frames_per_step = float(batch_size * num_frames)
        if store.text is not None:
            kept = store.lengths.clip(max=num_frames)
            groups = min(_LENGTH_GROUPS, len(kept))
            self._groups = np.array_split(np.argsort(kept, kind="stable"), groups)
            self.frames_per_step = batch_size * float(kept.mean())
        kinds = np.zeros(len(store.lengths), np.str_)  # tokens are all of one kind
        self._sampler = Sampler(kinds, store.lengths, Sampling(one=1.0))
        self.wait_seconds = 0.0

    def from_step(self, step: int) -> Iterator[TokenBatch]:
        """Batches of this and all later steps, B/w rows each, without end."""
        for following in itertools.count(step):
            asked = time.perf_counter()
            text = self._store.text
            batch = self._crops(following) if text is None else self._utterances(following, text)
            self.wait_seconds += time.perf_counter() - asked
            yield batch

    def _crops(self, step: int) -> TokenBatch:
        crops = np.stack([self._crop(step, row) for row in self._rows])
        return TokenBatch(torch.from_numpy(crops.astype(np.int64)))

    def _crop(self, step: int, row: int) -> Codes:
        rng = np.random.default_rng([self._seed, step, row])
        utterance, start = self._sampler.draw_crop(rng, "any", self._num_frames)
        return self._store.read(utterance, start, self._num_frames)

    def _utterances(self, step: int, text: StoredText) -> TokenBatch:
        # A group is drawn by its size: every utterance is as likely as any other. The last number of each seed tells
        # the draws apart: [seed, step] would be [seed, step, 0].
        position = np.random.default_rng([self._seed, step, 0, 1]).integers(len(self._store.lengths))
        group = self._groups[np.searchsorted(np.cumsum([len(some) for some in self._groups]), position, side="right")]
        numbers = [int(np.random.default_rng([self._seed, step, row, 2]).choice(group)) for row in self._rows]
        lengths = self._store.lengths[numbers].clip(max=self._num_frames)
        codes = np.zeros((len(numbers), len(self._store.histogram), lengths.max()), np.int64)
        for row, (number, length) in enumerate(zip(numbers, lengths.tolist(), strict=True)):
            codes[row, :, :length] = self._store.read(number, 0, length)
        said = [text.read(number) for number in numbers]
        return TokenBatch(torch.from_numpy(codes), torch.from_numpy(lengths), said)
