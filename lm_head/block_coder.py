"""What an entropy coder of blocks is, and how the blocks of many streams reach it in lockstep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from lm_head.qtn import Codes
from tokenizer.errors import BitstreamError

LOCKSTEP_BLOCKS = 64  # that a coder is given at once: bounds its memory, and what is decoded before it is checked


class BlockCoder(Protocol):
    """An entropy coder of blocks of codes: a model, and the tables that it was frozen with."""

    @property
    def identity(self) -> str:
        """Hex digits of the sha256 of all that its output depends on."""

    @property
    def num_codebooks(self) -> int:
        """The most levels that a block may have."""

    @property
    def codebook_size(self) -> int:
        """Codes are in [0, codebook_size)."""

    @property
    def max_frames(self) -> int:
        """The most frames that a block may have."""

    def encode(self, blocks: Sequence[Codes]) -> list[bytes]:
        """Blocks [K, T_i], T_i >= 1, all of the same K, to bytes that say nothing about one another."""

    def decode(self, payloads: Sequence[bytes], num_codebooks: int, num_frames: Sequence[int]) -> list[Codes]:
        """The blocks [K, T_i] behind the bytes.

        Raises:
            BitstreamError: bytes that are damaged, as far as it can tell, too many or too few.
        """


class CodedBlock(NamedTuple):
    """A block that waits for its decoder."""

    payload: bytes
    num_codebooks: int
    num_frames: int
    place: str  # for error messages, such as ".qtn: block 3"


def encode_in_lockstep(lm: BlockCoder, blocks: Sequence[Codes]) -> list[bytes]:
    """Payloads of blocks [K_i, T_i], in their order."""
    payloads = [b""] * len(blocks)
    for group in _groups([block.shape[0] for block in blocks]):
        for index, payload in zip(group, lm.encode([blocks[index] for index in group]), strict=True):
            payloads[index] = payload
    return payloads


def decode_in_lockstep(lm: BlockCoder, blocks: Sequence[CodedBlock]) -> Iterator[tuple[int, Codes]]:
    """Decoded blocks with their number in `blocks`, a group at a time: check each before the next one is asked for.

    Raises:
        BitstreamError: bytes that the coder cannot read, with the place of the block.
    """
    for group in _groups([block.num_codebooks for block in blocks]):
        members = [blocks[index] for index in group]
        try:
            decoded = _decode(lm, members)
        except Exception as error:  # a coder may fail over damaged bytes in any way
            if len(members) == 1:
                raise BitstreamError(f"{members[0].place} is damaged: {str(error) or type(error).__name__}") from error
            decoded = [codes for block in members for _, codes in decode_in_lockstep(lm, [block])]  # names the one
        yield from zip(group, decoded, strict=True)


def _decode(lm: BlockCoder, blocks: Sequence[CodedBlock]) -> list[Codes]:
    """Blocks of the same number of levels; what comes out is what was asked for, or an error."""
    num_codebooks = blocks[0].num_codebooks
    num_frames = [block.num_frames for block in blocks]
    decoded = lm.decode([block.payload for block in blocks], num_codebooks, num_frames)
    if [codes.shape for codes in decoded] != [(num_codebooks, frames) for frames in num_frames]:
        raise BitstreamError("not as many codes as the header says")
    return decoded


def _groups(num_codebooks: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the blocks that go together: of the same K, and not too many."""
    members: dict[int, list[int]] = {}
    for index, levels in enumerate(num_codebooks):
        members.setdefault(levels, []).append(index)
    for same in members.values():
        for start in range(0, len(same), LOCKSTEP_BLOCKS):
            yield same[start : start + LOCKSTEP_BLOCKS]
