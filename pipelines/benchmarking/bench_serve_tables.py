"""The figures of the service's benchmark for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from pipelines.benchmarking.bench_overload import Overload
from pipelines.benchmarking.bench_serve import ServeFigures

_MIB = 2**20


def serve_tables(figures: ServeFigures) -> Iterator[Table]:
    """One for each question."""
    seconds = figures.utterance_s
    table = _table(
        f"requests; decode: {seconds:g} s of sound", "server", "request", "callers", "a second", "p50", "p99"
    )
    for speed in figures.requests:
        table.add_row(
            speed.server,
            speed.request,
            str(speed.callers),
            f"{speed.per_second:,.0f}" if speed.per_second >= 100 else f"{speed.per_second:.1f}",
            _ms(speed.p50_s),
            _ms(speed.p99_s),
        )
    yield table
    table = _table("time to the first packet", "frames in a message", "streams", "p50", "p99")
    for packets in figures.first_packets:
        table.add_row(str(packets.chunk_frames), str(packets.streams), _ms(packets.p50_s), _ms(packets.p99_s))
    yield table
    table = _table("listeners in real time without a break", "frames in a message", "streams", "bound by", "tried")
    for held in figures.real_time:
        tried = ", ".join(f"{trial.streams}{'' if trial.underruns == 0 else '!'}" for trial in held.trials)
        table.add_row(str(held.chunk_frames), str(held.held), held.bound_by, tried)
    yield table
    table = _table("batching, x real time", "frames in a push", "streams", "together", "one at a time", "gain")
    for gain in figures.batching:
        table.add_row(
            str(gain.chunk_frames),
            str(gain.streams),
            f"{gain.together:.1f}",
            f"{gain.one_at_a_time:.1f}",
            f"{gain.gain:.2f}",
        )
    yield table
    yield _overload_table(figures.overload)


def _overload_table(overload: Overload) -> Table:
    table = _table(f"overload, {overload.seconds:g} s", "", f"peak, {overload.callers} callers", "overload", "ratio")
    table.add_row("asked a second", f"{overload.peak_per_second:.1f}", f"{overload.asked_per_second:.1f}", "")
    table.add_row(
        "answered a second",
        f"{overload.peak_per_second:.1f}",
        f"{overload.goodput:.1f}",
        f"{overload.goodput_ratio:.2f}",
    )
    table.add_row("p50 of answers", _ms(overload.peak_p50_s), _ms(overload.accepted_p50_s), "")
    table.add_row(
        "p99 of answers", _ms(overload.peak_p99_s), _ms(overload.accepted_p99_s), f"{overload.latency_ratio:.2f}"
    )
    table.add_row("refused with 429", "0", f"{overload.refused:,}", "")
    table.add_row("without Retry-After", "", str(overload.without_retry_after), "")
    refusals = (_ms(value) for value in (overload.refused_p50_s, overload.refused_p99_s, overload.refused_max_s))
    table.add_row("p50, p99, most of refusals", "", ", ".join(refusals), "")
    others = ", ".join(f"{status}: {count}" for status, count in overload.other_answers.items())
    table.add_row("other answers", "0", others or "0", "")
    first, last, after = overload.memory[0] / _MIB, overload.memory[-1] / _MIB, overload.memory_after / _MIB
    table.add_row("memory, MiB", f"{first:.0f}", f"{last:.0f}, then {after:.0f}", f"{1 + overload.memory_growth:.3f}")
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(box=None, header_style="bold", title=title, title_justify="left", title_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
