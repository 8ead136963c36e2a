"""The entropy coder of the integer language model: blocks of codes to bytes and back, many blocks in lockstep.

The model and the range coder meet only at integers: `IntegerLM` gives each code a frequency, and constriction's range
coder turns a code and its frequencies into bits. Encoding evaluates the model on many frames at once, decoding frame by
frame; both get the same integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_head.integer_lm import MAX_FRAMES, IntegerLM
from lm_head.range_coder import PayloadReader, PayloadWriter
from tokenizer.errors import BitstreamError, CodesError

BLOCKS_AT_ONCE = 16
FRAMES_AT_ONCE = 128  # of each block in one pass of the encoder: more would look mostly at what they may not see
FREQUENCIES_AT_ONCE = 2**22  # 16 MiB of them, at most, in one pass


class IntegerCoder:
    """Codes as bytes, by the frequencies of an integer language model.

    Args:
        lm: that predicts them. Streams are read with the very same model: `identity` says which.
    """

    max_frames = MAX_FRAMES

    def __init__(self, lm: IntegerLM) -> None:
        self.lm, self.identity = lm, lm.identity
        self.num_codebooks, self.codebook_size = lm.config.num_codebooks, lm.config.codebook_size

    def encode(self, blocks: Sequence[NDArray[np.uint16]]) -> list[bytes]:
        """Compress blocks, each on its own.

        Args:
            blocks: [K, T] codes each; of one K.

        Raises:
            CodesError: more levels, larger codes or longer blocks than the model has.
        """
        payloads = [b""] * len(blocks)
        for group in _groups([block.shape[1] for block in blocks]):
            some = [torch.from_numpy(np.asarray(blocks[index], np.int64)) for index in group]
            self._check(some)
            writers = [PayloadWriter() for _ in group]
            for begin, frequencies in self.frequencies(_padded(some)):
                for block, writer, rows in zip(some, writers, frequencies.cpu(), strict=True):
                    codes = block[:, begin : begin + len(rows)].T.to(torch.int32)  # [n, K]
                    writer.write(codes.flatten().numpy(), rows[: len(codes)].flatten(0, 1).numpy())
            for index, writer in zip(group, writers, strict=True):
                payloads[index] = writer.payload()
        return payloads

    def decode(
        self, payloads: Sequence[bytes], num_codebooks: int, num_frames: Sequence[int]
    ) -> list[NDArray[np.uint16]]:
        """What `encode` was given.

        Args:
            payloads: of the blocks.
            num_codebooks: K of all of them.
            num_frames: T of each.

        Raises:
            BitstreamError: a payload that no block of that size has, or counts that the model does not have.
        """
        if num_codebooks > self.num_codebooks or max(num_frames, default=0) > self.max_frames:
            raise BitstreamError(
                f"blocks of {num_codebooks} levels and up to {max(num_frames, default=0)} frames: "
                f"the language model takes {self.num_codebooks} and {self.max_frames}"
            )
        blocks: list[NDArray[np.uint16]] = [np.empty((num_codebooks, 0), np.uint16)] * len(payloads)
        for group in _groups(num_frames):
            some = self._decode([payloads[index] for index in group], num_codebooks, [num_frames[i] for i in group])
            for index, codes in zip(group, some, strict=True):
                blocks[index] = codes
        return blocks

    def _check(self, blocks: list[Tensor]) -> None:
        if len({len(block) for block in blocks}) > 1 or not 1 <= len(blocks[0]) <= self.num_codebooks:
            raise CodesError(f"blocks must all have as many levels, from 1 to the model's {self.num_codebooks}")
        for block in blocks:
            if block.shape[1] > self.max_frames:
                raise CodesError(f"a block of {block.shape[1]} frames; the model takes {self.max_frames}")
            if block.numel() and not 0 <= int(block.min()) <= int(block.max()) < self.codebook_size:
                raise CodesError(f"codes must lie in 0 to {self.codebook_size - 1}")

    def frequencies(self, codes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What each code of blocks [B, K, T] is coded by: stretches of [B, n, K, V], each with its first frame."""
        batch, levels, num_frames = codes.shape
        stride = min(FRAMES_AT_ONCE, max(1, FREQUENCIES_AT_ONCE // (batch * levels * self.codebook_size)))
        state = self.lm.begin(batch, stride)
        shifted = torch.nn.functional.pad(codes[..., :-1] + 1, (1, 0)).to(self.lm.device)
        for begin in range(0, num_frames, stride):
            yield begin, self.lm.step(shifted[..., begin : begin + stride], state)

    def _decode(self, payloads: list[bytes], num_codebooks: int, num_frames: list[int]) -> list[NDArray[np.uint16]]:
        """Blocks in lockstep, the longest one first: those that end leave the batch from its end."""
        readers = [PayloadReader(payload) for payload in payloads]
        codes = np.zeros((len(payloads), num_codebooks, num_frames[0]), np.int32)
        state = self.lm.begin(len(payloads))
        shifted = torch.zeros(len(payloads), num_codebooks, 1, dtype=torch.int64)
        for frame in range(num_frames[0]):
            active = sum(length > frame for length in num_frames)
            if active < len(shifted):
                state, shifted = state.first(active), shifted[:active]
            frequencies = self.lm.step(shifted.to(self.lm.device), state)[:, 0].cpu().numpy()  # [B, K, V]
            for row in range(active):
                codes[row, :, frame] = readers[row].read(frequencies[row])
            shifted = torch.from_numpy(codes[:active, :, frame : frame + 1].astype(np.int64) + 1)
        for reader in readers:
            reader.finish()
        return [row[:, :length].astype(np.uint16) for row, length in zip(codes, num_frames, strict=True)]


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of blocks that go together: of like length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for begin in range(0, len(order), BLOCKS_AT_ONCE):
        yield order[begin : begin + BLOCKS_AT_ONCE]


def _padded(blocks: list[Tensor]) -> Tensor:
    """[B, K, T] of the longest; what stands behind the end of a block changes nothing before it."""
    longest = max(block.shape[1] for block in blocks)
    return torch.stack([torch.nn.functional.pad(block, (0, longest - block.shape[1])) for block in blocks])
