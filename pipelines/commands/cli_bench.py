"""The commands `quantone bench ...`: speeds, beside a reference in the same run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidth, Bandwidths, Precision, Workers, check, check_codec, check_source
from pipelines.commands.cli_bench_suite import bench_all_command, bench_cost_command, bench_limit_command

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there as well.")]

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
    precision: Annotated[
        list[str] | None, typer.Option(help="plain, exact or fast; repeat it for several.", show_default="plain")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Encoding and decoding speed on the bundled speech, in seconds of audio per second.

    Both take turns in one run, with the same weights (random ones, which cost as much as trained ones).

    Examples:
      quantone bench codec speech_24khz
      quantone bench codec --against encodec
      quantone bench codec encodec_48khz --against encodec --bandwidth 6 --batch 1 --batch 8
      quantone bench codec --against encodec --precision exact --precision fast
    """
    codec = codec or ("encodec_24khz" if against else "speech_24khz")
    if against is None:
        check_codec(codec)
    from rich.console import Console

    from pipelines.benchmarking.bench_codec import BenchSettings, bench_codec, bench_table
    from tokenizer.engine import PRECISIONS

    unknown = set(precision or ()) - set(PRECISIONS)
    check(not unknown, f"--precision {', '.join(sorted(unknown))}: choose {', '.join(PRECISIONS)}")
    settings = BenchSettings(
        seconds=seconds,
        batch_sizes=tuple(batch or (1, 8)),
        bandwidth_kbps=bandwidth,
        rounds=rounds,
        threads=threads,
        device=device,
        precisions=[known for known in PRECISIONS if known in (precision or ["plain"])],
    )
    rows, summary = bench_codec(codec, against=against, settings=settings)
    Console().print(bench_table(rows, against))
    typer.echo(summary)
    _write_json(json_file, rows)


@bench.command("pipeline")
def bench_pipeline_command(
    source: Annotated[str | None, typer.Argument(help="Audio of any source; default: the bundled speech.")] = None,
    codec: Annotated[str, typer.Option(help="Bundled name, directory, file or hub name.")] = "speech_24khz",
    bandwidth: Bandwidth = None,
    precision: Precision = "exact",
    num_workers: Workers = None,
    batch_seconds: Annotated[float | None, typer.Option(min=0.1, help="Audio in one pass of the codec.")] = None,
    quality: Annotated[bool, typer.Option("--quality", help="The job decodes and compares as well.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="Of the bundled speech, repeated.")] = 30.0,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """The corpus job beside the bare codec on the same cores and batches, and what its workers spend their time on.

    Both take turns in one run. The bare codec reads nothing: its batches lie in memory. Starting is timed apart.

    Examples:
      quantone bench pipeline
      quantone bench pipeline speech/ --rounds 5 --json pipeline.json
    """
    if source is not None:
        check_source(source)
    check_codec(codec)
    from rich.console import Console

    from pipelines.benchmarking.bench_pipeline import bench_pipeline, pipeline_tables
    from pipelines.corpus.job_settings import BATCH_SECONDS, JobSettings

    settings = JobSettings(
        bandwidth_kbps=bandwidth,
        precision=precision,
        num_workers=num_workers,
        quality=quality,
        batch_seconds=batch_seconds or BATCH_SECONDS,
    )
    measured = bench_pipeline(source, codec=codec, settings=settings, minutes=minutes, rounds=rounds)
    hours = measured.audio_seconds / 3600
    typer.echo(
        f"{measured.codec} at {measured.bandwidth_kbps:g} kbps: {measured.num_inputs} inputs, "
        f"{measured.runs[0].num_errors} errors, {hours:.2f} h, "
        f"{measured.num_encoders} encoder(s) with one thread each"
    )
    for table in pipeline_tables(measured):
        Console().print(table)
    _write_json(json_file, measured)


@bench.command("lm")
def bench_lm_command(
    lm: Annotated[str, typer.Argument(help="Bundled name or directory of a language model.")] = "speech_24khz",
    against: Annotated[str | None, typer.Option(help="Reference to alternate with: encodec.")] = None,
    bandwidth: Bandwidths = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Audio in each stream.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Speed of entropy coding tokens of the bundled speech, in seconds of audio per second.

    The reference codes the same tokens with the same weights, one frame after another, as its compressor does.

    Examples:
      quantone bench lm
      quantone bench lm --against encodec --bandwidth 3 --bandwidth 12
    """
    check(against in (None, "encodec"), f"--against {against}: the reference is encodec")
    from rich.console import Console

    from pipelines.benchmarking.bench_lm import LMBenchSettings, bench_lm, lm_bench_table

    settings = LMBenchSettings(
        seconds=seconds,
        bandwidths_kbps=tuple(bandwidth or (3.0, 6.0, 12.0)),
        rounds=rounds,
        threads=threads,
        against=against is not None,
    )
    rows = bench_lm(lm, settings)
    Console().print(lm_bench_table(rows))
    _write_json(json_file, rows)


@bench.command("generate")
def bench_generate_command(
    lm: Annotated[str | None, typer.Argument(help="Language model; default: untrained ones of each layout.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Streams side by side; repeat it for several.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Tokens per second of generation, and the time to the first frames.

    Examples:
      quantone bench generate speech_24khz
      quantone bench generate --batch 1 --batch 8
    """
    from rich.console import Console

    from pipelines.benchmarking.bench_generate import GenerationBench, bench_generate, generation_table

    settings = GenerationBench(batch_sizes=tuple(batch or (1, 8)), rounds=rounds, threads=threads, device=device)
    speeds = bench_generate(lm, settings=settings)
    Console().print(generation_table(speeds))
    _write_json(json_file, speeds)


bench.command("all")(bench_all_command)
bench.command("limit")(bench_limit_command)
bench.command("cost")(bench_cost_command)


def _write_json(path: Path | None, measured: DataclassInstance | Sequence[DataclassInstance]) -> None:
    if path is None:
        return
    plain = [dataclasses.asdict(row) for row in measured] if isinstance(measured, Sequence) else measured
    path.write_text(json.dumps(plain if isinstance(plain, list) else dataclasses.asdict(plain), indent=2) + "\n")
