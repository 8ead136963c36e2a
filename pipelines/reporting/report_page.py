"""The report's page: facts in, one HTML text out, with every picture and sound inside it."""

from __future__ import annotations

import shlex
from html import escape
from importlib import resources
from string import Template

from pipelines.reporting.report_codes import bandwidths_section, drift_section, levels_section
from pipelines.reporting.report_elements import count, duration, note, percent, section, size, table
from pipelines.reporting.report_facts import Report
from pipelines.reporting.report_listening import examples_section
from pipelines.reporting.report_sections import audio_section, duplicates_section, hours_section, quality_section


def render_page(report: Report) -> str:
    """The whole page; every text that comes from data is escaped."""
    template = Template(resources.files("pipelines.reporting").joinpath("report.html").read_text(encoding="utf-8"))
    sections = [
        section("rates", "What each bandwidth costs, and how it sounds", bandwidths_section(report)),
        section("examples", "Listen", examples_section(report)),
        section("quality", "How near the decoded audio is", quality_section(report)),
        section("audio", "What the audio is like", audio_section(report)),
        section("hours", "Where the hours are", hours_section(report)),
        section("duplicates", "What is there twice", duplicates_section(report)),
        section("levels", "How the codebooks are used", levels_section(report)),
        section("drift", "How that drifts from part to part", drift_section(report)),
        section("errors", "Inputs that failed", _errors(report)),
        section("next", "Go on from here", _commands(report)),
    ]
    return template.substitute(
        title=escape(report.title),
        lede=_lede(report),
        card=_card(report),
        tiles=_tiles(report),
        sections="\n".join(part for part in sections if part),
        footer=escape(f"Made {report.info.created_at or 'at an unknown time'} by quantone "
                      f"{report.info.software_version}. This page is one file: send it, keep it, open it offline."),
    )  # fmt: skip


def _lede(report: Report) -> str:
    totals = report.totals
    if totals.num_codes == 0:
        return "No audio in this dataset could be tokenized."
    cut = "" if totals.num_rows == totals.num_inputs else f", cut into <strong>{totals.num_rows:,} segments</strong>,"
    return (
        f"<strong>{duration(totals.audio_seconds)}</strong> of audio in <strong>{count(totals.num_inputs, 'file')}"
        f"</strong>{cut} became <strong>{totals.num_codes:,} codes</strong>: {report.info.num_codebooks} levels of "
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
        (size(totals.parts_bytes), "on disk, all columns"),
        (
            f"{totals.pcm_bytes / totals.parts_bytes:.1f}&times;",
            f"smaller than 16-bit PCM ({size(totals.pcm_bytes)})",
        ),
        (f"{totals.num_errors:,}", "inputs failed" if totals.num_errors != 1 else "input failed"),
    ]
    return "".join(f'<div class="tile"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in facts)


def _errors(report: Report) -> str:
    if not report.errors:
        return "<p>None: every input became a row.</p>"
    num_inputs = report.totals.num_inputs + report.totals.num_errors
    classes = ", ".join(f"{found.num_inputs:,} {escape(found.error)}" for found in report.error_classes)
    text = f"{percent(report.totals.num_errors / num_inputs)} of {count(num_inputs, 'input')}: {classes}."
    rows = [
        [escape(row["id"] or ""), escape(row["error"] or ""), escape(row["message"] or "")] for row in report.errors
    ]
    hidden = report.totals.num_errors - len(rows)
    more = note(f"and {hidden:,} more in errors/") if hidden > 0 else ""
    return note(text) + table(["Input", "Error", "What was wrong"], rows, kind="text") + more


def _commands(report: Report) -> str:
    name = shlex.quote(report.title)
    lowest = f"{report.bandwidths_kbps[0]:g}"
    lines = [
        f"quantone decode {name} audio --bandwidth {lowest}",
        f'quantone query {name} "SELECT id, duration_s FROM tokens ORDER BY duration_s DESC LIMIT 5"',  # noqa: S608 - shown, not run
        f"quantone report {name} -o {shlex.quote(report.title + '.html')} --bandwidth {lowest} --examples 20",
    ]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"
