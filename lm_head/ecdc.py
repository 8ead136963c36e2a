"""The original EnCodec files, `.ecdc`: segments of codes behind a header, packed or coded with a language model.

Interchangeable with the `encodec` package in both directions. What the format lacks: it has no checksum, so damage to
packed codes goes unnoticed, and it names a codec but not its weights. Files coded with a language model are as
portable as `lm_head.encodec_lm` says, which is not far; where they are read with other probabilities, the end of a
segment hardly ever fits, and that is an error. The package cannot read every file that it or we write: for some
numbers of whole frames (21 at 24 kHz, for one) it expects one frame more than there is, a rounding error in its
reader. Ours reads those, too.

Source: `encodec.compress` of the `encodec` package.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import torch

from lm_head.arithmetic_coder import ArithmeticDecoder, ArithmeticEncoder, BitReader, original_cdfs
from lm_head.bit_packing import pack_bits, packed_size, unpack_bits
from lm_head.ecdc_header import ECDC_SPECS, SCALE, EcdcHeader, parse_ecdc_header
from lm_head.encodec_lm import OriginalLM
from lm_head.token_lm import TokenLM
from tokenizer.codec import Codec
from tokenizer.door import checked_codes, checked_scales
from tokenizer.encoded import Encoded
from tokenizer.errors import BitstreamError, CheckpointError, CodesError
from tokenizer.segments import frames_by_segment

Codes = npt.NDArray[np.integer]
_CONTEXT_SECONDS = 3.5
_LEAST_SCALE, _LARGEST_SCALE = 2.0**-149, float(np.finfo(np.float32).max)  # that float32 holds


@dataclass(frozen=True, slots=True)
class EcdcSegment:
    """Codes of one segment of a file; of the whole file for codecs without segments."""

    codes: Codes  # [K, T] in [0, V)
    scale: float | None  # loudness, which the file keeps as float32; None for codecs that do not normalise


@dataclass(frozen=True, slots=True)
class EcdcFile:
    """What a file holds."""

    model_name: str  # "encodec_24khz" or "encodec_48khz"
    num_samples: int
    segments: tuple[EcdcSegment, ...]


def write_ecdc(stream: BinaryIO, file: EcdcFile, *, lm: TokenLM | None = None) -> None:
    """Write a file as the original does.

    Args:
        stream: where to.
        file: the codes.
        lm: codes the codes, one frame after another; None packs them.

    Raises:
        CodesError: the codes are not those of such a file.
        CheckpointError: the language model is not one for such codes.
    """
    num_codebooks = _checked_levels(file)
    header = EcdcHeader(file.model_name, file.num_samples, num_codebooks, lm is not None)
    coder = _coder(header, lm)
    pieces = [header.to_bytes()]
    for segment in file.segments:
        if segment.scale is not None:
            pieces.append(SCALE.pack(segment.scale))
        pieces.append(coder.encode(segment.codes))
    stream.write(b"".join(pieces))


def read_ecdc(stream: BinaryIO, *, lm: TokenLM | None = None) -> EcdcFile:
    """Read a file to its end.

    Args:
        stream: at the start of a file, with nothing behind it.
        lm: which the file was written with; not used where it was written without.

    Returns:
        The file, its codes as uint16.

    Raises:
        BitstreamError: not such a file, damaged, cut off, too long, or written with a language model that is missing
            or another one.
        CheckpointError: the language model is not one for such codes.
    """
    data = stream.read()
    header, start = parse_ecdc_header(data)
    if header.uses_lm and lm is None:
        raise BitstreamError("the file was written with a language model, and can only be read with the same one")
    coder = _coder(header, lm if header.uses_lm else None)
    segments = []
    for num_frames in frames_by_segment(header.spec, header.num_samples):
        scale = None
        if header.spec.has_scales:
            scale, start = _read_scale(data, start)
        codes, start = coder.decode(data, start, (header.num_codebooks, num_frames))
        segments.append(EcdcSegment(codes, scale))
    if start != len(data):
        raise BitstreamError(f"{len(data) - start} bytes more than the file's codes take")
    return EcdcFile(header.model_name, header.num_samples, tuple(segments))


def compress_ecdc(encoded: Encoded, codec: Codec, lm: TokenLM | None = None) -> bytes:
    """Codes of an EnCodec as a file of the original.

    Args:
        encoded: codes [1, K, T] of one waveform.
        codec: whose.
        lm: as for `write_ecdc`.

    Raises:
        CodesError: another codec than EnCodec, a batch, or codes that are not the codec's.
        CheckpointError: the language model is not one for such codes.
    """
    model_name, spec = _model_name(codec), codec.spec
    codes = checked_codes(encoded.codes, spec, torch.device("cpu"))
    if len(codes) != 1:
        raise CodesError(f"a file holds one waveform, these are codes of {len(codes)}")
    frames = frames_by_segment(spec, encoded.num_samples)
    if sum(frames) != codes.shape[-1]:
        raise CodesError(f"{encoded.num_samples} samples are {sum(frames)} frames, the codes have {codes.shape[-1]}")
    scales = checked_scales(encoded.scales, codes, spec, encoded.num_samples)
    loudness = [None] * len(frames) if scales is None else scales[0].tolist()
    pieces = (piece.numpy() for piece in torch.split(codes[0], frames, dim=-1))
    file = EcdcFile(model_name, encoded.num_samples, tuple(map(EcdcSegment, pieces, loudness)))
    stream = io.BytesIO()
    write_ecdc(stream, file, lm=lm)
    return stream.getvalue()


def decompress_ecdc(data: bytes, codec: Codec, lm: TokenLM | None = None) -> Encoded:
    """A file of the original as codes that an EnCodec decodes.

    Args:
        data: the whole file.
        codec: whose codes they are. The file only tells 24 kHz from 48 kHz, not one set of weights from another.
        lm: as for `read_ecdc`.

    Raises:
        BitstreamError: as `read_ecdc`, and for codes of the other EnCodec.
        CodesError: the codec is no EnCodec.
        CheckpointError: the language model is not one for such codes.
    """
    model_name = _model_name(codec)
    file = read_ecdc(io.BytesIO(data), lm=lm)
    if file.model_name != model_name:
        raise BitstreamError(f"codes of {file.model_name}, the codec is {model_name}")
    codes = np.concatenate([segment.codes for segment in file.segments], axis=1)
    scales = None
    if codec.spec.has_scales:
        scales = torch.tensor([[segment.scale for segment in file.segments]], dtype=torch.float32)
    return Encoded(torch.from_numpy(codes.astype(np.int64))[None], scales, file.num_samples)


class _SegmentCoder(Protocol):
    """Codes [K, T] of one segment to bytes, and back from where they start in a file."""

    def encode(self, codes: Codes) -> bytes: ...

    def decode(self, data: bytes, start: int, shape: tuple[int, int]) -> tuple[Codes, int]:
        """Codes of that shape, and where the bytes behind them start."""


class _PackedCodes:
    """Every code takes as many bits as it may need, one frame after another."""

    def __init__(self, bits_per_code: int) -> None:
        self._width = bits_per_code

    def encode(self, codes: Codes) -> bytes:
        return pack_bits(codes.T.ravel(), self._width)

    def decode(self, data: bytes, start: int, shape: tuple[int, int]) -> tuple[Codes, int]:
        num_codebooks, num_frames = shape
        end = start + packed_size(self._width, num_codebooks * num_frames)
        codes = unpack_bits(memoryview(data)[start:end], self._width, num_codebooks * num_frames)
        return codes.reshape(num_frames, num_codebooks).T, end


class _PredictedCodes:
    """Every code takes the fewer bits the more likely the language model finds it, given the frames before."""

    def __init__(self, lm: TokenLM) -> None:
        self._lm = OriginalLM(lm)

    def encode(self, codes: Codes) -> bytes:
        encoder = ArithmeticEncoder()
        probabilities, state = self._lm.begin(len(codes))
        for frame in codes.T.astype(np.int64):
            for code, cdf in zip(frame.tolist(), original_cdfs(probabilities), strict=True):
                encoder.push(code, cdf)
            probabilities, state = self._lm.step(torch.from_numpy(frame), state)
        return encoder.finish()

    def decode(self, data: bytes, start: int, shape: tuple[int, int]) -> tuple[Codes, int]:
        num_codebooks, num_frames = shape
        bits = BitReader(data, start)
        decoder = ArithmeticDecoder(bits)
        frames: list[npt.NDArray[np.uint16]] = []
        probabilities, state = self._lm.begin(num_codebooks)
        while len(frames) < num_frames:
            frame = [decoder.pull(cdf) for cdf in original_cdfs(probabilities)]
            frames.append(np.array(frame, np.uint16))
            probabilities, state = self._lm.step(torch.tensor(frame), state)
        decoder.finish()
        return np.stack(frames, axis=1), bits.position // 8


def _coder(header: EcdcHeader, lm: TokenLM | None) -> _SegmentCoder:
    """How a file's codes are coded.

    Raises:
        CheckpointError: a language model of other codes or another context, which the original could not use.
    """
    spec = header.spec
    if lm is None:
        return _PackedCodes(spec.bits_per_code)
    context_frames = int(_CONTEXT_SECONDS * spec.frame_rate)
    config = lm.config
    if (config.codebook_size, config.context_frames) != (spec.codebook_size, context_frames):
        raise CheckpointError(
            f"the language model has {config.codebook_size} codes and {config.context_frames} frames of context; files "
            f"of {header.model_name} need {spec.codebook_size} and {context_frames}"
        )
    if config.num_codebooks < header.num_codebooks:
        raise CheckpointError(f"codes of {header.num_codebooks} levels; the language model has {config.num_codebooks}")
    return _PredictedCodes(lm)


def _checked_levels(file: EcdcFile) -> int:
    """The levels that all segments have, if these are the segments of such a file."""
    if file.model_name not in ECDC_SPECS:
        raise CodesError(f"there are no files of {file.model_name!r}, only of {', '.join(ECDC_SPECS)}")
    spec = ECDC_SPECS[file.model_name]
    if file.num_samples < 1:
        raise CodesError(f"a file has at least 1 sample, not {file.num_samples}")
    for segment in file.segments:
        if segment.codes.ndim != 2 or not np.issubdtype(segment.codes.dtype, np.integer):
            raise CodesError(f"codes must be integers [K, T], not {segment.codes.dtype} {list(segment.codes.shape)}")
        checked_codes(torch.from_numpy(segment.codes.astype(np.int64))[None], spec, torch.device("cpu"))
        if (segment.scale is not None) != spec.has_scales or not _is_loudness(segment.scale):
            raise CodesError(f"a segment of {file.model_name} cannot have the scale {segment.scale}")
    num_codebooks = len(file.segments[0].codes) if file.segments else 0
    expected = [(num_codebooks, num_frames) for num_frames in frames_by_segment(spec, file.num_samples)]
    if [segment.codes.shape for segment in file.segments] != expected:
        raise CodesError(
            f"{file.num_samples} samples are {len(expected)} segments of equal levels, the first of "
            f"{expected[0][1]} frames"
        )
    return num_codebooks


def _is_loudness(scale: float | None) -> bool:
    return scale is None or _LEAST_SCALE <= scale <= _LARGEST_SCALE


def _read_scale(data: bytes, start: int) -> tuple[float, int]:
    if start + SCALE.size > len(data):
        raise BitstreamError(f"cut off: the scale of a segment is missing behind {len(data)} bytes")
    (scale,) = SCALE.unpack_from(data, start)
    if not _is_loudness(scale):
        raise BitstreamError(f"damaged: the scale of a segment is {scale}")
    return scale, start + SCALE.size


def _model_name(codec: Codec) -> str:
    """By which the format names a codec. Its networks count, too: other ones would make noise of its codes."""
    for name, spec in ECDC_SPECS.items():
        if codec.spec == spec:
            return name
    raise CodesError(
        f"codec {codec.name!r} is no EnCodec as published: .ecdc files are of {', '.join(ECDC_SPECS)} only"
    )
