"""One audio file to one compressed token file and back: .qtn, or .ecdc as the original EnCodec writes it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from lm_head.compression import CodecIdentity, compress
from lm_head.decompression import decompress, open_qtn, require_codec
from lm_head.ecdc import compress_ecdc, decompress_ecdc
from pipelines.recordings.stream_models import codec_to_read, coder_to_read, coder_to_write, lm_of_ecdc
from pipelines.storage import commit
from tokenizer import BitstreamError, Codec, Encoded, decode_file, encode_file, load_codec

STREAM = "-"  # stdin or stdout in place of a file
_ECDC_SUFFIX, _ECDC_MAGIC = ".ecdc", b"ECDC"
_IN_MEMORY = 64 * 2**20  # bytes of a stream from stdin; what is more goes to a temporary file


@dataclass(frozen=True, slots=True)
class FileSizes:
    """What one file costs compressed."""

    seconds: float  # of audio
    num_bytes: int  # of the compressed file, headers and CRCs included
    packed_bytes: int  # of its codes packed, without any header
    bits_per_code: int

    def __str__(self) -> str:
        kbps = 8 * self.num_bytes / 1000 / self.seconds if self.seconds else 0.0
        saved = 100 * (1 - self.num_bytes / self.packed_bytes) if self.packed_bytes else 0.0
        change = f"{saved:.1f} % less" if saved >= 0 else f"{-saved:.1f} % more"
        return (
            f"{self.seconds:.2f} s of audio, {self.num_bytes:,} bytes, {kbps:.2f} kbps, "
            f"{change} than its codes at {self.bits_per_code} bits each"
        )


def compress_file(
    source: str | Path,
    target: str | Path,
    *,
    codec: str = "speech_24khz",
    bandwidth_kbps: float | None = None,
    lm: str | None = None,
) -> FileSizes:
    """Encode an audio file and write its codes as .qtn, or as .ecdc if the name says so.

    Args:
        source: any audio that `encode_file` reads; "-" for stdin.
        target: appears whole or not at all; "-" for .qtn to stdout.
        codec: as `load_codec` takes it.
        bandwidth_kbps: None for all codebooks.
        lm: the language model behind the entropy coder: a bundled name, a directory, or "none" to pack bits. None takes
            the bundled one of the codec, if there is one; an .ecdc has none then.

    Raises:
        AudioError: a file that cannot be read.
        CheckpointError: a codec or language model that cannot be loaded.
        ValueError: a bandwidth that the codec does not have, or bytes for a terminal.
    """
    if str(target) == STREAM:
        _require_no_terminal()
    loaded = load_codec(codec)
    loaded.spec.num_codebooks_at(bandwidth_kbps)  # a wrong one is refused before the audio is read
    compressed = _ecdc_writer(loaded, lm) if Path(target).suffix == _ECDC_SUFFIX else _qtn_writer(loaded, lm)
    with _opened(source) as audio:
        encoded = encode_file(loaded, audio, bandwidth_kbps=bandwidth_kbps)
    content = compressed(encoded)
    if str(target) == STREAM:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        commit(str(Path(target).absolute()), content)
    return _sizes(encoded, loaded, content)


def decompress_file(
    source: str | Path,
    target: str | Path,
    *,
    codec: str | None = None,
    bandwidth_kbps: float | None = None,
    lm: str | None = None,
) -> FileSizes:
    """Decode a .qtn or .ecdc file to audio.

    Args:
        source: the compressed file; "-" for stdin.
        target: as in `decode_file`; "-" for a wav to stdout.
        codec: as `load_codec` takes it; None for the bundled one that the file names. An .ecdc needs it.
        bandwidth_kbps: at most that of the file; None for that of the file.
        lm: as in `compress_file`; None for the bundled one that the file names.

    Raises:
        BitstreamError: damaged, or written with a codec or language model that is not at hand.
        CodesError, ValueError: a bandwidth that the file or the codec does not have.
    """
    if str(target) == STREAM:
        _require_no_terminal()
    with _opened(source) as stream:
        content = stream.read()
    read = _decompress_qtn
    if content.startswith(_ECDC_MAGIC) or Path(source).suffix == _ECDC_SUFFIX:
        read = _decompress_ecdc
    try:
        loaded, encoded = read(content, codec, lm)
    except BitstreamError as error:  # which speaks of bytes, and names no file
        raise BitstreamError(f"{source}: {str(error).removeprefix('.qtn: ')}") from error
    if str(target) != STREAM:
        decode_file(loaded, encoded, target, bandwidth_kbps=bandwidth_kbps)
        return _sizes(encoded, loaded, content)
    with tempfile.TemporaryDirectory() as directory:  # a wav's header needs its length, a pipe cannot go back
        path = Path(directory, "decoded.wav")
        decode_file(loaded, encoded, path, bandwidth_kbps=bandwidth_kbps)
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return _sizes(encoded, loaded, content)


def _qtn_writer(codec: Codec, lm: str | None) -> Callable[[Encoded], bytes]:
    coder = coder_to_write(lm, codec)
    return lambda encoded: compress(encoded, codec, coder)


def _ecdc_writer(codec: Codec, lm: str | None) -> Callable[[Encoded], bytes]:
    loaded = lm_of_ecdc(lm)
    return lambda encoded: compress_ecdc(encoded, codec, loaded)


def _decompress_qtn(content: bytes, codec: str | None, lm: str | None) -> tuple[Codec, Encoded]:
    header = open_qtn(content).header
    loaded = codec_to_read(header, codec)
    require_codec(header, CodecIdentity.of(loaded))  # before a language model is loaded
    return loaded, decompress(content, coder_to_read(header, lm))


def _decompress_ecdc(content: bytes, codec: str | None, lm: str | None) -> tuple[Codec, Encoded]:
    if codec is None:
        raise ValueError("an .ecdc does not say whose codes it holds: name the codec's weights with --codec")
    loaded = load_codec(codec)
    return loaded, decompress_ecdc(content, loaded, lm_of_ecdc(lm))


class _Stdin(tempfile.SpooledTemporaryFile[bytes]):
    """A copy of stdin that can be read from its start: a pipe cannot go back."""

    name = "stdin"  # for error messages


@contextlib.contextmanager
def _opened(source: str | Path) -> Iterator[BinaryIO]:
    if str(source) != STREAM:
        with Path(source).open("rb") as file:
            yield file
        return
    with _Stdin(_IN_MEMORY) as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.seek(0)
        yield cast("BinaryIO", copy)


def _require_no_terminal() -> None:
    if sys.stdout.isatty():
        raise ValueError("bytes do not go to a terminal: name a file, or send them on (> or |)")


def _sizes(encoded: Encoded, codec: Codec, content: bytes) -> FileSizes:
    bits_per_code = codec.spec.bits_per_code
    packed_bytes = -(-encoded.codes.numel() * bits_per_code // 8)
    return FileSizes(encoded.num_samples / codec.spec.sample_rate, len(content), packed_bytes, bits_per_code)
