"""The command `quantone tokenize`: audio of any source to a token dataset."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidth, Precision, Quiet, Workers, check_codec, check_source


def tokenize(
    source: Annotated[
        str, typer.Argument(help="Directory, file, glob, manifest, tar shards or Parquet; local or s3://.")
    ],
    dataset: Annotated[str, typer.Argument(help="Directory or s3:// URI to write.")],
    codec: Annotated[str, typer.Option(help="Bundled name, directory, file or hub name.")] = "speech_24khz",
    bandwidth: Bandwidth = None,
    precision: Precision = "exact",
    max_segment_s: Annotated[
        float | None, typer.Option(metavar="S", help="Cut longer inputs into rows, at silence where possible.")
    ] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Decode as well, and store SI-SNR and mel distance.")
    ] = False,
    compress_with: Annotated[
        str | None, typer.Option("--compress", metavar="LM", help="Language model that compresses the codes.")
    ] = None,
    num_workers: Workers = None,
    gpus_per_worker: Annotated[float, typer.Option(min=0.0, help="GPUs each process takes, such as 0.5.")] = 0.0,
    address: Annotated[
        str | None,
        typer.Option(metavar="RAY", help="Ray cluster: auto, host:port or ray://; default: RAY_ADDRESS or local."),
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="S3 server; default: AWS_ENDPOINT_URL.")
    ] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of inputs that may fail; above it, exit code 1.")
    ] = None,
    file_timeout_s: Annotated[
        float | None, typer.Option(min=0.1, help="Give up an input that takes longer; default 600.")
    ] = None,
    batch_seconds: Annotated[float | None, typer.Option(min=0.1, help="Audio in one pass of the codec.")] = None,
    unit_seconds: Annotated[float | None, typer.Option(min=0.1, help="Audio in one part of the dataset.")] = None,
    quiet: Quiet = False,
) -> None:
    """Audio to a token dataset.

    Sound files of any rate and channel count; manifests (.jsonl, .csv, .tsv, .parquet) with their columns;
    WebDataset tar shards; Parquet with audio bytes. What cannot be read becomes a row of the dataset's errors.
    Interrupted? The same command goes on where it stopped.
    With --compress each row has one .qtn stream and no columns of levels: smaller, but not for queries of codes.

    Examples:
      quantone tokenize speech/ tokens/
      quantone tokenize "speech/**/*.flac" tokens/ --bandwidth 6
      quantone tokenize train.jsonl tokens/ --max-error-rate 0.01
      quantone tokenize podcasts/ tokens/ --max-segment-s 30 --quality
      quantone tokenize s3://bucket/shards s3://bucket/tokens --gpus-per-worker 1 --address auto
    """
    if s3_endpoint is not None:
        os.environ["AWS_ENDPOINT_URL"] = s3_endpoint
    check_source(source)
    check_codec(codec)
    from pipelines.corpus.corpus_job import tokenize_corpus

    chosen = {"batch_seconds": batch_seconds, "unit_seconds": unit_seconds, "file_timeout_s": file_timeout_s}
    summary = tokenize_corpus(
        source,
        dataset,
        codec=codec,
        progress=not quiet,
        bandwidth_kbps=bandwidth,
        precision=precision,
        max_segment_s=max_segment_s,
        quality=quality,
        compress_with=compress_with,
        num_workers=num_workers,
        gpus_per_worker=gpus_per_worker,
        address=address,
        max_error_rate=max_error_rate,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if not quiet:
        for line in summary.lines(dataset):
            typer.echo(line)
