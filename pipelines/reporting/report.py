"""The report: what a token dataset holds and how it sounds, gathered and written as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines import storage
from pipelines.datasets.dataset import open_dataset, open_errors
from pipelines.datasets.dataset_info import DatasetInfo, read_dataset_info
from pipelines.datasets.stored_codes import level_bytes, load_dataset_codec, num_codebooks_at
from pipelines.reporting.report_codebooks import measure_codebooks
from pipelines.reporting.report_corpus import scan_rows
from pipelines.reporting.report_examples import choose_examples, render_examples
from pipelines.reporting.report_facts import ErrorClass, Report, Totals
from pipelines.reporting.report_page import render_page
from tokenizer import Codec

MAX_ERRORS_SHOWN = 50
MAX_BANDWIDTHS = 3  # shown when none are asked for


def write_report(
    dataset: str | Path,
    output: str | Path,
    *,
    bandwidths_kbps: Sequence[float] | None = None,
    num_examples: int = 8,
    codec: str | None = None,
) -> Path:
    """Write a page with the dataset's sizes, audio, codebook use, quality and examples; it needs nothing beside it.

    All rows are read once without their codes; codes are counted in at most 48 parts. Memory does not grow with the
    dataset, but for a list of its parts.

    Args:
        dataset: a token dataset, local or s3://.
        output: the HTML file to write; its folder is created.
        bandwidths_kbps: to decode the examples at; None for at most three, up to what is stored.
        num_examples: utterances shown, spread over the dataset; up to a half are the worst where quality was measured.
        codec: where the dataset's codec is now; None for where it was.

    Returns:
        The path of the page.

    Raises:
        ValueError: a bandwidth that is not stored, or a negative number of examples.
        DatasetError: no dataset, another codec, a damaged part.
        CheckpointError: the codec is not there.
    """
    if num_examples < 0:
        raise ValueError(f"num_examples must not be negative, got {num_examples}")
    info = read_dataset_info(dataset)
    loaded = load_dataset_codec(info, codec)
    bandwidths = _bandwidths(info, loaded, bandwidths_kbps)
    rows = open_dataset(dataset)
    errors = open_errors(dataset)
    num_bytes, parts_bytes = level_bytes(dataset)
    totals = _measure_totals(info, rows, errors, sum(num_bytes), parts_bytes)
    scan = scan_rows(rows, totals.num_rows, num_examples)
    chosen = choose_examples(scan.spread, scan.worst, num_examples)
    report = Report(
        title=Path(str(dataset).rstrip("/")).name,
        info=info,
        frame_rate=loaded.spec.frame_rate,
        totals=totals,
        codebooks=measure_codebooks(dataset, info.codebook_size, num_bytes, totals.num_codes),
        corpus=scan.corpus,
        bandwidths_kbps=bandwidths,
        examples=tuple(render_examples(dataset, loaded, bandwidths, chosen)),
        error_classes=_error_classes(errors),
        errors=tuple(errors.head(MAX_ERRORS_SHOWN).collect().to_dicts()),
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    storage.commit(str(output.absolute()), render_page(report).encode())
    return output


def _bandwidths(info: DatasetInfo, codec: Codec, asked: Sequence[float] | None) -> tuple[float, ...]:
    if asked is None:
        listed = [kbps for kbps in codec.spec.bandwidths_kbps if kbps < info.bandwidth_kbps - 1e-9]
        return (*listed[-(MAX_BANDWIDTHS - 1) :], info.bandwidth_kbps)
    for kbps in asked:
        num_codebooks_at(info, codec, kbps)
    return tuple(sorted(set(asked)))


def _measure_totals(
    info: DatasetInfo, rows: pl.LazyFrame, errors: pl.LazyFrame, codes_bytes: int, parts_bytes: int
) -> Totals:
    # Of an input that was cut, one segment begins at sample 0.
    begins = (pl.col("start_sample") == 0).sum() if "start_sample" in rows.collect_schema() else pl.len()
    sums = rows.select(
        rows=pl.len(), inputs=begins, frames=pl.col("num_frames").sum(), samples=pl.col("num_samples").sum()
    )
    num_rows, num_inputs, frames, samples = sums.collect().row(0)
    return Totals(
        num_rows=num_rows,
        num_inputs=num_inputs,
        num_errors=errors.select(pl.len()).collect().item(),
        audio_seconds=samples / info.sample_rate,
        num_frames=frames,
        num_codes=frames * info.num_codebooks,
        parts_bytes=parts_bytes,
        codes_bytes=codes_bytes,
        pcm_bytes=2 * samples * int(info.codec["spec"].get("channels", 1)),
    )


def _error_classes(errors: pl.LazyFrame) -> tuple[ErrorClass, ...]:
    counted = errors.group_by("error").agg(pl.len()).sort(["len", "error"], descending=[True, False]).collect()
    return tuple(ErrorClass(error or "", count) for error, count in counted.iter_rows())
