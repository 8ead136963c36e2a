"""An evaluation for the terminal: a table of at most 100 columns, and what it cannot hold below it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from pipelines.evaluating.bootstrap import Interval
from pipelines.evaluating.evaluation_scores import CodebookUse, Evaluation

HEADINGS = {"si_snr_db": "SI-SNR dB", "mel_distance": "mel", "stoi": "STOI", "pesq_wb": "PESQ-WB", "visqol": "ViSQOL"}
DIGITS = {"si_snr_db": 2, "mel_distance": 3, "stoi": 3, "pesq_wb": 2, "visqol": 2}
TABLE_WIDTH = 100  # on narrower terminals lines wrap, and no figure is cut off
CODES_PER_ENTRY = 10  # with fewer, entries are unused for want of audio


def evaluation_table(evaluation: Evaluation) -> Table:
    """Means with half of their 95 % intervals; a codec's name stands at its first row."""
    table = Table(
        title=f"{_clips(len(evaluation.clips))}, compared at {evaluation.sample_rate / 1000:g} kHz",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="bold",
        title_justify="left",
    )
    table.add_column("codec", overflow="fold", min_width=12, max_width=20)
    for heading in ("kbps", "sent", *HEADINGS.values(), "enc x", "dec x"):
        table.add_column(heading, justify="right", no_wrap=True)
    above = None
    for row in evaluation.rows:
        cells = [_cell(row.scores[name], DIGITS[name]) for name in HEADINGS]
        speeds = (f"{_speed(row.encode_x_real_time)}", f"{_speed(row.decode_x_real_time)}")
        name = Text("" if row.system == above else row.system)
        table.add_row(name, f"{row.bandwidth_kbps:g}", f"{row.measured_kbps:.2f}", *cells, *speeds)
        above = row.system
    return table


def evaluation_notes(evaluation: Evaluation) -> Iterator[str]:
    """Lines below the table: what its columns mean, scores that clips lack, codebook use, clips without any."""
    yield "mean ± half of the 95 % bootstrap interval over clips; sent: measured kbps; x: times real time, one thread"
    for name, heading in HEADINGS.items():
        missing = {row.failures[name] for row in evaluation.rows}
        if max(missing) > 0:
            yield f"no {heading} of {'' if len(missing) == 1 else 'up to '}{_clips(max(missing))}"
    for use in evaluation.codebook_use:
        yield codebook_line(use)
    for name, reason in evaluation.unreadable.items():
        yield f"left out: {name}: {reason}"


def codebook_line(use: CodebookUse) -> str:
    """Share of each level's entries in use, and the lowest of them."""
    shares = " ".join(f"{100 * share:.0f}" for share in use.shares)
    lowest = min(range(len(use.shares)), key=use.shares.__getitem__)
    line = (
        f"{use.system}: at least {100 * use.shares[lowest]:.0f} % of {use.codebook_size} entries in use at every level "
        f"(least: level {lowest}); % by level: {shares}"
    )
    if use.codes_per_level < CODES_PER_ENTRY * use.codebook_size:
        line += f"; only {use.codes_per_level / use.codebook_size:.1f} codes per entry: more clips would use more"
    return line


def score_text(interval: Interval | None, digits: int) -> tuple[str, str]:
    """A mean and its half-width, as "3.14" and "±0.07"; the second is empty where there is none."""
    if interval is None:
        return "-", ""
    width = interval.half_width
    return f"{interval.mean:.{digits}f}", "" if width is None else f"±{width:.{digits}f}"


def _cell(interval: Interval | None, digits: int) -> Text:
    mean, width = score_text(interval, digits)
    # The zero before the point is the same in every cell of STOI and mel: the line has no room for it.
    return Text.assemble(mean, (f" {width.replace('±0.', '±.')}" if width else "", "dim"))


def _speed(factor: float) -> str:
    return f"{factor:.0f}" if factor >= 10 else f"{factor:.1f}"


def _clips(count: int) -> str:
    return f"{count} clip" if count == 1 else f"{count} clips"
