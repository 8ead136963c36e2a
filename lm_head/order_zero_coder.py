"""Adaptive order-0 coding: each level's codes by how often they occurred so far. What a language model has to beat.

It is a `BlockCoder` like any other, so that its streams pay the same headers and checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_head.qtn import MAX_FRAMES_PER_BLOCK, Codes
from lm_head.range_coder import Frequencies, PayloadReader, PayloadWriter
from tokenizer.errors import CodesError

# Every code begins with a frequency of 1 and gains this much whenever it occurs. Of 1, 2, 4 ... 64, on speech of 10-bit
# codes in clips of 5 s, 2 gave the fewest bits at 3 and 6 kbps, and was within 0.3 % of the best at 1.5 and 12. A block
# is too short for frequencies to be halved in it: they add up to less than 2 ** 17, and the coder has 24 bits.
INCREMENT = 2
FREQUENCIES_AT_ONCE = 2**20  # what fits into caches


class OrderZeroCoder:
    """Codes as bytes, by adaptive frequencies that begin afresh with each block.

    Args:
        num_codebooks: the most levels that a block may have.
        codebook_size: V.
    """

    max_frames = MAX_FRAMES_PER_BLOCK

    def __init__(self, num_codebooks: int, codebook_size: int) -> None:
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.identity = hashlib.sha256(f"adaptive order 0, +{INCREMENT}, {codebook_size}".encode()).hexdigest()

    def encode(self, blocks: Sequence[Codes]) -> list[bytes]:
        """Blocks [K, T_i] to bytes, each on its own.

        Raises:
            CodesError: more levels, larger codes or longer blocks than the coder takes.
        """
        return [self._encode(block) for block in blocks]

    def decode(self, payloads: Sequence[bytes], num_codebooks: int, num_frames: Sequence[int]) -> list[Codes]:
        """The blocks [K, T_i] behind the bytes.

        Raises:
            BitstreamError: bytes that no block of that size has.
        """
        pairs = zip(payloads, num_frames, strict=True)
        return [self._decode(payload, num_codebooks, frames) for payload, frames in pairs]

    def _encode(self, block: Codes) -> bytes:
        if len(block) > self.num_codebooks or block.shape[1] > self.max_frames:
            raise CodesError(f"a block of {list(block.shape)}, allowed is {[self.num_codebooks, self.max_frames]}")
        if block.size and int(block.max()) >= self.codebook_size:
            raise CodesError(f"codes up to {block.max()}, allowed is up to {self.codebook_size - 1}")
        writer = PayloadWriter()
        for codes, frequencies in self._stretches(block):
            writer.write(codes, frequencies)
        return writer.payload()

    def _stretches(self, block: Codes) -> Iterator[tuple[NDArray[np.int32], Frequencies]]:
        """Codes [n * K] of a block in their order, and the frequencies [n * K, V] that each of them met."""
        num_codebooks, num_frames = block.shape
        counts, levels = self._begin(num_codebooks), np.arange(num_codebooks)
        stride = max(1, FREQUENCIES_AT_ONCE // counts.size)
        for start in range(0, num_frames, stride):
            frames = block[:, start : start + stride].T
            met = np.empty((len(frames), *counts.shape), np.float32)
            for frame, codes in enumerate(frames):
                met[frame] = counts
                counts[levels, codes] += INCREMENT
            yield frames.astype(np.int32).flatten(), met.reshape(-1, self.codebook_size)

    def _decode(self, payload: bytes, num_codebooks: int, num_frames: int) -> Codes:
        reader = PayloadReader(payload)
        counts, levels = self._begin(num_codebooks), np.arange(num_codebooks)
        block = np.empty((num_codebooks, num_frames), np.uint16)
        for frame in range(num_frames):
            codes = reader.read(counts)
            block[:, frame] = codes
            counts[levels, codes] += INCREMENT
        reader.finish()
        return block

    def _begin(self, num_codebooks: int) -> Frequencies:
        return np.ones((num_codebooks, self.codebook_size), np.float32)
