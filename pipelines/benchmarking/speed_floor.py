"""The limit: the least time that counted work can take on a machine whose ceilings were measured.

Each layer takes at least its multiplications (less those that windows multiplied together save) at the rate of the
best matrix product, or its weights at the rate of the caches where each step reads them anew, whichever is longer;
layers follow one another. Nothing is charged for activations between layers, activation functions, mixtures of rows or
calls: a kernel may fuse them away. So no implementation with the same arithmetic comes below, but for what the
measured ceilings are too low by: the gap says what is left to gain.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from pipelines.benchmarking.machine_ceilings import Ceilings, Precision
from pipelines.benchmarking.operation_count import LayerWork, total_macs

# Of a weight that each step reads anew, as the smallest packing of our kernels has it: 24 bits for float32, else 8.
_WEIGHT_BYTES: dict[Precision, int] = {"fp32": 3, "half": 1, "int8": 1}


def layer_floor_s(layer: LayerWork, ceilings: Ceilings, precision: Precision, batch_size: int = 1) -> float:
    """Least seconds of a layer for a second of audio of one stream; a batch shares the reading of weights."""
    rate = ceilings.flops("int8" if layer.in_bytes else precision)
    multiplying = 2 * layer.least_macs / rate
    reading = layer.step_weights * _WEIGHT_BYTES[precision] / batch_size / ceilings.cache_bytes
    return max(multiplying, reading, layer.memory_bytes / ceilings.memory_bytes)


def floor_s(layers: Iterable[LayerWork], ceilings: Ceilings, precision: Precision, batch_size: int = 1) -> float:
    """Least seconds for a second of audio of one stream."""
    return sum(layer_floor_s(layer, ceilings, precision, batch_size) for layer in layers)


def limit(layers: Iterable[LayerWork], ceilings: Ceilings, precision: Precision, batch_size: int = 1) -> float:
    """The most times real time: seconds of audio, of all streams, a second."""
    return 1.0 / floor_s(layers, ceilings, precision, batch_size)


def limit_table(layers: list[LayerWork], ceilings: Ceilings, batch_size: int = 1) -> Table:
    """Work and least time by layer for a terminal; the last row is the sum and the limit."""
    table = Table(box=None, header_style="bold")
    for heading in ("layer", "MMAC / s of audio", "together", "share", "fp32 ms", "16-bit ms"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    everything, least = total_macs(layers), sum(layer.least_macs for layer in layers)
    for layer in layers:
        cells = [f"{layer.macs / 1e6:.2f}", f"{layer.least_macs / 1e6:.2f}", f"{layer.least_macs / least:.1%}"]
        cells += [f"{1000 * layer_floor_s(layer, ceilings, p, batch_size):.3f}" for p in ("fp32", "half")]
        table.add_row(layer.name, *cells)
    sums = [1000 * floor_s(layers, ceilings, p, batch_size) for p in ("fp32", "half")]
    milli = [f"{value:.3f}" for value in sums]
    table.add_row("all", f"{everything / 1e6:.2f}", f"{least / 1e6:.2f}", "100.0%", *milli, style="bold")
    table.add_row("x real time", "", "", "", *(f"{1000 / value:.0f}" for value in sums), style="bold")
    return table


def ceilings_line(ceilings: Ceilings) -> str:
    """In one line for people."""
    return (
        f"{ceilings.threads} thread(s): fp32 {ceilings.fp32_flops / 1e9:.0f} GFLOP/s, "
        f"bf16 {ceilings.bf16_flops / 1e9:.0f} GFLOP/s, int8 {ceilings.int8_flops / 1e9:.0f} GOP/s, "
        f"memory {ceilings.memory_bytes / 1e9:.0f} GB/s, "
        f"4 MiB of weights again and again {ceilings.cache_bytes / 1e9:.0f} GB/s"
    )
