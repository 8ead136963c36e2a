"""The report's page: facts in, one HTML text out, with every picture and sound inside it."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from pipelines.report_facts import Example, Rendition, Report

CHART_WIDTH, CHART_HEIGHT = 352, 120  # SVG units


def render_page(report: Report) -> str:
    """The whole page; every text that comes from data is escaped."""
    template = Template(resources.files("pipelines").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(report.title),
        lede=_lede(report),
        card=_card(report),
        tiles=_tiles(report),
        bandwidths=_bandwidths(report),
        examples=_examples(report),
        levels=_levels(report),
        errors=_errors(report),
        commands=_commands(report),
        footer=escape(f"Made {report.info.created_at or 'at an unknown time'} by quantone "
                      f"{report.info.software_version}. This page is one file: send it, keep it, open it offline."),
    )  # fmt: skip


def _lede(report: Report) -> str:
    totals = report.totals
    if totals.num_codes == 0:
        return "No audio in this dataset could be tokenized."
    return (
        f"<strong>{_duration(totals.audio_seconds)}</strong> of audio in <strong>{_count(totals.num_files, 'file')}"
        f"</strong> became <strong>{totals.num_codes:,} codes</strong>: {report.info.num_codebooks} levels of "
        f"{report.info.codebook_size} entries, {float(report.frame_rate):g} times a second."
    )


def _card(report: Report) -> str:
    codec = report.info.codec
    facts = [
        ("Codec", f"{codec['name']}"),
        ("Sample rate", f"{report.info.sample_rate / 1000:g} kHz"),
        ("Frame rate", f"{float(report.frame_rate):g} Hz"),
        ("Stored", f"{report.info.bandwidth_kbps:g} kbps"),
        ("Precision", report.info.precision),
        ("sha256", f"{str(codec['sha256'])[:16]}"),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)


def _tiles(report: Report) -> str:
    totals = report.totals
    if totals.num_codes == 0:
        return ""
    bits = 8 * totals.codes_bytes / totals.num_codes
    facts = [
        (f"{bits:.2f}", "bits per code at rest, in Parquet"),
        (f"{8 * totals.codes_bytes / totals.audio_seconds / 1000:.2f}", "kbps at rest, codes alone"),
        (_bytes(totals.parts_bytes), "on disk, all columns"),
        (
            f"{totals.pcm_bytes / totals.parts_bytes:.1f}&times;",
            f"smaller than 16-bit PCM ({_bytes(totals.pcm_bytes)})",
        ),
        (f"{totals.num_errors:,}", "inputs failed" if totals.num_errors != 1 else "input failed"),
    ]
    return "".join(f'<div class="tile"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in facts)


def _bandwidths(report: Report) -> str:
    """One row for each bandwidth: levels, bits at rest, entropy bound, size of an hour, quality."""
    if not report.levels:
        return "<p>Nothing to show.</p>"
    level_kbps = report.info.bandwidth_kbps / report.info.num_codebooks
    pcm_kbps = report.totals.pcm_bytes * 8 / report.totals.audio_seconds / 1000
    rows = []
    for kbps in report.bandwidths_kbps:
        levels = report.levels[: round(kbps / level_kbps)]
        at_rest = sum(level.bits_at_rest for level in levels) * report.totals.frames_per_second / 1000
        entropy = sum(level.entropy_bits for level in levels) * report.totals.frames_per_second / 1000
        quality = _mean_quality(report.examples, kbps)
        rows.append(
            [f"{kbps:g} kbps", str(len(levels)), f"{at_rest:.2f}", f"{entropy:.2f}", f"{at_rest * 0.45:.2f} MB",
             f"{pcm_kbps / at_rest:.0f}&times;", *quality]
        )  # fmt: skip
    headings = [
        "Bandwidth",
        "Levels",
        "kbps at rest,<br>measured",
        "kbps, order-zero<br>entropy",
        "One hour<br>of audio",
        "Smaller than<br>16-bit PCM",
        "SI-SNR<br>dB",
        "Mel distance<br>lower is nearer",
    ]
    compared = sum(example.original_problem is None for example in report.examples)
    note = (
        f"Sizes are measured over the whole dataset; quality is the mean of {_count(compared, 'example')} "
        "below, against the original. "
        "SI-SNR rewards the exact waveform, mel distance the sound's colour over time; neither replaces listening."
    )
    bits = math.log2(report.info.codebook_size)
    if 8 * report.totals.codes_bytes / report.totals.num_codes > bits + 0.5:
        note += f" So little audio pays dearly for its dictionaries: over hours, bits per code fall towards {bits:g}."
    return f'<p class="note">{note}</p>{_table(headings, rows)}'


def _mean_quality(examples: Iterable[Example], kbps: float) -> list[str]:
    renditions = [r for example in examples for r in example.renditions if r.bandwidth_kbps == kbps]
    means = []
    for values in ([r.si_snr_db for r in renditions], [r.mel_distance for r in renditions]):
        known = [value for value in values if value is not None and math.isfinite(value)]
        means.append(_number(sum(known) / len(known), 2) if known else "&ndash;")
    return means


def _examples(report: Report) -> str:
    if not report.examples:
        return "<p>No examples were asked for, or there is nothing to hear.</p>"
    note = (
        "Spectrograms share one scale within an example: mel-spaced frequency upwards, "
        "80 dB from black to the original's loudest band. "
        "Below them are the codes themselves, one cell a code, coarsest level on top; "
        "entries of a codebook that lie close together have similar colours."
    )
    articles = "".join(_example(report, example) for example in report.examples)
    return f'<p class="note">{note}</p>{articles}'


def _example(report: Report, example: Example) -> str:
    shown = "" if example.shown_s >= example.duration_s - 1e-6 else f", the first {example.shown_s:g} s shown"
    source = f"{example.source_sample_rate / 1000:g} kHz, {_count(example.source_channels, 'channel')}"
    figures = [_figure(example, rendition) for rendition in example.renditions]
    if example.original_problem is not None:
        reason = escape(example.original_problem)
        figures.insert(
            0, f'<figure><figcaption><b>Original</b></figcaption><div class="missing">{reason}</div></figure>'
        )
    alt = f"{_levels_shown(report)} levels by {example.num_frames_shown} frames of codes of {example.id}"
    codes = _picture(example.codes_picture, alt)
    extent = f"{_levels_shown(report)} levels &times; {example.num_frames_shown} frames"
    return (
        f'<article class="example"><div class="head"><h3>{escape(example.id)}</h3>'
        f"<span>{example.duration_s:.2f} s{shown} · source {source}</span></div>"
        f'<div class="row">{"".join(figures)}</div>'
        f'<figure class="codes" style="--levels: {_levels_shown(report)}"><figcaption><b>Codes</b>'
        f"<span>{extent}</span></figcaption>{codes}</figure>"
        "</article>"
    )


def _levels_shown(report: Report) -> int:
    return round(report.bandwidths_kbps[-1] * report.info.num_codebooks / report.info.bandwidth_kbps)


def _figure(example: Example, rendition: Rendition) -> str:
    label = "Original" if rendition.bandwidth_kbps is None else f"{rendition.bandwidth_kbps:g} kbps"
    quality = []
    if rendition.si_snr_db is not None:
        quality.append(f"SI-SNR {_number(rendition.si_snr_db, 1)} dB")
    if rendition.mel_distance is not None:
        quality.append(f"mel {rendition.mel_distance:.2f}")
    sound = base64.b64encode(rendition.flac).decode()
    name = escape(f"{example.id}, {label}", quote=True)
    return (
        f"<figure><figcaption><b>{label}</b><span>{' · '.join(quality)}</span></figcaption>"
        f"{_picture(rendition.spectrogram, f'Spectrogram of {example.id}, {label}', 'spectrogram')}"
        f'<audio controls preload="metadata" aria-label="{name}" src="data:audio/flac;base64,{sound}"></audio></figure>'
    )


def _picture(png: bytes, alt: str, kind: str = "") -> str:
    image = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{escape(alt, quote=True)}" src="data:image/png;base64,{image}">'


def _levels(report: Report) -> str:
    if not report.levels:
        return "<p>Nothing to show.</p>"
    size, bits = report.info.codebook_size, math.log2(report.info.codebook_size)
    levels = report.levels
    charts = [
        _chart("Entries in use", f"% of {size}", [100 * level.entries_used / size for level in levels], 100, "%"),
        _chart("Perplexity", f"as if so many of {size} were used evenly", [lv.perplexity for lv in levels], size, ""),
        _chart("Entropy", f"bits a code, at most {bits:g}", [level.entropy_bits for level in levels], bits, " bits"),
    ]
    note = "Level 0 is the coarsest. Over few minutes of audio rare entries have had no chance to occur yet."
    headings = ["Level", "Entries in use", "Perplexity", "Entropy, bits", "Bits at rest"]
    rows = [
        [str(number), f"{level.entries_used} of {size}", f"{level.perplexity:.0f}", f"{level.entropy_bits:.2f}",
         f"{level.bits_at_rest:.2f}"]
        for number, level in enumerate(levels)
    ]  # fmt: skip
    return (
        f'<p class="note">{note}</p><div class="charts">{"".join(charts)}</div>'
        f"<details><summary>The numbers</summary>{_table(headings, rows)}</details>"
    )


def _chart(title: str, unit: str, values: Sequence[float], maximum: float, suffix: str) -> str:
    """Bars over levels as inline SVG, each in front of what it could be at most."""
    pitch = CHART_WIDTH / max(len(values), 4)
    bar = 0.74 * pitch
    every = -(-len(values) // 16)  # labels must not touch: at most sixteen of them
    bars = []
    for level, value in enumerate(values):
        x, height = level * pitch, CHART_HEIGHT * min(value / maximum, 1.0)
        label = f'<text x="{x + bar / 2:.2f}" y="{CHART_HEIGHT + 16}" text-anchor="middle">{level}</text>'
        bars.append(
            f"<g><title>level {level}: {value:.4g}{suffix}</title>"
            f'<rect class="rest" x="{x:.2f}" y="0" width="{bar:.2f}" height="{CHART_HEIGHT}" rx="3"/>'
            f'<rect class="bar" x="{x:.2f}" y="{CHART_HEIGHT - height:.2f}" width="{bar:.2f}" height="{height:.2f}" '
            f'rx="{min(3.0, height / 2):.2f}"/>{label if level % every == 0 else ""}</g>'
        )
    description = f"{title} by level, {unit}: " + ", ".join(f"{value:.4g}" for value in values)
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(unit)}</span></figcaption>"
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT + 20}" role="img" '
        f'aria-label="{escape(description, quote=True)}">{"".join(bars)}</svg></figure>'
    )


def _errors(report: Report) -> str:
    if not report.errors:
        return "<p>None: every input became a row.</p>"
    rows = [
        [escape(row["id"] or ""), escape(row["error"] or ""), escape(row["message"] or "")] for row in report.errors
    ]
    hidden = report.totals.num_errors - len(rows)
    more = f'<p class="note">and {hidden:,} more in errors/</p>' if hidden > 0 else ""
    return _table(["Input", "Error", "What was wrong"], rows, kind="text") + more


def _commands(report: Report) -> str:
    name = shlex.quote(report.title)
    lowest = f"{report.bandwidths_kbps[0]:g}"
    lines = [
        f"quantone decode {name} audio --bandwidth {lowest}",
        f'quantone query {name} "SELECT id, duration_s FROM tokens ORDER BY duration_s DESC LIMIT 5"',  # noqa: S608 - shown, not run
        f"quantone report {name} -o {shlex.quote(report.title + '.html')} --bandwidth {lowest} --examples 20",
    ]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; cells are HTML already."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
