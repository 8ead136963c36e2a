"""The command `quantone bench serve`."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import check_codec
from pipelines.commands.cli_bench import JsonFile


def bench_serve_command(
    codec: Annotated[str, typer.Argument(help="Any codec that can stream.")] = "speech_24khz",
    ray: Annotated[bool, typer.Option("--ray", help="Requests also under Ray Serve, by either proxy.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Everything for a moment only: orders of magnitude.")] = False,
    overload_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=3, help="Of requests at three times the capacity.")
    ] = None,
    streams_limit: Annotated[int, typer.Option(min=1, help="Listeners in real time that are tried at most.")] = 1024,
    json_file: JsonFile = None,
) -> None:
    """What the service can do on this machine, on one core and by loopback; callers have processes of their own.

    Requests beside an empty application in the same server; time to the first packet of a stream; listeners in real
    time that one core holds; what batching gains; and three times more requests than it can answer.

    Examples:
      quantone bench serve
      quantone bench serve --ray --json serve.json
    """
    check_codec(codec)
    from rich.console import Console

    from pipelines.benchmarking.bench_serve import ServeBench, bench_serve
    from pipelines.benchmarking.bench_serve_tables import serve_tables

    settings = ServeBench.quick() if quick else ServeBench()
    settings = dataclasses.replace(
        settings, ray=ray, most_streams=streams_limit, overload_s=overload_s or settings.overload_s
    )
    figures = bench_serve(codec, settings, say=lambda what: typer.echo(f"measuring {what} ...", err=True))
    cores = "one core for it, others for its callers" if figures.one_core else "all cores for it and its callers"
    typer.echo(f"{figures.codec}, one thread; {cores}")
    for table in serve_tables(figures):
        typer.echo()
        Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(figures.to_dict(), indent=2) + "\n")
