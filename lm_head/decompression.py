"""The bytes of .qtn streams to codes: whole, many at once, or one block without the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_head.bit_packing import unpack_bits
from lm_head.block_coder import BlockCoder, CodedBlock, decode_in_lockstep
from lm_head.compression import CodecIdentity
from lm_head.qtn import MODEL_DIGITS, Block, Codes, QtnHeader, block_crc, read_qtn
from tokenizer.codec import Codec
from tokenizer.encoded import Encoded
from tokenizer.errors import BitstreamError


class QtnReader:
    """An open stream: its header, and any of its blocks. Build it with `open_qtn`."""

    def __init__(self, header: QtnHeader, blocks: Sequence[_StoredBlock], lm: BlockCoder | None) -> None:
        self.header, self._blocks, self._lm = header, blocks, lm

    def block(self, index: int) -> Codes:
        """Codes [K, T] of the frames from `index * header.frames_per_block` on; no other block is decoded.

        Raises:
            BitstreamError: damaged, or coded by a model that is not at hand.
            IndexError: there is no such block.
        """
        if not 0 <= index < len(self._blocks):
            raise IndexError(f"there is no block {index}, the stream has {len(self._blocks)}")
        return _decode([self._blocks[index]], self._lm)[0]


def open_qtn(data: bytes | memoryview, lm: BlockCoder | None = None) -> QtnReader:
    """Read a stream's header and where its blocks are; nothing is decoded.

    Args:
        data: the whole stream; a memory map will do.
        lm: the entropy coder of coded blocks; None reads packed ones only.

    Raises:
        BitstreamError: not a .qtn stream, or damaged as far as that shows without decoding.
    """
    header, blocks = _open(data, "")
    return QtnReader(header, blocks, lm)


def decompress(
    data: bytes | memoryview, lm: BlockCoder | None = None, *, codec: Codec | CodecIdentity | None = None
) -> Encoded:
    """A .qtn stream to the codes that it was made of.

    Args:
        data: the whole stream.
        lm: the entropy coder that wrote it; None reads streams without coded blocks.
        codec: that the codes must be of; None for any.

    Returns:
        Encoded with codes [1, K, T], ready for the codec's `decode`.

    Raises:
        BitstreamError: not a .qtn stream, damaged, or of another coder or codec.
    """
    return decompress_many([data], lm, codec=codec)[0]


def decompress_many(
    items: Sequence[bytes | memoryview], lm: BlockCoder | None = None, *, codec: Codec | CodecIdentity | None = None
) -> list[Encoded]:
    """What `decompress` gives for each stream, with the blocks of all of them in lockstep.

    Raises:
        BitstreamError: as in `decompress`; it names the stream if there are several.
    """
    streams = [_open(data, f"stream {number}: " if len(items) > 1 else "") for number, data in enumerate(items)]
    if codec is not None:
        for header, _ in streams:
            require_codec(header, CodecIdentity.of(codec))
    decoded = iter(_decode([block for _, blocks in streams for block in blocks], lm))
    return [_encoded(header, [next(decoded) for _ in blocks]) for header, blocks in streams]


def require_codec(header: QtnHeader, codec: CodecIdentity) -> None:
    """Raise BitstreamError unless the stream holds codes of this codec."""
    if header.codec != codec.prefix:
        raise BitstreamError(
            f".qtn: codes of the codec whose sha256 begins with {header.codec}, the one at hand is {codec.prefix}"
        )


@dataclass(frozen=True, slots=True)
class _StoredBlock:
    """A block with all that decoding it takes."""

    header: QtnHeader
    header_crc: int
    index: int
    block: Block
    stream: str  # for error messages

    def coded(self, lm: BlockCoder | None) -> CodedBlock | None:
        """What the entropy coder gets; None for a packed block. Raises BitstreamError if it is another coder's."""
        header, num_frames = self.header, self.header.block_frames(self.index)
        if not self.block.coded:
            return None
        if lm is None:
            raise BitstreamError(f"{self.stream}.qtn: coded by model {header.model}, and no entropy model is at hand")
        own = lm.identity[:MODEL_DIGITS]
        if own != header.model:
            raise BitstreamError(f"{self.stream}.qtn: coded by model {header.model}, the one at hand is {own}")
        fits = header.num_codebooks <= lm.num_codebooks and num_frames <= lm.max_frames
        if not fits or header.codebook_size != lm.codebook_size:
            raise BitstreamError(f"{self.stream}.qtn: model {own} has no blocks of this size")
        return CodedBlock(self.block.payload, header.num_codebooks, num_frames, self._place)

    def unpacked(self) -> Codes:
        """The codes [K, T] of a packed block."""
        header = self.header
        count = header.block_frames(self.index) * header.num_codebooks
        try:
            values = unpack_bits(self.block.payload, header.bits_per_code, count)
        except BitstreamError as error:
            raise BitstreamError(f"{self._place}: {error}") from error
        return values.reshape(-1, header.num_codebooks).T

    def checked(self, codes: Codes) -> Codes:
        """The same codes, if they are those that the CRC was made of."""
        if block_crc(self.header_crc, self.index, codes) != self.block.crc:
            raise BitstreamError(f"{self._place} is damaged: its codes do not match its CRC")
        return codes

    @property
    def _place(self) -> str:
        return f"{self.stream}.qtn: block {self.index}"


def _open(data: bytes | memoryview, name: str) -> tuple[QtnHeader, list[_StoredBlock]]:
    try:
        header, blocks = read_qtn(data)
    except BitstreamError as error:
        raise BitstreamError(f"{name}{error}") from error
    crc = header.crc()
    return header, [_StoredBlock(header, crc, index, block, name) for index, block in enumerate(blocks)]


def _decode(blocks: Sequence[_StoredBlock], lm: BlockCoder | None) -> list[Codes]:
    """Blocks of any streams, [K, T] each, in order."""
    decoded: dict[int, Codes] = {}
    pending: dict[int, CodedBlock] = {}
    for number, block in enumerate(blocks):
        coded = block.coded(lm)
        if coded is None:
            decoded[number] = block.checked(block.unpacked())
        else:
            pending[number] = coded
    if lm is not None:
        numbers = list(pending)
        for place, codes in decode_in_lockstep(lm, list(pending.values())):
            decoded[numbers[place]] = blocks[numbers[place]].checked(codes)
    return [decoded[number] for number in range(len(blocks))]


def _encoded(header: QtnHeader, blocks: Sequence[Codes]) -> Encoded:
    nothing = np.zeros((header.num_codebooks, 0), np.uint16)
    codes = np.concatenate([nothing, *blocks], axis=1)
    scales = None if header.scales is None else torch.tensor([header.scales], dtype=torch.float32)
    return Encoded(torch.from_numpy(codes.astype(np.int64))[None], scales, header.num_samples)
