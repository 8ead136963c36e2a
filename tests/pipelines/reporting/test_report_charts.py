"""Charts of the report: every row is in a bar, whatever the numbers look like."""

import re

import numpy as np
import pytest

from pipelines.reporting.report_charts import HEIGHT, MAX_BARS, WIDTH, bar_chart, spread_chart
from pipelines.reporting.report_elements import percent
from pipelines.reporting.report_facts import Histogram
from tests.pipelines.pages import Page

LINEAR = np.arange(-100.0, 101.0)
RATIOS = 10 ** (np.arange(-120, 201) / 40)


def histogram_of(values, edges):
    return Histogram(edges, np.histogram(values, edges)[0])


def rows_shown(svg):
    return sum(int(number.replace(",", "")) for number in re.findall(r": ([\d,]+) rows?</title>", svg))


def ticks(svg):
    words = re.findall(r'<text x="([-\d.]+)"[^>]*>([^<]+)</text>', svg)
    return {float(text.replace("\N{MINUS SIGN}", "-")): float(x) for x, text in words}


@pytest.mark.parametrize("scale", [0.2, 3, 30, 300])
@pytest.mark.parametrize("middle", [0, -60, 99])
def test_every_row_is_in_a_bar(scale, middle):
    """However wide the numbers lie: at most 36 bars, all rows in them, and two to six round numbers below."""
    values = np.clip(np.random.default_rng(0).normal(middle, scale, 5000), -100, 99.9)
    svg = spread_chart("T", "c", histogram_of(values, LINEAR), " dB")
    assert rows_shown(svg) == 5000
    assert svg.count("<rect") <= MAX_BARS
    assert 2 <= len(ticks(svg)) <= 6
    assert all(-1 <= x <= WIDTH + 1 for x in ticks(svg).values())
    Page(svg)


@pytest.mark.parametrize(("low", "high"), [(3.0, 3.01), (0.5, 20), (2.1, 4.9), (0.01, 30000), (0.002, 0.003)])
def test_ratios_have_round_numbers_too(low, high):
    """On an axis of equal ratios ticks stand where their numbers are, over part of a decade or over seven."""
    values = np.exp(np.random.default_rng(0).uniform(np.log(low), np.log(high), 3000))
    svg = spread_chart("Length", "c", histogram_of(values, RATIOS), " s", logarithmic=True)
    assert rows_shown(svg) == 3000
    found = sorted(ticks(svg).items())
    assert 2 <= len(found) <= 8
    (first, at), (last, end) = found[0], found[-1]
    for number, x in found:
        assert (x - at) / (end - at) == pytest.approx(np.log(number / first) / np.log(last / first), abs=0.01)


def test_a_few_outliers_do_not_flatten_the_rest():
    """One row in a thousand far out stands in the outermost bar; the axis is that of all others."""
    values = np.concatenate([np.random.default_rng(0).normal(7, 2, 5000), [-100, -100, 95]])
    svg = spread_chart("T", "c", histogram_of(values, LINEAR), " dB")
    assert rows_shown(svg) == 5003
    assert min(ticks(svg)) > -5
    assert max(ticks(svg)) < 20


def test_one_value_is_one_bar():
    """Rows that are all alike have one full bar with room around it."""
    svg = spread_chart("T", "c", histogram_of(np.full(9, 3.5), LINEAR), " dB")
    heights = [float(height) for height in re.findall(r'<rect[^>]*height="([\d.]+)"', svg)]
    assert sorted(heights)[-2:] == [0, HEIGHT]
    assert len(heights) >= 8


def test_quantiles_are_those_of_the_values():
    """To the width of a bin."""
    values = np.random.default_rng(0).normal(0, 20, 10_000)
    histogram = histogram_of(values, LINEAR)
    for share in (0.05, 0.5, 0.95):
        assert histogram.quantile(share) == pytest.approx(np.quantile(values, share), abs=1)


def test_bars_stand_before_what_they_could_be():
    """Half of the most is half of the height; of many bars some are numbered; none is taller than the chart."""
    svg = bar_chart("Use", "of 10", [5, 10, 20], 10, "level")
    heights = [float(height) for height in re.findall(r'class="bar"[^>]*height="([\d.]+)"', svg)]
    assert heights == [HEIGHT / 2, HEIGHT, HEIGHT]
    assert svg.count('class="rest"') == 3
    assert bar_chart("Use", "of 1", [1.0] * 48, 1, "part").count("<text") == 16
    assert "<b>A &lt;b&gt;</b>" in bar_chart("A <b>", "of 1", [1.0], 1, "part")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.5, "50 %"), (0.031, "3.1 %"), (0.00004, "0.004 %"), (0.99996, "99.996 %")],
)
def test_percentages_never_round_to_none_or_all(share, text):
    """A clipped row in 25,000 is not 0 %."""
    assert percent(share) == text
