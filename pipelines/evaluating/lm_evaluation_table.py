"""A language model's evaluation for the terminal: bits per code, level by level and in the mean, and sizes of files."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from pipelines.evaluating.lm_evaluation import LMEvaluation, LMScore
from pipelines.evaluating.stream_sizes import StreamSizes


def lm_evaluation_table(evaluation: LMEvaluation) -> Table:
    """One column a bandwidth, one row a level, and below them what is saved, in bits and, of coders, in files."""
    scores, widest = evaluation.scores, evaluation.scores[-1]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("level")
    for heading in ("raw", "order 0", *(f"{score.bandwidth_kbps:g} kbps" for score in scores)):
        table.add_column(heading, justify="right", no_wrap=True)
    for level, order_0 in enumerate(widest.order_0_bits):
        cells = (f"{score.bits[level]:.3f}" if level < len(score.bits) else "" for score in scores)
        table.add_row(str(level), f"{widest.raw_bits:g}", f"{order_0:.3f}", *cells)
    plain = [score.to_dict() for score in scores]
    table.add_section()
    table.add_row("mean", f"{widest.raw_bits:g}", "", *(f"{score['mean_bits']:.3f}" for score in plain))
    table.add_row("mean of order 0", "", "", *(f"{score['mean_order_0_bits']:.3f}" for score in plain))
    table.add_row("saved of raw", "", "", *(f"{score.saved:.1%}" for score in scores))
    table.add_row("saved of order 0", "", "", *(f"{score.saved_of_order_0:.1%}" for score in scores))
    if all(score.streams is not None for score in scores):
        _add_streams(table, scores)
    return table


def _add_streams(table: Table, scores: Sequence[LMScore]) -> None:
    """The model in integers, and the kilobits per second of its streams beside those without it."""
    rows = [_stream_cells(score.to_dict(), score.streams) for score in scores if score.streams is not None]
    table.add_section()
    for name in rows[0]:
        table.add_row(name, "", "", *(row[name] for row in rows))


def _stream_cells(score: dict[str, float], streams: StreamSizes) -> dict[str, str]:
    """The column of one bandwidth, by row."""
    files, joined = streams.files, streams.joined
    return {
        "mean in integers": f"{score['mean_integer_bits']:.3f}",
        "more than in floats": f"{score['integer_excess']:.2%}",
        "kbps of codes alone": f"{streams.kbps(streams.codes_bytes):.3f}",
        "kbps .qtn packed": f"{streams.kbps(files.packed):.3f}",
        "kbps .qtn order 0": f"{streams.kbps(files.order_0):.3f}",
        "kbps .qtn": f"{streams.kbps(files.model):.3f}",
        "saved of codes alone": f"{streams.saved_of_codes:.1%}",
        "saved of packed": f"{files.saved:.1%}",
        "saved of order 0": f"{files.saved_of_order_0:.1%}",
        "kbps in one stream": f"{streams.kbps(joined.model):.3f}",
        "saved of one packed": f"{joined.saved:.1%}",
        "saved of one order 0": f"{joined.saved_of_order_0:.1%}",
    }
