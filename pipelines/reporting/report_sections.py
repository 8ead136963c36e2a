"""Sections of the report's page about the audio: quality, levels, speech, lengths, hours by column and duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines.reporting.report_charts import spread_chart
from pipelines.reporting.report_elements import count, duration, note, number, percent, table
from pipelines.reporting.report_facts import Corpus, Duplicates, Grouping, Histogram, Report

SHOWN_GROUPINGS = 6


def quality_section(report: Report) -> str:
    """How near decoded audio is over the whole dataset, as the job measured it; empty where it did not."""
    corpus = report.corpus
    ratio, distance = corpus.histograms.get("si_snr_db"), corpus.histograms.get("mel_distance")
    if ratio is None or distance is None or not ratio.total:
        return ""
    silent = f" ({count(corpus.num_unmeasured, 'row')} here)" if corpus.num_unmeasured else ""
    text = (
        f"Measured by the job on every row, decoded at {report.info.bandwidth_kbps:g} kbps. Silence has no numbers"
        f"{silent}. What is far off is often not speech: listen to the worst before leaving them out."
    )
    charts = [
        spread_chart("SI-SNR, dB", _quantiles(ratio, 1, " dB"), ratio, " dB"),
        spread_chart("Mel distance, lower is nearer", _quantiles(distance, 2), distance, ""),
    ]
    worst = [
        _worst("Lowest SI-SNR", "dB", corpus.worst.get("si_snr_db", ()), 1),
        _worst("Largest mel distance", "Distance", corpus.worst.get("mel_distance", ()), 2),
    ]
    return note(text) + _charts(charts) + f'<div class="pair">{"".join(worst)}</div>'


def audio_section(report: Report) -> str:
    """Levels, clipping, speech activity and lengths."""
    corpus = report.corpus
    charts = [
        spread_chart(title, _quantiles(found, digits, unit), found, unit, logarithmic=column == "duration_s")
        for column, title, digits, unit in (
            ("duration_s", "Length, seconds", 1, " s"),
            ("rms_dbfs", "Level (RMS), dBFS", 0, " dBFS"),
            ("peak_dbfs", "Peak, dBFS", 0, " dBFS"),
            ("speech_share", "Speech activity, share of the time", 2, ""),
        )
        if (found := corpus.histograms.get(column)) is not None and found.total
    ]
    if not charts:
        return ""
    clipped = corpus.worst.get("clipping_share", ())
    shares = [(name, 100 * share) for name, share in clipped]
    worst = f'<div class="pair">{_worst("Most clipped", "% of samples", shares, 2)}</div>' if clipped else ""
    return note(_audio_text(corpus, report.totals.num_rows)) + _charts(charts) + worst


def hours_section(report: Report) -> str:
    """Hours by each column of the source that groups rows."""
    figures = [_hours(grouping) for grouping in report.corpus.groupings[:SHOWN_GROUPINGS]]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def duplicates_section(report: Report) -> str:
    """Rows of equal sound; empty for datasets that cannot tell."""
    found = report.corpus.duplicates
    if found is None or not report.totals.num_rows:
        return ""
    if found.num_groups == 0:
        return note("None: no two rows have the same sound.")
    about = "about " if found.looked_at < 1 else ""
    text = (
        f"{about}{count(found.num_surplus, 'row')} {'repeats' if found.num_surplus == 1 else 'repeat'} the sound of "
        f"another one, in {about}"
        f"{count(found.num_groups, 'group')}: {about}{duration(found.surplus_seconds)} that could be left out. Equal "
        "sound counts, whatever the container or the name; other encodings of it do not."
    )
    if found.looked_at < 1:
        text += f" Estimated from {percent(found.looked_at)} of all hashes."
    headings = ["Equal rows", "How many", "Seconds"]
    return note(_sentence(text)) + table(headings, _duplicate_rows(found), kind="ids")


def _duplicate_rows(found: Duplicates) -> list[list[str]]:
    rows = []
    for seconds, num_rows, ids in found.examples:
        more = "" if num_rows <= len(ids) else " …"
        rows.append(["<br>".join(escape(name) for name in ids) + more, f"{num_rows:,}", f"{seconds:.2f}"])
    return rows


def _audio_text(corpus: Corpus, num_rows: int) -> str:
    known = [
        ("with clipped peaks", corpus.num_clipped),
        ("of digital silence", corpus.num_silent),
        ("without speech activity", corpus.num_without_speech),
    ]
    facts = [
        f"{count(amount, 'row')} {what} ({percent(amount / num_rows)})" if amount else f"none {what}"
        for what, amount in known
        if amount is not None
    ]
    text = _sentence(f"{', '.join(facts)}.")
    if corpus.num_without_speech is not None:
        text += (
            " Speech activity is estimated from energy alone: music that comes and goes counts, steady noise does not."
        )
    return text


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _quantiles(histogram: Histogram, digits: int, unit: str = "") -> str:
    low, middle, high = (number(histogram.quantile(share), digits) for share in (0.05, 0.5, 0.95))
    return f"median {middle}{unit}; nine of ten from {low} to {high}"


def _charts(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _worst(title: str, unit: str, rows: Sequence[tuple[str, float]], digits: int) -> str:
    cells = [[escape(name), number(value, digits)] for name, value in rows]
    return f"<div>{table([escape(title), escape(unit)], cells, kind='ids')}</div>"


def _hours(grouping: Grouping) -> str:
    """A list of bars, the longest first."""
    groups = [*grouping.groups, *([grouping.rest] if grouping.rest is not None else [])]
    most = max(group.seconds for group in grouping.groups) or 1.0
    unit, unit_s = ("h", 3600) if most >= 7200 else ("min", 60) if most >= 120 else ("s", 1)
    items = "".join(
        f'<li><span class="name">{escape(group.value)}</span>'
        f'<span class="track"><i style="--share: {100 * min(1.0, group.seconds / most):.1f}%"></i></span>'
        f"<span>{group.seconds / unit_s:,.1f} {unit}</span><span>{count(group.num_rows, 'row')}</span></li>"
        for group in groups
    )
    name = {"source_sample_rate": "source sample rate, Hz"}.get(grouping.column, grouping.column)
    return f'<figure><figcaption><b>{escape(name)}</b></figcaption><ol class="bars">{items}</ol></figure>'
