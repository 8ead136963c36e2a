"""The command `quantone evaluate`: codecs in numbers, pages to listen on, and what listeners said there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidths, Quiet, check, check_codec
from pipelines.commands.cli_outcome import FAILED


def evaluate(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="CODEC FOLDER",
            help="A codec, and a folder of audio or a .jsonl manifest of tar shards; with --mushra, files of results.",
        ),
    ],
    against: Annotated[list[str] | None, typer.Option(help="Another codec to compare with; may be repeated.")] = None,
    bandwidth: Bandwidths = None,
    split: Annotated[str, typer.Option(help="Which clips of a manifest.")] = "valid",
    kind: Annotated[str | None, typer.Option(help="Only such clips of a manifest: speech, music, sound.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many clips.")] = None,
    opus: Annotated[bool, typer.Option(help="Opus beside it, where opusenc is installed.")] = True,
    num_workers: Annotated[int, typer.Option("--num-workers", "-j", min=1, help="Processes, one thread each.")] = 2,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write everything as JSON.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Folder for pages to listen on: a blind test, and an open one.")
    ] = None,
    listen: Annotated[int, typer.Option(min=1, help="Clips on these pages.")] = 8,
    mushra: Annotated[bool, typer.Option("--mushra", help="Read results of the blind test instead.")] = False,
    quiet: Quiet = False,
) -> None:
    """Score a codec on audio at several bandwidths, beside Opus and other codecs, in numbers and by ear.

    The blind test is a folder that works from the file system, without a network: send it, collect the CSV files.

    Examples:
      quantone evaluate speech_24khz speech/
      quantone evaluate runs/mine/codec manifest.jsonl --kind speech --against speech_24khz -o scores.json
      quantone evaluate speech_24khz speech/ --limit 50 --html listening/
      quantone evaluate --mushra anna.csv ben.csv -o listeners.json
    """
    if mushra:
        _mushra([Path(place) for place in places], output)
        return
    check(len(places) == 2, f"a codec and a folder are needed, not {len(places)} arguments")
    codec, source = places
    check(Path(source).exists() or "://" in source, f"{source}: no such file or directory")
    for name in (codec, *(against or ())):
        check_codec(name)
    from rich.console import Console

    from pipelines.evaluating.evaluate import evaluate_codec
    from pipelines.evaluating.evaluation_scores import write_scores
    from pipelines.evaluating.evaluation_table import TABLE_WIDTH, evaluation_notes, evaluation_table

    evaluation = evaluate_codec(
        codec,
        source,
        against=against or (),
        bandwidths_kbps=bandwidth or None,
        split=split,
        kind=kind,
        limit=limit,
        with_opus=opus,
        num_workers=num_workers,
        progress=not quiet,
    )
    Console(width=max(Console().width, TABLE_WIDTH)).print(evaluation_table(evaluation))
    for line in evaluation_notes(evaluation):
        typer.echo(line)
    if output is not None:
        write_scores(evaluation, output)
    if html is not None:
        from pipelines.evaluating.listening_pages import write_listening_pages

        pages = write_listening_pages(evaluation, html, num_clips=listen)
        typer.echo(f"blind test: {pages.blind}\nopen page:  {pages.open}")


def _mushra(files: list[Path], output: Path | None) -> None:
    for path in files:
        check(path.is_file(), f"{path}: no such file")
    from rich.console import Console

    from pipelines.evaluating.mushra_results import read_ratings, summarize, summary_lines, summary_table, write_summary

    summary = summarize(read_ratings(files))
    for line in summary_lines(summary):
        typer.echo(line)
    if summary.rows:
        Console().print(summary_table(summary))
    if output is not None:
        write_summary(summary, output)
    if not summary.rows:
        raise typer.Exit(FAILED)
