"""The listening section of the report's page: originals and decoded versions side by side, seen and heard."""

from __future__ import annotations

import base64
from html import escape

from pipelines.reporting.report_elements import count, number, picture
from pipelines.reporting.report_elements import note as paragraph
from pipelines.reporting.report_facts import Example, Rendition, Report


def examples_section(report: Report) -> str:
    """An article for each example."""
    if not report.examples:
        return "<p>No examples were asked for, or there is nothing to hear.</p>"
    note = (
        "Spectrograms share one scale within an example: mel-spaced frequency upwards, "
        "80 dB from black to the original's loudest band. "
        "Below them are the codes themselves, one cell a code, coarsest level on top; "
        "entries of a codebook that lie close together have similar colours."
    )
    articles = "".join(_example(report, example) for example in report.examples)
    return f"{paragraph(note)}{articles}"


def _example(report: Report, example: Example) -> str:
    shown = "" if example.shown_s >= example.duration_s - 1e-6 else f", the first {example.shown_s:g} s shown"
    source = f"{example.source_sample_rate / 1000:g} kHz, {count(example.source_channels, 'channel')}"
    remark = "" if example.remark is None else f'<em class="remark">{escape(example.remark)}</em>'
    figures = [_figure(example, rendition) for rendition in example.renditions]
    if example.original_problem is not None:
        reason = escape(example.original_problem)
        figures.insert(
            0, f'<figure><figcaption><b>Original</b></figcaption><div class="missing">{reason}</div></figure>'
        )
    levels = round(report.bandwidths_kbps[-1] * report.info.num_codebooks / report.info.bandwidth_kbps)
    alt = f"{levels} levels by {example.num_frames_shown} frames of codes of {example.id}"
    return (
        f'<article class="example"><div class="head"><h3>{escape(example.id)}</h3>{remark}'
        f"<span>{example.duration_s:.2f} s{shown} · source {source}</span></div>"
        f'<div class="row">{"".join(figures)}</div>'
        f'<figure class="codes" style="--levels: {levels}"><figcaption><b>Codes</b>'
        f"<span>{levels} levels &times; {example.num_frames_shown} frames</span></figcaption>"
        f"{picture(example.codes_picture, alt)}</figure></article>"
    )


def _figure(example: Example, rendition: Rendition) -> str:
    label = "Original" if rendition.bandwidth_kbps is None else f"{rendition.bandwidth_kbps:g} kbps"
    quality = []
    if rendition.si_snr_db is not None:
        quality.append(f"SI-SNR {number(rendition.si_snr_db, 1)} dB")
    if rendition.mel_distance is not None:
        quality.append(f"mel {rendition.mel_distance:.2f}")
    sound = base64.b64encode(rendition.flac).decode()
    name = escape(f"{example.id}, {label}", quote=True)
    return (
        f"<figure><figcaption><b>{label}</b><span>{' · '.join(quality)}</span></figcaption>"
        f"{picture(rendition.spectrogram, f'Spectrogram of {example.id}, {label}', 'spectrogram')}"
        f'<audio controls preload="metadata" aria-label="{name}" src="data:audio/flac;base64,{sound}"></audio></figure>'
    )
