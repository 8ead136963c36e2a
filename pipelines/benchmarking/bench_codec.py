"""Speed of a codec, alone or beside a reference implementation with the same weights, alternating in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from pipelines.benchmarking.bench_turns import take_turns, torch_threads
from pipelines.benchmarking.peer_codecs import encodec_model, with_weights_of
from pipelines.bundled_speech import bundled_speech
from tokenizer import CheckpointError, Codec, Encoded, load_codec
from tokenizer.engine import Precision
from tokenizer.presets import PRESETS

REFERENCES = ("encodec",)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is measured."""

    seconds: float = 10.0  # of audio in each row of a batch
    batch_sizes: Sequence[int] = (1, 8)
    bandwidth_kbps: float | None = None
    rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    precisions: Sequence[Precision] = ("plain",)  # each beside the reference


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One direction at one batch size: medians over the rounds."""

    direction: str  # "encode" or "decode"
    precision: Precision
    batch_size: int
    speed: float  # audio seconds per wall second
    reference_speed: float | None
    ratio: float | None  # median of the rounds' ratios, each of two runs that followed one another


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that encodes [B, C, S] and decodes what came out."""

    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Any]


def bench_codec(
    codec: str, *, against: str | None = None, settings: BenchSettings | None = None
) -> tuple[list[BenchRow], str]:
    """Measure encoding and decoding of the bundled speech.

    Args:
        codec: anything for `load_codec`; with `against`, a preset that the reference has.
        against: "encodec" builds that package's model with random weights and takes them over.
        settings: sizes, rounds, precisions and the device.

    Returns:
        One row for each direction, precision and batch size, and lines on how far codes and sound agree.

    Raises:
        CheckpointError: no such codec, or the reference is not installed or lacks this model.
        ValueError: the codec does not have the bandwidth.
    """
    chosen = settings or BenchSettings()
    reference = None if against is None else _reference_model(codec, against)
    model = (load_codec(codec) if reference is None else with_weights_of(reference, codec)).to(chosen.device)
    kbps = model.spec.level_kbps * model.spec.num_codebooks_at(chosen.bandwidth_kbps)
    theirs = None
    if reference is not None:
        reference.to(chosen.device).set_target_bandwidth(kbps)
        theirs = Contender(reference.encode, reference.decode)
    rows: list[BenchRow] = []
    lines = [f"{model.name} at {kbps:g} kbps, {chosen.threads} thread(s) of {chosen.device}"]
    with torch_threads(chosen.threads), torch.inference_mode():
        for batch_size in chosen.batch_sizes:
            waveform = bundled_speech(model.spec, chosen.seconds, batch_size).to(chosen.device)
            for precision in chosen.precisions:
                ours = _ours(model.with_precision(precision), kbps)
                contenders = [ours] if theirs is None else [ours, theirs]
                rows += _rows(contenders, precision, waveform, model.spec.sample_rate, chosen)
        waveform = bundled_speech(model.spec, chosen.seconds, 1).to(chosen.device)
        lines += [_agreement(model, precision, theirs, waveform, kbps) for precision in chosen.precisions]
    return rows, "\n".join(lines)


def bench_table(rows: Sequence[BenchRow], against: str | None) -> Table:
    """The rows for a terminal."""
    table = Table(box=None, header_style="bold")
    for heading in ("", " ", "batch", "x real time", *([f"{against}", "ratio"] if against else [])):
        table.add_column(heading, justify="right" if heading.strip() else "left")
    for row in rows:
        cells = [row.direction, row.precision, str(row.batch_size), f"{row.speed:.1f}"]
        if row.reference_speed is not None:
            cells += [f"{row.reference_speed:.1f}", f"{row.ratio:.2f}"]
        table.add_row(*cells)
    return table


def _ours(model: Codec, kbps: float) -> Contender:
    return Contender(lambda waveform: model.encode(waveform, bandwidth_kbps=kbps), model.decode)


def _reference_model(codec: str, against: str) -> Any:
    if against not in REFERENCES or not codec.startswith("encodec_") or codec not in PRESETS:
        raise CheckpointError(f"no reference {against!r} for {codec!r}: encodec has encodec_24khz and encodec_48khz")
    try:
        return encodec_model(codec)
    except ImportError as error:
        raise CheckpointError(f"the reference is not installed: {error}") from error


def _rows(
    contenders: Sequence[Contender], precision: Precision, waveform: Tensor, sample_rate: int, settings: BenchSettings
) -> Iterator[BenchRow]:
    """Both directions of one batch."""
    audio_seconds = waveform.shape[0] * waveform.shape[-1] / sample_rate
    encoded = [contender.encode(waveform) for contender in contenders]  # also the warm-up
    for contender, codes in zip(contenders, encoded, strict=True):
        contender.decode(codes)
    for direction in ("encode", "decode"):
        calls = [
            _timed(contender, waveform if direction == "encode" else codes, direction, audio_seconds)
            for contender, codes in zip(contenders, encoded, strict=True)
        ]
        medians, ratio = take_turns(calls, settings.rounds, settings.device)
        reference_speed = medians[1] if len(medians) > 1 else None
        yield BenchRow(direction, precision, waveform.shape[0], medians[0], reference_speed, ratio)


def _timed(contender: Contender, value: Any, direction: str, audio_seconds: float) -> Callable[[], float]:
    def call() -> float:
        (contender.encode if direction == "encode" else contender.decode)(value)
        return audio_seconds

    return call


def _agreement(model: Codec, precision: Precision, theirs: Contender | None, waveform: Tensor, kbps: float) -> str:
    """What a precision runs on, and how far it is from the reference, or from the plain form where there is none."""
    chosen = model.with_precision(precision)
    plain: Encoded = model.encode(waveform, bandwidth_kbps=kbps)
    codes = chosen.encode(waveform, bandwidth_kbps=kbps).codes
    expected = plain.codes
    if theirs is not None:
        expected = torch.cat([frames for frames, _ in theirs.encode(waveform)], dim=-1)
    line = f"{precision} ({chosen.computed_by}): {codes.shape[1]} codebooks, "
    line += f"{(codes != expected).sum().item()} of {expected.numel():,} codes differ"
    if precision == "plain":
        return line
    sound, other = model.decode(plain), chosen.decode(plain)
    snr_db = 10 * torch.log10(sound.square().sum() / (sound - other).square().sum())
    return f"{line}, {snr_db.item():.0f} dB from plain sound to the difference"
