"""How fast a codec is on a GPU, in one call: python benchmarks/gpu.py [--codec NAME] [--json FILE].

Prints encoding and decoding in seconds of audio a second by precision and batch with the share of the card's measured
peak, how long one step of streams takes, and how many streams fit into real time. "fast" is the engine as
`Codec.with_precision` gives it, with its checks of what comes in; the other precisions are the torch modules alone.
Presets have random weights, which cost as much as trained ones. Exits with 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.benchmarking.operation_count import Direction, codec_work, total_macs
from tokenizer import Codec, Encoded, load_codec
from tokenizer.presets import PRESETS

PRECISIONS = ("fp32", "tf32", "bf16", "fast")
STEP_PRECISIONS = ("fp32", "fast")
NARROW = ("bf16", "fast")
GOAL = 20_000  # x real time, of EnCodec 24 kHz encoding in bf16 on one card


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBench:
    """What is measured."""

    device: str = "cuda"
    seconds: float = 10.0  # of audio in each row of a batch
    batch_sizes: Sequence[int] = (1, 8, 32, 128, 512)
    rounds: int = 5
    warm_ups: int = 5  # calls before each measurement: the engine records a graph in the third
    peak_size: int = 8192  # of square matrices
    chunk_frames: Sequence[int] = (1, 5)  # of a step of streams
    streams: Sequence[int] = tuple(2**power for power in range(15))


@dataclass(frozen=True, slots=True)
class Speed:
    """One direction, precision and batch."""

    direction: str
    precision: str
    batch_size: int
    x_real_time: float  # median
    share_of_peak: float  # of the matrix product's rate in this precision


@dataclass(frozen=True, slots=True)
class StepLatency:
    """One step of decoding streams side by side, from codes on the CPU to samples there."""

    precision: str
    chunk_frames: int
    streams: int
    p50_ms: float
    p99_ms: float
    real_time: bool  # whether 99 of 100 steps end before the next one is due


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--codec", default="encodec_24khz", help="a preset, or anything for load_codec that streams")
    parser.add_argument("--batch", type=int, action="append", help="rows in a batch; repeat it for several")
    parser.add_argument("--seconds", type=float, default=GpuBench().seconds)
    parser.add_argument("--rounds", type=int, default=GpuBench().rounds)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen, usual = parser.parse_args(arguments), GpuBench()
    if not torch.cuda.is_available():
        sys.stderr.write("there is no GPU here that torch can use: nothing was measured\n")
        return 2
    settings = GpuBench(seconds=chosen.seconds, rounds=chosen.rounds, batch_sizes=chosen.batch or usual.batch_sizes)
    codec = make_codec(chosen.codec).to(settings.device)
    card = torch.cuda.get_device_name()
    fast = codec.with_precision("fast").computed_by
    sys.stdout.write(f"{codec.name} on {card}, torch {torch.__version__}; fast is {fast}\n")
    speeds = [_told(speed) for speed in measure_speeds(codec, settings)]
    latencies = [_told(latency) for latency in measure_steps(codec, settings)]
    sys.stdout.write(summary(speeds, latencies))
    if chosen.json is not None:
        plain: dict[str, Any] = {"card": card, "codec": codec.name, "torch": torch.__version__, "fast": fast}
        plain["speeds"] = [dataclasses.asdict(row) for row in speeds]
        plain["steps"] = [dataclasses.asdict(row) for row in latencies]
        chosen.json.write_text(json.dumps(plain, indent=1) + "\n")
    return 0


def make_codec(name: str) -> Codec:
    """A codec by name; presets get random weights.

    Raises:
        ValueError: a codec without streams.
    """
    if name in PRESETS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            codec = Codec(PRESETS[name], name=name).eval().requires_grad_(requires_grad=False)
            codec.quantizer.set_codebooks(torch.randn_like(codec.quantizer.codebooks))
    else:
        codec = load_codec(name)
    if not codec.streamable:
        raise ValueError(f"codec {name!r} has no streams: its speed on a GPU is not measured here")
    return codec


def measure_speeds(codec: Codec, settings: GpuBench) -> Iterator[Speed]:
    """Both directions, all precisions and batches; waveforms and codes lie on the device.

    A batch that there is no memory for, or a type that a layer does not take, ends its precision and no other.
    """
    spec = codec.spec
    work: dict[Direction, float] = {
        direction: 2 * total_macs(codec_work(spec, direction, spec.num_codebooks)) for direction in ("encode", "decode")
    }
    frames = max(1, round(settings.seconds * float(spec.frame_rate)))
    audio_seconds = frames * spec.hop_length / spec.sample_rate
    for precision in PRECISIONS:
        with _precision(precision), torch.inference_mode():
            peak = peak_flops(precision, settings)
            encode, decode = networks_in(codec, precision)
            for batch_size in settings.batch_sizes:
                try:
                    samples = (batch_size, spec.channels, frames * spec.hop_length)
                    waveform = torch.randn(samples, device=settings.device) / 10
                    shape = (batch_size, spec.num_codebooks, frames)
                    codes = torch.randint(spec.codebook_size, shape, device=settings.device)
                    calls: dict[Direction, Callable[[], Tensor]] = {
                        "encode": partial(encode, waveform),
                        "decode": partial(decode, codes),
                    }
                    for direction, call in calls.items():
                        speed = batch_size * audio_seconds / _median_s(call, settings)
                        yield Speed(direction, precision, batch_size, speed, speed * work[direction] / peak)
                except RuntimeError as error:  # no memory, or no kernel for a type
                    reason = str(error).partition("\n")[0]
                    sys.stderr.write(f"{precision} ends before batch {batch_size}: {reason}\n")
                    break


def networks_in(codec: Codec, precision: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Encoding [B, C, S] and decoding [B, K, T] with the networks in a precision and the quantizer in float32."""
    if precision == "fast":
        return _engine_in(codec.with_precision("fast"))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    encoder, decoder = _as_type(codec.encoder, dtype), _as_type(codec.decoder, dtype)
    quantizer, levels = codec.quantizer, codec.spec.num_codebooks

    def encode(waveform: Tensor) -> Tensor:
        return quantizer.encode(encoder(waveform.to(dtype)).float(), levels)

    def decode(codes: Tensor) -> Tensor:
        waveform: Tensor = decoder(quantizer.decode(codes).to(dtype))
        return waveform.float()

    return encode, decode


def _engine_in(codec: Codec) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    def decode(codes: Tensor) -> Tensor:
        return codec.decode(Encoded(codes, None, codes.shape[-1] * codec.spec.hop_length))

    return lambda waveform: codec.encode(waveform).codes, decode


def peak_flops(precision: str, settings: GpuBench) -> float:
    """Of a large square matrix product in this precision, per second."""
    size = settings.peak_size
    dtype = torch.bfloat16 if precision in NARROW else torch.float32
    a, b = (torch.randn(size, size, device=settings.device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / _median_s(lambda: a @ b, settings)


def measure_steps(codec: Codec, settings: GpuBench) -> Iterator[StepLatency]:
    """Steps of more and more streams, until they take longer than real time allows."""
    for precision, chunk_frames in itertools.product(STEP_PRECISIONS, settings.chunk_frames):
        chosen = codec.with_precision("fast" if precision == "fast" else "plain")
        due_s = chunk_frames / float(codec.spec.frame_rate)
        for streams in settings.streams:
            try:
                took = _step_seconds(chosen, streams, chunk_frames, settings)
            except torch.OutOfMemoryError:
                break
            p50, p99 = statistics.median(took), sorted(took)[int(0.99 * len(took))]
            yield StepLatency(precision, chunk_frames, streams, 1000 * p50, 1000 * p99, p99 < due_s)
            if p99 >= due_s:
                break


def summary(speeds: Sequence[Speed], latencies: Sequence[StepLatency]) -> str:
    """The best of each, and whether the goal was reached."""
    lines = []
    for direction in ("encode", "decode"):
        best = max((row for row in speeds if row.direction == direction), key=lambda row: row.x_real_time)
        share = f"{best.share_of_peak:.1%} of the peak"
        lines.append(
            f"{direction}: {best.x_real_time:,.0f}x real time, {best.precision}, batch {best.batch_size}, {share}"
        )
    bf16 = [row.x_real_time for row in speeds if row.direction == "encode" and row.precision in NARROW]
    if bf16:
        lines.append(f"goal: {GOAL:,}x to encode in bf16; {max(bf16) / GOAL:.0%} of it")
    for precision, chunk_frames in dict.fromkeys((row.precision, row.chunk_frames) for row in latencies):
        own = [row for row in latencies if (row.precision, row.chunk_frames) == (precision, chunk_frames)]
        held = max((row.streams for row in own if row.real_time), default=0)
        alone = f"{own[0].p50_ms:.2f} ms alone"
        lines.append(f"{precision}, {chunk_frames} frame(s) a step: {alone}, {held} streams in real time")
    return "\n".join(lines) + "\n"


def _step_seconds(codec: Codec, streams: int, chunk_frames: int, settings: GpuBench) -> list[float]:
    spec = codec.spec
    shape = (streams, spec.num_codebooks, max(chunk_frames, codec.start_frames + 1))
    codes = torch.randint(spec.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    _, state = codec.decode_step(codes.to(settings.device), codec.decode_state(streams))
    took = []
    for _ in range(settings.warm_ups + 20 * settings.rounds):
        begin = time.perf_counter()
        samples, state = codec.decode_step(codes[..., :chunk_frames].to(settings.device), state)
        samples.cpu()  # waits for the device
        took.append(time.perf_counter() - begin)
    return took[settings.warm_ups :]


def _median_s(call: Callable[[], Tensor], settings: GpuBench) -> float:
    """Of one call, after some to warm up."""
    took = []
    for _ in range(settings.warm_ups + settings.rounds):
        _wait(settings.device)
        begin = time.perf_counter()
        call()
        _wait(settings.device)
        took.append(time.perf_counter() - begin)
    return statistics.median(took[settings.warm_ups :])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _as_type(network: nn.Module, dtype: torch.dtype) -> Any:
    return network if dtype == torch.float32 else copy.deepcopy(network).to(dtype)


@contextmanager
def _precision(name: str) -> Iterator[None]:
    """Whether float32 products may be rounded to TF32 inside the block."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _told(row: Any) -> Any:
    """The row, which is printed at once: a run takes minutes."""
    figures = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in dataclasses.astuple(row))
    sys.stdout.write("  ".join(figures) + "\n")
    sys.stdout.flush()
    return row


if __name__ == "__main__":
    sys.exit(main())
