"""The start of an original EnCodec file: a magic word, a version, and JSON that says how to read the rest.

Source: `encodec.binary` and `encodec.compress` of the `encodec` package.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from lm_head.arithmetic_coder import fewest_bits
from tokenizer.errors import BitstreamError
from tokenizer.presets import PRESETS
from tokenizer.spec import CodecSpec

ECDC_SPECS: dict[str, CodecSpec] = {name: PRESETS[name] for name in ("encodec_24khz", "encodec_48khz")}
SCALE = struct.Struct("!f")  # of a segment, before its codes

_START = struct.Struct("!4sBI")  # magic, version, bytes of JSON
_MAGIC, _VERSION = b"ECDC", 0
_MAX_JSON_BYTES = 2**16  # the original's has about 60
_KEYS: dict[str, type] = {"m": str, "al": int, "nc": int, "lm": bool}


@dataclass(frozen=True, slots=True)
class EcdcHeader:
    """What a file says about itself. The codec's weights are those that the name stands for: there is no hash."""

    model_name: str  # a key of ECDC_SPECS
    num_samples: int
    num_codebooks: int
    uses_lm: bool

    @property
    def spec(self) -> CodecSpec:
        """Of the codec that made the codes."""
        return ECDC_SPECS[self.model_name]

    def to_bytes(self) -> bytes:
        """As the original writes it, byte for byte."""
        values = (self.model_name, self.num_samples, self.num_codebooks, self.uses_lm)
        text = json.dumps(dict(zip(_KEYS, values, strict=True))).encode()
        return _START.pack(_MAGIC, _VERSION, len(text)) + text


def parse_ecdc_header(data: bytes) -> tuple[EcdcHeader, int]:
    """The header of a file, and how many bytes it takes.

    Nothing is allocated on its word: a file that is too short for the samples it claims is refused here.

    Args:
        data: the whole file.

    Raises:
        BitstreamError: another kind of file or version, damaged, cut off, or too short for what it claims.
    """
    if len(data) < _START.size:
        raise BitstreamError(f"not an .ecdc file, or cut off: {len(data)} bytes")
    magic, version, num_json_bytes = _START.unpack_from(data)
    if magic != _MAGIC:
        raise BitstreamError(f"not an .ecdc file: it starts with {magic!r}, not {_MAGIC!r}")
    if version != _VERSION:
        raise BitstreamError(f".ecdc version {version} is not known, only {_VERSION}")
    end = _START.size + num_json_bytes
    if num_json_bytes > _MAX_JSON_BYTES or end > len(data):
        raise BitstreamError(f"damaged or cut off: {num_json_bytes} bytes of header in a file of {len(data)}")
    header = _parse_json(data[_START.size : end])
    needed = _fewest_bytes(header)
    if needed > len(data) - end:
        raise BitstreamError(
            f"damaged or cut off: {header.num_samples} samples in {header.num_codebooks} levels take at least {needed} "
            f"bytes, there are {len(data) - end}"
        )
    return header, end


def _parse_json(text: bytes) -> EcdcHeader:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BitstreamError(f"damaged header: {error}") from error
    if not isinstance(values, dict) or any(type(values.get(key)) is not kind for key, kind in _KEYS.items()):
        raise BitstreamError(f"damaged header: no JSON object with {', '.join(_KEYS)} of the right types")
    header = EcdcHeader(values["m"], values["al"], values["nc"], values["lm"])
    if header.model_name not in ECDC_SPECS:
        raise BitstreamError(f"codes of {header.model_name!r:.60}; known are {', '.join(ECDC_SPECS)}")
    if not 1 <= header.num_codebooks <= header.spec.num_codebooks:
        raise BitstreamError(f"{header.num_codebooks} levels; {header.model_name} has 1 to {header.spec.num_codebooks}")
    if header.num_samples < 1:
        raise BitstreamError(f"{header.num_samples} samples; there must be at least 1")
    return header


def _fewest_bytes(header: EcdcHeader) -> int:
    """What the claimed samples take at the very least, reckoned without going through segments one by one."""
    spec = header.spec
    num_codes = -(-header.num_samples // spec.hop_length) * header.num_codebooks
    bits = fewest_bits(num_codes, spec.codebook_size) if header.uses_lm else num_codes * spec.bits_per_code
    num_segments = -(-header.num_samples // spec.segment.stride) if spec.segment is not None else 1
    return -(-bits // 8) + (SCALE.size * num_segments if spec.has_scales else 0)
