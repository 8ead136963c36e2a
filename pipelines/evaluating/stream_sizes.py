"""What the codes of a dataset take as .qtn streams: packed, by their frequencies, and by a language model.

Every stream is really made, headers and checksums included, and some are read again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lm_head.block_coder import LOCKSTEP_BLOCKS, BlockCoder
from lm_head.compression import CodecIdentity, compress_many
from lm_head.decompression import decompress_many
from lm_head.integer_coder import IntegerCoder
from lm_head.order_zero_coder import OrderZeroCoder
from pipelines.datasets.stored_codes import StoredUtterance
from pipelines.progress import Progress
from tokenizer import BitstreamError

NUM_READ_AGAIN = 8  # utterances, spread over the dataset

Bits = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StreamBytes:
    """Bytes of the same codes as .qtn streams of three kinds."""

    packed: int  # without a model
    order_0: int  # by `OrderZeroCoder`, in the longest blocks that the format has: they suit it best
    model: int

    @property
    def saved(self) -> float:
        """Share of the packed streams."""
        return 1 - self.model / self.packed

    @property
    def saved_of_order_0(self) -> float:
        """Share of the streams by frequencies."""
        return 1 - self.model / self.order_0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, what follows from the fields included."""
        return dataclasses.asdict(self) | {"saved": self.saved, "saved_of_order_0": self.saved_of_order_0}


@dataclass(frozen=True, slots=True)
class StreamSizes:
    """All utterances at one bandwidth."""

    seconds: float  # of audio
    codes_bytes: int  # of the codes alone, at log2 V bits each
    files: StreamBytes  # a stream for each utterance
    joined: StreamBytes  # one stream of all of them, as a long recording gives
    integer_bits: tuple[float, ...]  # per code, by level: what the integer model's frequencies give

    @property
    def saved_of_codes(self) -> float:
        """Share that the files save of the codes alone, although they have headers and checksums."""
        return 1 - self.files.model / self.codes_bytes

    def kbps(self, num_bytes: int) -> float:
        """Kilobits a second of audio."""
        return 8 * num_bytes / 1000 / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """For JSON, what follows from the fields included."""
        plain = dataclasses.asdict(self) | {"saved_of_codes": self.saved_of_codes}
        return plain | {"files": self.files.to_dict(), "joined": self.joined.to_dict()}


def measure_streams(
    coder: IntegerCoder,
    utterances: Sequence[StoredUtterance],
    num_codebooks: int,
    codec: CodecIdentity,
    progress: Progress,
) -> StreamSizes:
    """Compress utterances, each on its own and all of them in one stream.

    Args:
        coder: the language model's.
        utterances: not all of them without codes.
        num_codebooks: levels that the streams have.
        codec: that made the codes.
        progress: goes on by one file an utterance.

    Raises:
        BitstreamError: a stream that gives other codes than it was made of.
    """
    utterances = [dataclasses.replace(each, codes=each.codes[:num_codebooks]) for each in utterances]
    num_bytes = np.zeros(3, np.int64)
    integer_bits = np.zeros(num_codebooks)
    for start in range(0, len(utterances), LOCKSTEP_BLOCKS):
        bundle = utterances[start : start + LOCKSTEP_BLOCKS]
        for kind, (model, frames_per_block) in enumerate(_kinds(coder)):
            streams = compress_many([each.encoded() for each in bundle], codec, model, frames_per_block)
            num_bytes[kind] += sum(map(len, streams))
        for each in bundle:
            for bits in frequency_bits(coder, each.codes, codec.frames_per_block):
                integer_bits += bits.sum(axis=1)
            progress.advance(files=1, seconds=each.num_samples / codec.sample_rate)
    _read_again(coder, utterances, codec)
    whole = np.concatenate([each.codes for each in utterances], axis=1)
    joined = [len(compress_many([whole], codec, *kind)[0]) for kind in _kinds(coder)]
    return StreamSizes(
        seconds=sum(each.num_samples for each in utterances) / codec.sample_rate,
        codes_bytes=-(-whole.size * codec.bits_per_code // 8),
        files=StreamBytes(*num_bytes.tolist()),
        joined=StreamBytes(*joined),
        integer_bits=tuple((integer_bits / whole.shape[1]).tolist()),
    )


def frequency_bits(coder: IntegerCoder, codes: npt.NDArray[np.integer], block_frames: int) -> Iterator[Bits]:
    """What each code of an utterance costs by an integer model's frequencies, before they become bytes.

    Args:
        coder: of the model.
        codes: [K, T].
        block_frames: at which the model starts afresh.

    Yields:
        [K, up to block_frames] bits.
    """
    for start in range(0, codes.shape[1], block_frames):
        block = torch.from_numpy(codes[None, :, start : start + block_frames].astype(np.int64))
        pieces = []
        for begin, frequencies in coder.frequencies(block):
            rows = frequencies[0].cpu()  # [n, K, V], which add up to at most 2 ** 24: exactly
            own = block[0, :, begin : begin + len(rows)].T
            pieces.append((rows.sum(dim=-1).double() / rows.gather(-1, own[..., None])[..., 0].double()).log2())
        bits: Bits = torch.cat(pieces).T.numpy()
        yield bits


def _kinds(coder: IntegerCoder) -> list[tuple[BlockCoder | None, int | None]]:
    """The coder and frames per block of each kind of stream, in the order of `StreamBytes`."""
    order_0 = OrderZeroCoder(coder.num_codebooks, coder.codebook_size)
    return [(None, None), (order_0, order_0.max_frames), (coder, None)]


def _read_again(coder: IntegerCoder, utterances: Sequence[StoredUtterance], codec: CodecIdentity) -> None:
    """Raise BitstreamError unless streams of some utterances give their codes."""
    some = utterances[:: max(1, len(utterances) // NUM_READ_AGAIN)][:NUM_READ_AGAIN]
    for model, frames_per_block in _kinds(coder):
        streams = compress_many([each.encoded() for each in some], codec, model, frames_per_block)
        for each, read in zip(some, decompress_many(streams, model, codec=codec), strict=True):
            if not np.array_equal(read.codes[0].numpy(), each.codes):
                raise BitstreamError(f"{each.id}: its stream gives other codes than it was made of")
