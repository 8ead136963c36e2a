"""A language model's evaluation for the terminal: bits per code, level by level and in the mean."""

from __future__ import annotations

from rich.table import Table

from pipelines.lm_evaluation import LMEvaluation


def lm_evaluation_table(evaluation: LMEvaluation) -> Table:
    """One column a bandwidth, one row a level, and below them what is saved."""
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
    return table
