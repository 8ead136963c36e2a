"""The command line `quantone`: arguments in, one public function called, a few lines out.

What a command needs (torch, Ray, Polars) is imported when it runs, so that --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import (
    Bandwidth,
    Bandwidths,
    Dataset,
    Quiet,
    Workers,
    check_codec,
    check_dataset,
)
from pipelines.commands.cli_bench import bench
from pipelines.commands.cli_bench_serve import bench_serve_command
from pipelines.commands.cli_compress import compress, decompress
from pipelines.commands.cli_evaluate import evaluate
from pipelines.commands.cli_evaluate_lm import evaluate_lm_command
from pipelines.commands.cli_export import export
from pipelines.commands.cli_generate import generate
from pipelines.commands.cli_outcome import FAILED, run
from pipelines.commands.cli_serve import serve_command
from pipelines.commands.cli_tokenize import tokenize
from pipelines.commands.cli_train import train
from pipelines.commands.cli_verify import verify

app = typer.Typer(
    name="quantone",
    help="Audio to tokens for speech language models, at corpus scale, and back to sound.",
    epilog="Start here: quantone demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")
bench.command("serve")(bench_serve_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 where work failed, 2 for wrong usage, 130 for Ctrl-C."""
    return run(app, sys.argv[1:] if arguments is None else arguments, "quantone")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            typer.echo(f"quantone {metadata.version('quantone')}")
        except metadata.PackageNotFoundError:
            typer.echo("quantone (not installed: run from a checkout)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; works after any command too.")] = False,
) -> None:
    """Options of every command; --debug is taken out by `run` before they are parsed."""


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out-dir", "-o", help="Folder for everything it makes.")] = Path(
        "quantone-demo"
    ),
    codec: Annotated[str, typer.Option(help="Bundled name, directory, file or hub name.")] = "speech_24khz",
) -> None:
    """The whole round trip on bundled speech, with a report to look at.

    Tokenizes 28 short clips, queries the tokens, decodes them at two bandwidths and writes report.html.

    Examples:
      quantone demo
      quantone demo -o /tmp/demo
    """
    check_codec(codec)
    from pipelines.commands.demo import run_demo

    run_demo(out_dir, codec=codec)


@app.command()
def codecs() -> None:
    """Which codecs there are: rates, bandwidths, latency, parameters.

    The first ones are bundled. For the others bring weights: --codec takes a directory or file (EnCodec, DAC), a name
    on the Hugging Face hub, or hf:NAME for codecs that only transformers has.

    Examples:
      quantone codecs
      quantone codecs | grep dac
    """
    from rich.console import Console

    from pipelines.commands.codec_table import codecs_table
    from tokenizer import bundled_codecs

    Console().print(codecs_table())
    typer.echo(f"with weights: {', '.join(bundled_codecs())}; for the others bring yours, see docs/which_codec.md")


@app.command()
def decode(
    dataset: Dataset,
    out_dir: Annotated[Path, typer.Argument(help="Folder for the audio files.")],
    bandwidth: Bandwidth = None,
    codec: Annotated[str | None, typer.Option(help="Where the dataset's codec is now; default: where it was.")] = None,
    audio_format: Annotated[str, typer.Option("--format", "-f", help="wav, flac, ogg, opus or mp3.")] = "wav",
    ids: Annotated[list[str] | None, typer.Option("--id", help="Only this utterance; repeat it for several.")] = None,
    num_workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Tokens back to audio files, at any bandwidth up to the stored one.

    The files keep the folders of the originals.

    Examples:
      quantone decode tokens/ audio/
      quantone decode tokens/ audio-3kbps/ --bandwidth 3 --format flac
      quantone decode tokens/ audio/ --id speaker1/clip7.wav
    """
    check_dataset(dataset)
    if codec is not None:
        check_codec(codec)
    from pipelines.decoding.decode_job import decode_dataset

    summary = decode_dataset(
        dataset,
        out_dir,
        bandwidth_kbps=bandwidth,
        codec=codec,
        audio_format=audio_format,
        ids=ids or None,
        num_workers=num_workers,
        progress=not quiet,
    )
    for name, message in summary.errors.items():
        typer.echo(f"error: {name}: {message}", err=True)
    if not quiet:
        typer.echo(
            f"{out_dir}: {summary.num_files} files at {summary.bandwidth_kbps:g} kbps, {len(summary.errors)} errors; "
            f"{summary.audio_seconds / 3600:.2f} h of audio in {summary.wall_seconds:.1f} s"
        )
    if summary.errors:
        raise typer.Exit(FAILED)


@app.command()
def query(
    dataset: Dataset,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="Polars SQL; the tables are tokens and errors.")],
    output_format: Annotated[
        str | None, typer.Option("--format", "-f", help="table, csv, json or parquet; default: as OUTPUT ends.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")] = None,
) -> None:
    """Ask a token dataset by SQL.

    Examples:
      quantone query tokens/ "SELECT count(*), sum(duration_s) / 3600 AS hours FROM tokens"
      quantone query tokens/ "SELECT id, peak FROM tokens WHERE peak > 0.99 ORDER BY peak DESC LIMIT 20"
      quantone query tokens/ "SELECT * FROM errors" --format csv -o errors.csv
    """
    from pipelines.commands.frame_output import choose_format, write_frame

    chosen = choose_format(output_format, output)
    check_dataset(dataset)
    from pipelines.datasets.dataset import query_dataset

    write_frame(query_dataset(dataset, sql), chosen, output)


@app.command()
def report(
    dataset: Dataset,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    bandwidth: Bandwidths = None,
    num_examples: Annotated[int, typer.Option("--examples", "-n", min=0, help="Utterances to listen to.")] = 8,
) -> None:
    """One self-contained page: players, spectrograms, codebook use, quality, sizes, errors.

    Examples:
      quantone report tokens/ -o report.html
      quantone report tokens/ -o report.html --bandwidth 1.5 --bandwidth 6 --examples 12
    """
    check_dataset(dataset)
    from pipelines.reporting.report import write_report

    write_report(dataset, output, bandwidths_kbps=bandwidth or None, num_examples=num_examples)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


app.command()(evaluate)
app.command("evaluate-lm")(evaluate_lm_command)
app.command("serve")(serve_command)
for command in (tokenize, verify, export, compress, decompress, generate):
    app.command()(command)
