"""The commands `quantone bench all`, `limit` and `cost`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidth, check, check_codec

if TYPE_CHECKING:
    from pipelines.benchmarking.bench_row import Row


def bench_all_command(
    only: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only such rows, as in docs/benchmarks.md; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Everything for a moment only: whether it works.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Medians are over so many.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Of audio in each row of every batch.")] = None,
    codec: Annotated[str, typer.Option(help="Beside EnCodec: bundled name, directory or file.")] = "speech_24khz",
    root: Annotated[Path, typer.Option(help="A checkout: the run is kept there, and the page written.")] = Path(),
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the run there.")] = None,
    list_keys: Annotated[bool, typer.Option("--list", help="Say which rows there are, and measure nothing.")] = False,
) -> None:
    """Every benchmark in one run, each row beside others in turns, with its limit on this machine.

    A whole run takes about 25 minutes on two quiet cores. It is kept in benchmarks/results/, and docs/benchmarks.md
    is written again; runs of some rows, and quick ones, are only shown.

    Examples:
      quantone bench all
      quantone bench all --only codec/encodec_24khz/12kbps/batch1/threads1
      quantone bench all --only scan --rounds 5 --json scan.json
    """
    check_codec(codec)
    from dataclasses import replace

    from rich.console import Console

    from pipelines.benchmarking.bench_plan import planned_rows
    from pipelines.benchmarking.bench_suite import publish, run_suite
    from pipelines.benchmarking.suite_settings import SuiteSettings

    settings = SuiteSettings.quick(codec) if quick else SuiteSettings(codec=codec)
    if rounds is not None:
        settings = replace(settings, turns=replace(settings.turns, rounds=rounds, patience_s=float("inf")))
    if seconds is not None:
        settings = replace(settings, codec_seconds=seconds, seconds=seconds)
    if list_keys:
        typer.echo("\n".join(rows.key for rows in planned_rows(settings)))
        return
    results = run_suite(settings, only or (), command=_command(only, quick, rounds, seconds), show=_show)
    if only:
        from pipelines.benchmarking.bench_document import rows_table

        Console().print(rows_table(results.rows))
    for message in results.missing:
        typer.echo(f"not measured: {message}", err=True)
    if json_file is not None:
        json_file.write_text(results.to_json(), encoding="utf-8")
    if not only and not quick:
        typer.echo(f"{publish(results, root)}: {results.wall_seconds / 60:.1f} minutes; docs/benchmarks.md is written")


def bench_limit_command(
    codec: Annotated[str, typer.Argument(help="Bundled name, preset, directory or file.")] = "encodec_24khz",
    bandwidth: Bandwidth = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decoding instead of encoding.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Streams that share the reading of weights.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
) -> None:
    """The limit: multiplications and least time of every layer, by this machine's measured ceilings.

    Examples:
      quantone bench limit
      quantone bench limit speech_24khz --decode --batch 8
    """
    from tokenizer import load_codec
    from tokenizer.presets import PRESETS

    if codec not in PRESETS:
        check_codec(codec)
    from rich.console import Console

    from pipelines.benchmarking.machine_ceilings import measure_ceilings
    from pipelines.benchmarking.operation_count import codec_work
    from pipelines.benchmarking.speed_floor import ceilings_line, limit_table

    spec = PRESETS[codec] if codec in PRESETS else load_codec(codec).spec
    layers = codec_work(spec, "decode" if decode else "encode", spec.num_codebooks_at(bandwidth))
    ceilings = measure_ceilings(threads)
    typer.echo(ceilings_line(ceilings))
    Console().print(limit_table(layers, ceilings, batch))


def bench_cost_command(
    rate: Annotated[float, typer.Option(min=0.001, help="Seconds of audio a second of one machine, GPU or core.")],
    price: Annotated[float, typer.Option(min=0.0, help="Of an hour of it.")],
    hours: Annotated[float, typer.Option(min=0.001, help="Of audio.")] = 1000.0,
    codec: Annotated[str, typer.Option(help="Whose tokens are stored; a preset will do.")] = "speech_24khz",
    bandwidth: Bandwidth = None,
    machines: Annotated[int, typer.Option(min=1, help="At once.")] = 1,
    start_s: Annotated[float, typer.Option(min=0.0, help="Seconds until a machine works.")] = 120.0,
    inputs: Annotated[int, typer.Option(min=0, help="Files or shards that are read.")] = 0,
    storage_price: Annotated[float, typer.Option(min=0.0, help="Of a GB for a month.")] = 0.023,
    months: Annotated[float, typer.Option(min=0.0, help="That tokens are kept.")] = 1.0,
) -> None:
    """What a corpus will take and cost, from a rate that was measured: that of a small run, or of `bench pipeline`.

    Prices are in any one currency.

    Examples:
      quantone bench cost --rate 300 --price 0.05
      quantone bench cost --rate 20000 --price 3 --hours 1000000 --machines 16 --inputs 200000
    """
    from rich.console import Console
    from rich.table import Table

    from pipelines.corpus.cost_model import Corpus, MeasuredRates, Prices, estimate_cost
    from tokenizer import load_codec
    from tokenizer.presets import PRESETS

    if codec not in PRESETS:
        check_codec(codec)
    spec = PRESETS[codec] if codec in PRESETS else load_codec(codec).spec
    check(spec.family != "transformers", f"--codec {codec}: what its tokens take at rest was not measured")
    rates = MeasuredRates.of_codec(spec, rate, spec.num_codebooks_at(bandwidth), start_s)
    prices = Prices(machine_hour=price, storage_gb_month=storage_price, months=months)
    corpus = Corpus(hours=hours, num_inputs=inputs, num_machines=machines)
    table = Table(box=None, header_style="bold")
    table.add_column(f"{hours:,g} hours")
    table.add_column("", justify="right")
    for name, figure in estimate_cost(corpus, rates, prices).lines():
        table.add_row(name, figure)
    Console().print(table)


def _command(only: list[str] | None, quick: bool, rounds: int | None, seconds: float | None) -> str:
    parts = ["quantone bench all", *(f"--only {key}" for key in only or ())]
    parts += ["--quick"] * quick
    parts += [f"--{name} {value:g}" for name, value in (("rounds", rounds), ("seconds", seconds)) if value is not None]
    return " ".join(parts)


def _show(row: Row) -> None:
    """A row as soon as it is there: a whole run takes minutes."""
    figures = ", ".join(
        f"{result.contender} {result.value:.4g}" + ("" if result.ratio is None else f" ({result.ratio:.2f})")
        for result in row.results
    )
    typer.echo(f"{row.key} {row.work}, {row.unit}: {figures}", err=True)
