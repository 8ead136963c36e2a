"""Codes to the bytes of .qtn streams: blocks are entropy-coded, or packed where that is smaller or without a coder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lm_head.bit_packing import pack_bits
from lm_head.block_coder import BlockCoder, encode_in_lockstep
from lm_head.qtn import (
    CODEC_DIGITS,
    MAX_CODEBOOKS,
    MAX_FRAMES_PER_BLOCK,
    MAX_HOP_LENGTH,
    MODEL_DIGITS,
    Block,
    Codes,
    QtnHeader,
    block_crc,
    frame_major,
    write_qtn,
)
from tokenizer.codec import Codec
from tokenizer.encoded import Encoded
from tokenizer.errors import CodesError

BLOCK_SECONDS = 10

AnyCodes = Encoded | Tensor | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class CodecIdentity:
    """What a stream keeps or needs of a codec: enough where codes come from a dataset and no codec is loaded."""

    sha256: str
    codebook_size: int
    sample_rate: int  # Hz
    hop_length: int  # samples per frame

    @classmethod
    def of(cls, codec: Codec | CodecIdentity) -> CodecIdentity:
        """The identity of a loaded codec."""
        if isinstance(codec, CodecIdentity):
            return codec
        return cls(codec.sha256, codec.spec.codebook_size, codec.spec.sample_rate, codec.spec.hop_length)

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """From `Codec.card()`, as datasets keep it."""
        spec = card["spec"]
        return cls(card["sha256"], spec["codebook_size"], spec["sample_rate"], spec["hop_length"])

    @property
    def bits_per_code(self) -> int:
        """Bits of a packed code."""
        return self.codebook_size.bit_length() - 1

    @property
    def prefix(self) -> str:
        """What the header of a stream keeps of the sha256."""
        return self.sha256[:CODEC_DIGITS]

    @property
    def frames_per_block(self) -> int:
        """Frames of about ten seconds: 750 at 75 per second."""
        return max(1, min(MAX_FRAMES_PER_BLOCK, round(BLOCK_SECONDS * self.sample_rate / self.hop_length)))


@dataclass(frozen=True, slots=True)
class _Stream:
    """One input, checked."""

    codes: Codes  # [K, T]
    num_samples: int
    scales: tuple[float, ...] | None

    def header(self, codec: CodecIdentity, model: str | None, frames_per_block: int) -> QtnHeader:
        return QtnHeader(
            codec=codec.prefix,
            model=None if model is None else model[:MODEL_DIGITS],
            num_codebooks=self.codes.shape[0],
            codebook_size=codec.codebook_size,
            frames_per_block=frames_per_block,
            num_frames=self.codes.shape[1],
            num_samples=self.num_samples,
            scales=self.scales,
        )

    def blocks(self, frames_per_block: int) -> list[Codes]:
        return [self.codes[:, at : at + frames_per_block] for at in range(0, self.codes.shape[1], frames_per_block)]


def compress(
    codes: AnyCodes,
    codec: Codec | CodecIdentity,
    lm: BlockCoder | None = None,
    frames_per_block: int | None = None,
) -> bytes:
    """Codes of one waveform to the bytes of a .qtn stream, which `decompress` reads.

    Args:
        codes: what the codec's `encode` gave, of one waveform; or codes [K, T] alone, which then stand for whole frames
            (T * hop_length samples) of a codec without scales.
        codec: that made the codes.
        lm: the entropy coder; None packs bits. Blocks that it would not make smaller are packed all the same.
        frames_per_block: None for about 10 seconds, or as many as the coder takes.

    Raises:
        CodesError: wrong shape, type or range, or more levels than the coder or the format has.
        ValueError: a number of frames per block that the coder or the format does not take.
    """
    return compress_many([codes], codec, lm, frames_per_block)[0]


def compress_many(
    items: Sequence[AnyCodes],
    codec: Codec | CodecIdentity,
    lm: BlockCoder | None = None,
    frames_per_block: int | None = None,
) -> list[bytes]:
    """The streams that `compress` gives for each item, with the blocks of all of them in lockstep.

    Raises:
        CodesError, ValueError: as in `compress`.
    """
    identity = CodecIdentity.of(codec)
    frames_per_block = _checked_frames_per_block(frames_per_block, identity, lm)
    streams = [_checked_stream(item, identity, lm) for item in items]
    blocks = [stream.blocks(frames_per_block) for stream in streams]
    flat = [block for own in blocks for block in own]
    payloads = iter([None] * len(flat) if lm is None else encode_in_lockstep(lm, flat))
    contents = []
    for stream, own in zip(streams, blocks, strict=True):
        stored = [_smaller(block, next(payloads), identity.bits_per_code) for block in own]
        model = lm.identity if lm is not None and any(coded for _, coded in stored) else None
        header = stream.header(identity, model, frames_per_block)
        crc = header.crc()
        checks = [block_crc(crc, index, block) for index, block in enumerate(own)]
        contents.append(write_qtn(header, [Block(*pair, check) for pair, check in zip(stored, checks, strict=True)]))
    return contents


def _smaller(block: Codes, coded: bytes | None, bits_per_code: int) -> tuple[bytes, bool]:
    """A block's payload, and whether it is the entropy coder's."""
    packed = pack_bits(frame_major(block), bits_per_code)
    if coded is None or len(coded) >= len(packed):
        return packed, False
    return coded, True


def _checked_frames_per_block(wanted: int | None, identity: CodecIdentity, lm: BlockCoder | None) -> int:
    most = MAX_FRAMES_PER_BLOCK if lm is None else min(MAX_FRAMES_PER_BLOCK, lm.max_frames)
    if wanted is None:
        return min(identity.frames_per_block, most)
    if not 1 <= wanted <= most:
        raise ValueError(f"frames_per_block must be from 1 to {most}, not {wanted}")
    return wanted


def _checked_stream(item: AnyCodes, identity: CodecIdentity, lm: BlockCoder | None) -> _Stream:
    codes, num_samples, scales = _parts(item)
    if codes.ndim != 2 or codes.shape[0] == 0 or not np.issubdtype(codes.dtype, np.integer):
        raise CodesError(f"codes must be integers [K, T] of one waveform, not {codes.dtype} {list(codes.shape)}")
    num_codebooks, num_frames = codes.shape
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= identity.codebook_size):
        raise CodesError(
            f"codes range from {codes.min()} to {codes.max()}, allowed is 0 to {identity.codebook_size - 1}"
        )
    if num_codebooks > MAX_CODEBOOKS:
        raise CodesError(f"codes have {num_codebooks} levels, a .qtn stream at most {MAX_CODEBOOKS}")
    if lm is not None and (num_codebooks > lm.num_codebooks or identity.codebook_size != lm.codebook_size):
        raise CodesError(
            f"codes have {num_codebooks} levels of {identity.codebook_size}, "
            f"the entropy coder is for up to {lm.num_codebooks} of {lm.codebook_size}"
        )
    if num_samples is None:
        num_samples = num_frames * identity.hop_length
    if not 0 <= num_samples <= num_frames * MAX_HOP_LENGTH:
        raise CodesError(f"{num_samples} samples cannot be those of {num_frames} frames")
    return _Stream(codes.astype(np.uint16), num_samples, scales)


def _parts(item: AnyCodes) -> tuple[npt.NDArray[Any], int | None, tuple[float, ...] | None]:
    """Codes [K, T], samples and scales; what is not known is None."""
    if not isinstance(item, Encoded):
        return (item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)), None, None
    codes = item.codes.detach().cpu().numpy()
    if codes.ndim != 3 or len(codes) != 1:
        raise CodesError(f"a stream holds the codes of one waveform, [1, K, T], not {list(codes.shape)}")
    scales = None
    if item.scales is not None:
        values = item.scales.detach().to("cpu", torch.float32).flatten()
        if not bool(torch.isfinite(values).all()) or not bool((values > 0).all()):
            raise CodesError("scales must be positive and finite")
        scales = tuple(values.tolist())
    return codes[0], item.num_samples, scales
