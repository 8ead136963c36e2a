"""The commands `quantone bench ...`: speeds, beside a reference in the same run."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli_arguments import Bandwidth, Bandwidths, check, check_codec

bench = typer.Typer(help="Measure speed.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Measure speed."""


@bench.command("codec")
def bench_codec_command(
    codec: Annotated[str, typer.Argument(help="Any codec; with --against, encodec_24khz or encodec_48khz.")] = "",
    against: Annotated[str | None, typer.Option(help="Reference to alternate with: encodec.")] = None,
    bandwidth: Bandwidth = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Rows in a batch; repeat it for several.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Audio in each row.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Encoding and decoding speed on the bundled speech, in seconds of audio per second.

    Both take turns in one run, with the same weights (random ones, which cost as much as trained ones).

    Examples:
      quantone bench codec speech_24khz
      quantone bench codec --against encodec
      quantone bench codec encodec_48khz --against encodec --bandwidth 6 --batch 1 --batch 8
    """
    codec = codec or ("encodec_24khz" if against else "speech_24khz")
    if against is None:
        check_codec(codec)
    from rich.console import Console

    from pipelines.bench_codec import BenchSettings, bench_codec, bench_table

    settings = BenchSettings(
        seconds=seconds,
        batch_sizes=tuple(batch or (1, 8)),
        bandwidth_kbps=bandwidth,
        rounds=rounds,
        threads=threads,
        device=device,
    )
    rows, summary = bench_codec(codec, against=against, settings=settings)
    Console().print(bench_table(rows, against))
    typer.echo(summary)


@bench.command("lm")
def bench_lm_command(
    lm: Annotated[str, typer.Argument(help="Bundled name or directory of a language model.")] = "speech_24khz",
    against: Annotated[str | None, typer.Option(help="Reference to alternate with: encodec.")] = None,
    bandwidth: Bandwidths = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Audio in each stream.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
) -> None:
    """Speed of entropy coding tokens of the bundled speech, in seconds of audio per second.

    The reference codes the same tokens with the same weights, one frame after another, as its compressor does.

    Examples:
      quantone bench lm
      quantone bench lm --against encodec --bandwidth 3 --bandwidth 12
    """
    check(against in (None, "encodec"), f"--against {against}: the reference is encodec")
    from rich.console import Console

    from pipelines.bench_lm import LMBenchSettings, bench_lm, lm_bench_table

    settings = LMBenchSettings(
        seconds=seconds,
        bandwidths_kbps=tuple(bandwidth or (3.0, 6.0, 12.0)),
        rounds=rounds,
        threads=threads,
        against=against is not None,
    )
    Console().print(lm_bench_table(bench_lm(lm, settings)))


@bench.command("generate")
def bench_generate_command(
    lm: Annotated[str | None, typer.Argument(help="Language model; default: untrained ones of each layout.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Streams side by side; repeat it for several.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Tokens per second of generation, and the time to the first frames.

    Examples:
      quantone bench generate speech_24khz
      quantone bench generate --batch 1 --batch 8
    """
    from rich.console import Console

    from pipelines.bench_generate import GenerationBench, bench_generate, generation_table

    settings = GenerationBench(batch_sizes=tuple(batch or (1, 8)), rounds=rounds, threads=threads, device=device)
    Console().print(generation_table(bench_generate(lm, settings=settings)))
