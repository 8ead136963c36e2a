"""The command `quantone export`: a token dataset as files that training frameworks read."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidth, Dataset, Quiet, check, check_dataset


def export(
    dataset: Dataset,
    out: Annotated[str, typer.Argument(help="New directory or s3:// URI to write; or one to go on with.")],
    layout: Annotated[
        str, typer.Option("--layout", "-l", help="flatten, coarse_first, delay or parallel.")
    ] = "flatten",
    file_format: Annotated[str, typer.Option("--format", "-f", help="parquet, webdataset or megatron.")] = "parquet",
    bandwidth: Bandwidth = None,
    num_codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-k", min=1, help="Levels to take, instead of a bandwidth.")
    ] = None,
    order: Annotated[str, typer.Option(help="audio, audio_text or text_audio.")] = "audio",
    text_tokenizer: Annotated[
        str | None, typer.Option("--text-tokenizer", metavar="FILE", help="A Hugging Face tokenizer.json.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the dataset that has the text.")] = "text",
    transcripts: Annotated[
        str | None, typer.Option(metavar="FILE", help="A .jsonl file of texts, which go before the column's.")
    ] = None,
    without_text: Annotated[str, typer.Option(help="A row without text is an error, or: skip.")] = "error",
    offset: Annotated[
        int | None, typer.Option(min=0, help="Id of the first audio token; default: behind the text vocabulary.")
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option("--special", metavar="NAME=ID", help="Id of a special token; repeatable.")
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Audio alone, without special tokens.")] = False,
    shard_mb: Annotated[float, typer.Option(min=0.001, help="Ids in one file, in megabytes.")] = 128.0,
    quiet: Quiet = False,
) -> None:
    """Token sequences for training frameworks, in a language model's layout.

    Beside the files, tokens.json says what every id means: decode_tokens turns a model's output back into codes.
    Interrupted? The same command goes on where it stopped, and gives the same bytes.

    Examples:
      quantone export tokens/ lm/ --bandwidth 3
      quantone export tokens/ lm/ -l delay --format webdataset --codebooks 4
      quantone export tokens/ lm/ --order text_audio --text-tokenizer tokenizer.json --format megatron
      quantone export s3://bucket/tokens s3://bucket/lm --special begin_of_audio=128002 --special end_of_audio=128003
    """
    check_dataset(dataset)
    from pipelines.exporting.export import export_tokens
    from pipelines.exporting.export_sequences import SequenceSettings

    settings = SequenceSettings(
        layout=layout,
        bandwidth_kbps=bandwidth,
        num_codebooks=num_codebooks,
        order=order,
        offset=offset,
        special_tokens=_special_tokens(special or []),
        bare=bare,
        text_tokenizer=text_tokenizer,
        text_column=text_column,
        transcripts=transcripts,
        without_text=without_text,
    )
    done = export_tokens(
        dataset,
        out,
        settings,
        file_format=file_format,
        shard_bytes=round(shard_mb * 1e6),
        progress=not quiet,
    )
    if quiet:
        return
    totals, size = done.totals, done.card.vocabulary_size
    typer.echo(
        f"{out}: {totals.sequences} sequences, {totals.tokens:,} tokens of a vocabulary of {size:,}; "
        f"{done.num_new_tokens:,} of them now, in {done.wall_seconds:.1f} s"
    )
    if totals.without_text or totals.without_frames:
        typer.echo(f"rows left out: {totals.without_text} without text, {totals.without_frames} without frames")


def _special_tokens(named: list[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for text in named:
        name, _, number = text.partition("=")
        check(number.isdecimal(), f"--special {text}: it is NAME=ID, such as begin_of_audio=128002")
        ids[name] = int(number)
    return ids
