"""Results for people: docs/benchmarks.md with charts, each row with its command, and a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from pipelines.benchmarking.bench_charts import bars_svg
from pipelines.benchmarking.bench_results import BenchResults
from pipelines.benchmarking.bench_row import Result, Row
from pipelines.benchmarking.speed_floor import ceilings_line

CHARTS = "benchmarks"  # a folder beside the document

_TITLES = {
    "codec": "Codec",
    "lm": "Entropy coding by the language model",
    "generate": "Generation",
    "scan": "Scanning a dataset",
    "pipeline": "The corpus job",
    "serve": "The service",
}
_HEAD = """# Benchmarks

This page is written by `quantone bench all` from [`benchmarks/results/`](../benchmarks/results); do not edit it.

- In a row all contenders do the same work in turns, another one first in each round; figures are medians.
  In brackets stands the ratio to the baseline, the median over the rounds. Trust it more than the figures beside
  it: other work on the machine moves both.
- Codecs get clips of 10 s. With shorter ones `encodec` and `transformers` are faster: what they write between two
  layers then stays in the cache (`--seconds 1` shows it).
- **limit** is what the machine could reach at most: the fewest multiplications that we know for every layer at the rate
  of its best matrix product, and weights and samples at the rate of its caches and memory, as measured in the same
  run. **gap** is how many times faster that is than what was measured. `quantone bench limit` shows it by layer. A
  product of ours that beats the best one of torch shows as a share of a few percent above 100.
- "Exact" gives the codes of float32, "fast" computes in 16 bits. Codecs of other packages have random weights, which
  cost as much as trained ones; ours have the weights of `encodec` beside them.
- The last column measures a row again.
"""


def write_document(runs: Sequence[BenchResults], path: Path) -> None:
    """Write the page and its charts.

    Args:
        runs: one of each machine.
        path: of the page; charts lie in a folder beside it.
    """
    charts = path.parent / CHARTS
    charts.mkdir(parents=True, exist_ok=True)
    for name, svg in charts_of(runs).items():
        (charts / name).write_text(svg, encoding="utf-8")
    path.write_text(document(runs), encoding="utf-8")


def document(runs: Sequence[BenchResults]) -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *(_section(run) for run in runs)])


def rows_table(rows: Sequence[Row]) -> Table:
    """Rows for a terminal, one line for each contender."""
    table = Table(box=None, header_style="bold")
    for heading in ("", "contender", "", "unit", "ratio", "limit", "gap"):
        table.add_column(heading, justify="left" if heading in ("contender", "unit") else "right")
    for row in rows:
        for index, result in enumerate(row.results):
            ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
            most = ("", "") if result.limit is None else (_number(result.limit), f"{result.gap:.1f}")
            where = _heading(row) if index == 0 else ""
            table.add_row(where, result.contender, _number(result.value), row.unit, ratio, *most)
    return table


def charts_of(runs: Sequence[BenchResults]) -> dict[str, str]:
    """SVG by file name."""
    charts: dict[str, str] = {}
    for run in runs:
        slug = run.machine.slug
        for name, rows in _crossed(run).items():
            bars = [(_where(row), [(result.contender, result.value) for result in row.results]) for row in rows]
            charts[f"{slug}-{name}.svg"] = bars_svg(f"{name}: seconds of audio a second", bars)
        shares = [
            (_heading(row), [(result.contender, 1 / result.gap) for result in row.results if result.gap])
            for row in run.rows
            if any(result.gap for result in row.results) and not _other_bandwidth(row)
        ]
        if shares:
            title = "Share of the machine's limit"
            charts[f"{slug}-limit.svg"] = bars_svg(title, shares, maximum=1.0, text="{:.0%}".format)
    return charts


def _section(run: BenchResults) -> str:
    machine = run.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    instructions = f" ({', '.join(machine.instructions)})" if machine.instructions else ""
    lines = [
        f"## {machine.processor}, {machine.cores} cores",
        "",
        f"`{run.command}` on {run.measured_on}, {run.wall_seconds / 60:.1f} minutes.",
        f"{machine.processor}{instructions}, {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system}.",
        f"Python {machine.python}, {packages}.",
        f"Load of the machine: {machine.load_before:g} before, {machine.load_after:g} after.",
        "",
        *(f"- {ceilings_line(ceilings)}" for ceilings in run.ceilings),
        *(f"- Not measured: {message}." for message in run.missing),
        "",
    ]
    for name in charts_of([run]):
        lines += [f"![{name.removesuffix('.svg')}]({CHARTS}/{name})", ""]
    for title, rows in _groups(run.rows).items():
        lines += [f"### {title}", "", *_table(rows), ""]
    return "\n".join(lines)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        kind, _, rest = row.key.partition("/")
        title = _TITLES.get(kind, kind)
        if kind == "codec":
            title = f"{title}: {rest.split('/')[0]}"
        groups.setdefault(f"{title}, {row.unit}", []).append(row)
    return groups


def _table(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(result.contender for row in rows for result in row.results))
    limited = any(result.limit for row in rows for result in row.results)
    heads = ["", *names, *(["limit (gap)"] if limited else []), "again"]
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * len(names)}{' --- |' * (limited + 1)}"
    for row in rows:
        by_name = {result.contender: result for result in row.results}
        cells = [_where(row), *(_cell(by_name.get(name), row.baseline) for name in names)]
        cells += [_limits(row)] * limited
        yield f"| {' | '.join([*cells, f'`{row.command}`'])} |"


def _cell(result: Result | None, baseline: str | None) -> str:
    if result is None:
        return ""
    ratio = f" ({result.ratio:.2f})" if result.ratio is not None and result.contender != baseline else ""
    return f"{_number(result.value)}{ratio}"


def _limits(row: Row) -> str:
    """Of ours; contenders that have the same limit share it."""
    ours = [result for result in row.results if result.limit and result.contender != row.baseline]
    named = [result for result in ours if not result.contender.startswith(("transformers", "DuckDB"))]
    return ", ".join(
        f"{result.contender.removeprefix('quantone').strip(', ') or 'quantone'} "
        f"{_number(result.limit or 0)} ({result.gap:.1f})"
        for result in named
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _where(row: Row) -> str:
    """What tells a row from the others of its group: "encode, 12kbps, batch 1, 1 thread"."""
    parts = row.key.split("/")[2 if row.key.startswith("codec/") else 1 :]
    said = [part.replace("kbps", " kbps").replace("batch", "batch ").replace("threads", "threads ") for part in parts]
    return ", ".join([row.work, *said])


def _heading(row: Row) -> str:
    parts = row.key.split("/")
    return ", ".join([parts[1] if parts[0] == "codec" else parts[0], _where(row)])


def _other_bandwidth(row: Row) -> bool:
    return row.key.startswith("codec/encodec") and "/12kbps/" not in row.key


def _crossed(run: BenchResults) -> dict[str, list[Row]]:
    """Rows of every batch and number of threads, by codec."""
    crossed: dict[str, list[Row]] = {}
    for row in run.rows:
        if row.key.startswith("codec/") and not _other_bandwidth(row):
            crossed.setdefault(row.key.split("/")[1], []).append(row)
    return crossed
