"""Charts of the report's page as inline SVG: bars in front of what they could be, and how a number is spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from pipelines.reporting.report_elements import count
from pipelines.reporting.report_facts import Histogram

WIDTH, HEIGHT = 352, 120  # SVG units
MAX_BARS = 36
MIN_BINS = 8  # shown: one bar alone would fill the chart
MAX_TICKS = 6
_TAIL = 0.001  # of the rows at each end: they stand in the outermost bars


def bar_chart(title: str, unit: str, values: Sequence[float], maximum: float, noun: str, suffix: str = "") -> str:
    """Bars for things numbered from 0, each in front of what it could be at most.

    Args:
        title: of the chart.
        unit: beside it.
        values: one a bar.
        maximum: what the whole height means.
        noun: what is numbered, for who points at a bar.
        suffix: of values there.
    """
    pitch = WIDTH / max(len(values), 4)
    bar = 0.74 * pitch
    every = -(-len(values) // 16)  # labels must not touch: at most sixteen of them
    bars = []
    for index, value in enumerate(values):
        x, height = index * pitch, HEIGHT * min(value / maximum, 1.0)
        label = f'<text x="{x + bar / 2:.2f}" y="{HEIGHT + 16}" text-anchor="middle">{index}</text>'
        bars.append(
            f"<g><title>{noun} {index}: {value:.4g}{suffix}</title>"
            f'<rect class="rest" x="{x:.2f}" y="0" width="{bar:.2f}" height="{HEIGHT}" rx="{min(3.0, bar / 3):.2f}"/>'
            f"{_bar(x, bar, height)}{label if index % every == 0 else ''}</g>"
        )
    description = f"{title} by {noun}, {unit}: " + ", ".join(f"{value:.4g}" for value in values)
    return _figure(title, unit, description, "".join(bars))


def spread_chart(title: str, caption: str, histogram: Histogram, unit: str, *, logarithmic: bool = False) -> str:
    """How a number is spread over rows; what lies far out stands in the outermost bars.

    Args:
        title: of the chart.
        caption: beside it.
        histogram: with at least one row.
        unit: of the number, for who points at a bar.
        logarithmic: whether equal distances are equal ratios.
    """
    edges, counts = _shown(histogram)
    places = np.log10(edges) if logarithmic else edges
    x = (places - places[0]) / (places[-1] - places[0]) * WIDTH
    most = max(int(counts.max()), 1)
    bars = []
    for left, right, low, high, rows in zip(x[:-1], x[1:], edges[:-1], edges[1:], counts, strict=True):
        height = HEIGHT * rows / most
        what = f"{low:.4g} to {high:.4g}{unit}: {count(int(rows), 'row')}".replace("-", "\N{MINUS SIGN}")
        bars.append(f"<g><title>{what}</title>{_bar(left, 0.86 * (right - left), height)}</g>")
    ticks = []
    for tick in _ticks(edges[0], edges[-1], logarithmic=logarithmic):
        place = math.log10(tick) if logarithmic else tick
        at = (place - places[0]) / (places[-1] - places[0]) * WIDTH
        text = f"{tick:g}".replace("-", "\N{MINUS SIGN}")
        ticks.append(f'<text x="{at:.2f}" y="{HEIGHT + 16}" text-anchor="middle">{text}</text>')
    axis = f'<line class="axis" x1="0" y1="{HEIGHT}" x2="{WIDTH}" y2="{HEIGHT}"/>'
    return _figure(title, caption, f"{title}: {caption}", "".join(bars) + axis + "".join(ticks))


def _shown(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Edges and counts of at most `MAX_BARS` bars: neighbouring bins merged, tails put into the outermost."""
    cumulated = np.cumsum(histogram.counts)
    total, bins = histogram.total, len(histogram.counts)
    first = int(np.searchsorted(cumulated, _TAIL * total, side="right"))
    last = int(np.searchsorted(cumulated, (1 - _TAIL) * total, side="left"))
    missing = max(0, MIN_BINS - (last - first + 1))
    first, last = max(0, first - missing // 2), min(bins - 1, last + missing - missing // 2)
    merged = next(step for step in (1, 2, 5, 10, 20, 50, 100) if (last - first + 1) <= step * (MAX_BARS - 1))
    first, stop = first // merged * merged, min(bins, -(-(last + 1) // merged) * merged)
    bounds = np.append(np.arange(first, stop, merged), stop)
    inner = np.concatenate([[0], cumulated])[bounds]
    inner[0], inner[-1] = 0, total
    return histogram.edges[bounds], np.diff(inner)


def _ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Round numbers in a range, at most `MAX_TICKS` of them but over many decades."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
            if 2 <= len(found) <= MAX_TICKS or (steps == (1,) and len(found) > MAX_TICKS):
                return found
    unit = 10.0 ** math.floor(math.log10((high - low) / MAX_TICKS))
    step = next(unit * times for times in (1, 2, 5, 10, 20) if (high - low) / (unit * times) <= MAX_TICKS - 1)
    return [
        round(index * step, 10) + 0.0
        for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _bar(x: float, width: float, height: float) -> str:
    corner = min(3.0, height / 2, width / 3)
    return (
        f'<rect class="bar" x="{x:.2f}" y="{HEIGHT - height:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'rx="{corner:.2f}"/>'
    )


def _figure(title: str, caption: str, description: str, content: str) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(caption)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 20}" role="img" '
        f'aria-label="{escape(description, quote=True)}">{content}</svg></figure>'
    )
