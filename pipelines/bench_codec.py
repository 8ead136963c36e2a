"""Speed of a codec, alone or beside a reference implementation with the same weights, alternating in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from tokenizer import CheckpointError, Codec, Encoded, load_codec, mix_channels, read_audio, resample
from tokenizer.presets import PRESETS
from tokenizer.torchaudio_import import import_torchaudio

DEMO_SPEECH = Path(__file__).parent / "demo_speech"
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


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One direction at one batch size: medians over the rounds."""

    direction: str  # "encode" or "decode"
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
        settings: sizes, rounds and the device.

    Returns:
        One row for each direction and batch size, and a line on how far the codes agree.

    Raises:
        CheckpointError: no such codec, or the reference is not installed or lacks this model.
        ValueError: the codec does not have the bandwidth.
    """
    chosen = settings or BenchSettings()
    reference = None if against is None else _reference_model(codec, against)
    model = (load_codec(codec) if reference is None else _with_weights_of(reference, codec)).to(chosen.device)
    kbps = model.spec.level_kbps * model.spec.num_codebooks_at(chosen.bandwidth_kbps)
    contenders = [_ours(model, kbps)]
    if reference is not None:
        reference.to(chosen.device).set_target_bandwidth(kbps)
        contenders.append(Contender(reference.encode, reference.decode))
    rows: list[BenchRow] = []
    with _threads(chosen.threads), torch.inference_mode():
        for batch_size in chosen.batch_sizes:
            waveform = _speech(model, chosen.seconds, batch_size).to(chosen.device)
            rows += _rows(contenders, waveform, model.spec.sample_rate, chosen)
        agreement = _agreement(contenders, _speech(model, chosen.seconds, 1).to(chosen.device))
    return rows, f"{model.name} at {kbps:g} kbps, {chosen.threads} thread(s) of {chosen.device}; {agreement}"


def bench_table(rows: Sequence[BenchRow], against: str | None) -> Table:
    """The rows for a terminal."""
    table = Table(box=None, header_style="bold")
    for heading in ("", "batch", "x real time", *([f"{against}", "ratio"] if against else [])):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        cells = [row.direction, str(row.batch_size), f"{row.speed:.1f}"]
        if row.reference_speed is not None:
            cells += [f"{row.reference_speed:.1f}", f"{row.ratio:.2f}"]
        table.add_row(*cells)
    return table


def _ours(model: Codec, kbps: float) -> Contender:
    return Contender(lambda waveform: model.encode(waveform, bandwidth_kbps=kbps), model.decode)


def _reference_model(codec: str, against: str) -> Any:
    if against not in REFERENCES or not codec.startswith("encodec_") or codec not in PRESETS:
        raise CheckpointError(f"no reference {against!r} for {codec!r}: encodec has encodec_24khz and encodec_48khz")
    import_torchaudio()
    try:
        from encodec.model import EncodecModel
    except ImportError as error:
        raise CheckpointError("the reference is not installed: pip install encodec") from error
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(EncodecModel, codec.replace("encodec_", "encodec_model_"))(pretrained=False).eval()
        for layer in model.quantizer.vq.layers:
            layer._codebook.embed.normal_()  # noqa: SLF001 - as its own loader fills it
            layer._codebook.inited.fill_(1)  # noqa: SLF001
    return model


def _with_weights_of(reference: Any, name: str) -> Codec:
    with TemporaryDirectory() as directory:
        path = Path(directory) / f"{name}.th"
        torch.save(reference.state_dict(), path)
        return load_codec(path)


def _speech(model: Codec, seconds: float, batch_size: int) -> Tensor:
    """[B, C, S] of the bundled clips, end to end, another part of it in each row."""
    rate = model.spec.sample_rate
    clips = []
    for path in sorted(DEMO_SPEECH.rglob("*.*")):
        if path.suffix in (".wav", ".flac", ".ogg", ".opus", ".mp3"):
            waveform, source_rate = read_audio(path)
            clips.append(resample(mix_channels(waveform, model.spec.channels), source_rate, rate))
    everything = torch.cat(clips, dim=-1)
    length = round(seconds * rate)
    everything = everything.repeat(1, -(-length // everything.shape[-1]))
    return torch.stack([everything.roll(-row * rate, dims=-1)[:, :length] for row in range(batch_size)])


def _rows(
    contenders: Sequence[Contender], waveform: Tensor, sample_rate: int, settings: BenchSettings
) -> Iterator[BenchRow]:
    """Both directions of one batch. The contenders take turns, and who begins changes with every round."""
    audio_seconds = waveform.shape[0] * waveform.shape[-1] / sample_rate
    encoded = [contender.encode(waveform) for contender in contenders]  # also the warm-up
    for contender, codes in zip(contenders, encoded, strict=True):
        contender.decode(codes)
    for direction in ("encode", "decode"):
        speeds: list[list[float]] = [[] for _ in contenders]
        for turn in range(settings.rounds):
            order = range(len(contenders)) if turn % 2 == 0 else reversed(range(len(contenders)))
            for index in order:
                call = contenders[index].encode if direction == "encode" else contenders[index].decode
                begin = time.perf_counter()
                call(waveform if direction == "encode" else encoded[index])
                if settings.device != "cpu":
                    torch.cuda.synchronize()
                speeds[index].append(audio_seconds / (time.perf_counter() - begin))
        medians = [statistics.median(values) for values in speeds]
        ratio = statistics.median(a / b for a, b in zip(*speeds, strict=True)) if len(speeds) > 1 else None
        yield BenchRow(direction, waveform.shape[0], medians[0], medians[1] if len(medians) > 1 else None, ratio)


def _agreement(contenders: Sequence[Contender], waveform: Tensor) -> str:
    ours: Encoded = contenders[0].encode(waveform)
    if len(contenders) == 1:
        return f"{ours.codes.shape[1]} codebooks"
    theirs = torch.cat([codes for codes, _ in contenders[1].encode(waveform)], dim=-1)
    return f"{(ours.codes != theirs).sum().item()} of {theirs.numel():,} codes differ"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
