"""What this machine can do at best, measured: products in three precisions, and bytes from memory and caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch

from pipelines.benchmarking.bench_turns import torch_threads

Precision = Literal["fp32", "half", "int8"]  # half: of 16 bits, bfloats or integers

_SIZES = ((1024, 1024, 1024), (2048, 512, 512), (512, 512, 2048))  # m, k, n: square, and as layers of networks have it
_RECURRENT = (2048, 512)  # of an LSTM with 512 channels, as EnCodec has it: 4 MiB that every frame reads
_REPEATS = 5  # ceilings are the best of so many, not the median


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The best of what was seen with so many threads."""

    threads: int
    fp32_flops: float  # per second
    bf16_flops: float
    int8_flops: float
    memory_bytes: float  # per second, read and written
    cache_bytes: float  # per second, of a matrix of 4 MiB that is read again and again

    def flops(self, precision: Precision) -> float:
        """Of a precision, or of a wider one where that is faster, as without instructions for the narrow one."""
        wider = {
            "fp32": (self.fp32_flops,),
            "half": (self.fp32_flops, self.bf16_flops, self.int8_flops / 2),  # two products of bytes in place of one
            "int8": (self.fp32_flops, self.bf16_flops, self.int8_flops),
        }
        return max(wider[precision])

    def at_best(self, other: Ceilings) -> Ceilings:
        """The higher of each, of two measurements with equally many threads."""
        names = [field.name for field in fields(self)]
        return Ceilings(**{name: max(getattr(self, name), getattr(other, name)) for name in names})


def measure_ceilings(threads: int, *, seconds: float = 0.3) -> Ceilings:
    """Measure for about thirteen times `seconds`.

    Args:
        threads: of torch.
        seconds: for each size of each test.
    """
    with torch_threads(threads), torch.inference_mode():
        return Ceilings(
            threads=threads,
            fp32_flops=max(_gemm_flops(torch.float32, seconds), _convolution_flops(seconds)),
            bf16_flops=_gemm_flops(torch.bfloat16, seconds),
            int8_flops=_integer_flops(seconds),
            memory_bytes=_stream_bytes(seconds),
            cache_bytes=_reread_bytes(seconds),
        )


def _gemm_flops(dtype: torch.dtype, seconds: float) -> float:
    rates = []
    for m, k, n in _SIZES:
        a, b, c = (torch.randn(*shape).to(dtype) for shape in ((m, k), (k, n), (m, n)))
        rates.append(2.0 * m * k * n / _best_seconds(partial(torch.mm, a, b, out=c), seconds))
    return max(rates)


def _convolution_flops(seconds: float) -> float:
    """Another library's matrix product: on some processors the one behind `torch.mm` is three times slower."""
    channels, side, taps = 256, 64, 3
    x, weight = torch.randn(1, channels, side, side), torch.randn(channels, channels, taps, taps)
    macs = weight.numel() * (side - taps + 1) ** 2
    return 2.0 * macs / _best_seconds(lambda: torch.conv2d(x, weight), seconds)


def _integer_flops(seconds: float) -> float:
    rates = []
    for m, k, n in _SIZES:
        a, b = (torch.randint(-8, 8, shape, dtype=torch.int8) for shape in ((m, k), (k, n)))
        rates.append(2.0 * m * k * n / _best_seconds(partial(torch._int_mm, a, b), seconds))  # noqa: SLF001
    return max(rates)


def _stream_bytes(seconds: float) -> float:
    """The triad of the STREAM test, a = b + s c, on 96 MiB: more than caches hold."""
    a, b, c = (torch.ones(8 * 2**20) for _ in range(3))
    return 3 * a.nbytes / _best_seconds(lambda: torch.add(b, c, alpha=0.5, out=a), seconds)


def _reread_bytes(seconds: float) -> float:
    """By a product with a vector, or a sum where that is faster."""
    matrix, vector, out = torch.randn(*_RECURRENT), torch.randn(_RECURRENT[1]), torch.empty(_RECURRENT[0])
    multiplied = _best_seconds(lambda: torch.mv(matrix, vector, out=out), seconds)
    return matrix.nbytes / min(multiplied, _best_seconds(matrix.sum, seconds))


def _best_seconds(call: Callable[[], object], seconds: float) -> float:
    """Of one call: the best of a few stretches, each of so many calls that the clock does not matter."""
    call()
    begin = time.perf_counter()
    call()
    once = time.perf_counter() - begin
    count = max(1, round(seconds / _REPEATS / max(once, 1e-6)))
    return min(_stretches(call, count))


def _stretches(call: Callable[[], object], count: int) -> Iterable[float]:
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        yield (time.perf_counter() - begin) / count
