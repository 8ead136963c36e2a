"""Speed of entropy coding by the token language model, beside the `encodec` package with the same weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from lm_head import load_coder, read_lm_card
from lm_head.encodec_lm import original_tensors
from lm_head.integer_coder import IntegerCoder
from lm_head.lm_checkpoint import load_token_lm
from pipelines.benchmarking.bench_turns import take_turns, torch_threads
from pipelines.bundled_speech import bundled_speech
from tokenizer import CheckpointError, Codec, load_codec
from tokenizer.torchaudio_import import import_torchaudio

Codes = NDArray[np.uint16]
STREAMS = 8  # that are decoded in lockstep


@dataclass(frozen=True, slots=True)
class LMBenchSettings:
    """What is measured."""

    seconds: float = 10.0  # of audio in a stream
    bandwidths_kbps: Sequence[float] = (3.0, 6.0, 12.0)
    rounds: int = 5
    threads: int = 1
    against: bool = True


@dataclass(frozen=True, slots=True)
class LMBenchRow:
    """One direction at one bandwidth: medians over the rounds, in seconds of audio per second."""

    direction: str
    bandwidth_kbps: float
    speed: float
    reference_speed: float | None
    ratio: float | None
    bits_per_code: float


def bench_lm(lm: str, settings: LMBenchSettings | None = None) -> list[LMBenchRow]:
    """Measure compression and decompression of tokens of the bundled speech.

    Args:
        lm: anything for `load_coder`.
        settings: sizes and rounds.

    Returns:
        Three rows for each bandwidth: compress, decompress one stream, decompress streams in lockstep (the reference
        knows only one at a time).

    Raises:
        CheckpointError: no such model, its codec is not to be had, or the reference is not installed.
        ValueError: the codec does not have a bandwidth.
    """
    chosen = settings or LMBenchSettings()
    coder, codec = load_coder(lm), _codec_of(lm)
    reference = _Reference(lm) if chosen.against else None
    rows: list[LMBenchRow] = []
    with torch_threads(chosen.threads), torch.inference_mode():
        codes = codec.encode(bundled_speech(codec.spec, chosen.seconds, STREAMS)).codes  # [B, K, T]
        for kbps in chosen.bandwidths_kbps:
            rows += _rows(coder, reference, codec, codes[:, : codec.spec.num_codebooks_at(kbps)], chosen)
    return rows


def lm_bench_table(rows: Sequence[LMBenchRow]) -> Table:
    """The rows for a terminal."""
    against = any(row.reference_speed is not None for row in rows)
    table = Table(box=None, header_style="bold")
    for heading in ("", "kbps", "bits per code", "x real time", *(("encodec", "ratio") if against else ())):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        cells = [row.direction, f"{row.bandwidth_kbps:g}", f"{row.bits_per_code:.2f}", f"{row.speed:.1f}"]
        if row.reference_speed is not None:
            cells += [f"{row.reference_speed:.2f}", f"{row.ratio:.1f}"]
        table.add_row(*cells)
    return table


def _codec_of(lm: str) -> Codec:
    card = read_lm_card(lm).codec
    codec = load_codec(str(card["name"]))
    if codec.sha256 != card["sha256"]:
        raise CheckpointError(f"the language model {lm!r} is of another codec than {card['name']!r} here")
    return codec


def _rows(
    coder: IntegerCoder, reference: _Reference | None, codec: Codec, codes: Tensor, settings: LMBenchSettings
) -> list[LMBenchRow]:
    """All directions at one number of levels; the first calls warm up, and are checked."""
    levels, frame_rate = codes.shape[1], float(codec.spec.frame_rate)
    blocks = [row.numpy().astype(np.uint16) for row in codes]
    payloads = coder.encode(blocks)
    lengths = [block.shape[1] for block in blocks]
    if not all(np.array_equal(*pair) for pair in zip(coder.decode(payloads, levels, lengths), blocks, strict=True)):
        raise CheckpointError("the language model does not read what it wrote: do not use it on this machine")
    bits = len(payloads[0]) * 8 / blocks[0].size
    seconds = lengths[0] / frame_rate
    ours: dict[str, Callable[[], float]] = {
        "compress": _timed(lambda: coder.encode(blocks[:1]), seconds),
        "decompress": _timed(lambda: coder.decode(payloads[:1], levels, lengths[:1]), seconds),
        f"decompress {STREAMS} streams": _timed(lambda: coder.decode(payloads, levels, lengths), STREAMS * seconds),
    }
    rows = []
    for direction, call in ours.items():
        calls = [call]
        if reference is not None:
            # All of the stream: the more context the model has, the slower it is, the original as well as ours.
            calls.append(reference.call(direction, codes[:1], seconds))
        speeds, ratio = take_turns(calls, settings.rounds)
        reference_speed = speeds[1] if reference is not None else None
        rows.append(LMBenchRow(direction, codec.spec.level_kbps * levels, speeds[0], reference_speed, ratio, bits))
    return rows


def _timed(call: Callable[[], Any], work: float) -> Callable[[], float]:
    def timed() -> float:
        call()
        return work

    return timed


class _Reference:
    """Model and coder of the `encodec` package, as its compress_to_file and decompress_from_file run them."""

    def __init__(self, lm: str) -> None:
        import_torchaudio()
        try:
            from encodec.model import LMModel
            from encodec.quantization import ac
        except ImportError as error:
            raise CheckpointError("the reference is not installed: pip install encodec") from error
        model = load_token_lm(lm)
        config, self._coding = model.config, ac
        self._model = LMModel(
            config.num_codebooks,
            config.codebook_size,
            config.dim,
            num_layers=config.num_layers,
            past_context=config.context_frames,
            num_heads=config.num_heads,
            hidden_scale=config.hidden_dim / config.dim,
        ).eval()
        self._model.load_state_dict(original_tensors(model))

    def call(self, direction: str, codes: Tensor, seconds: float) -> Callable[[], float]:
        """One direction for codes [1, K, T]."""
        stream = self._compress(codes)
        if direction == "compress":
            return _timed(lambda: self._compress(codes), seconds)
        return _timed(lambda: self._decompress(stream, codes.shape), seconds)

    def _compress(self, codes: Tensor) -> io.BytesIO:
        stream = io.BytesIO()
        coder = self._coding.ArithmeticCoder(stream)
        states, offset, previous = None, 0, torch.zeros_like(codes[..., :1])
        for frame in range(codes.shape[-1]):
            probabilities, states, offset = self._model(previous, states, offset)
            previous = 1 + codes[..., frame : frame + 1]
            for level, code in enumerate(codes[0, :, frame].tolist()):
                coder.push(code, self._cdf(probabilities[0, :, level, 0], coder.total_range_bits))
        coder.flush()  # type: ignore[no-untyped-call]
        return stream

    def _decompress(self, stream: io.BytesIO, shape: torch.Size) -> None:
        stream.seek(0)
        decoder = self._coding.ArithmeticDecoder(stream)
        states, offset, previous = None, 0, torch.zeros(*shape[:2], 1, dtype=torch.int64)
        for _ in range(shape[-1]):
            probabilities, states, offset = self._model(previous, states, offset)
            cdfs = [self._cdf(probabilities[0, :, level, 0], decoder.total_range_bits) for level in range(shape[1])]
            previous = 1 + torch.tensor([decoder.pull(cdf) for cdf in cdfs])[None, :, None]

    def _cdf(self, probabilities: Tensor, bits: int) -> Any:
        return self._coding.build_stable_quantized_cdf(probabilities, bits, check=False)
