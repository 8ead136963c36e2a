"""The open page of a listening folder: scores in a table, clips with names and pictures, codebook use."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template

from pipelines.evaluating.evaluation_scores import CodebookUse, Evaluation
from pipelines.evaluating.evaluation_table import DIGITS, HEADINGS, codebook_line, score_text
from pipelines.evaluating.mushra_results import LOW_ANCHOR, REFERENCE

CHART_WIDTH, CHART_HEIGHT = 352, 90  # SVG units
TITLES = {REFERENCE: "Original", LOW_ANCHOR: "3.5 kHz low-pass"}


@dataclass(frozen=True, slots=True)
class Version:
    """One condition of a clip."""

    condition: str
    spectrogram: bytes  # PNG
    scores: Mapping[str, float | None]  # of this clip; none for reference and anchor


@dataclass(frozen=True, slots=True)
class OpenClip:
    """A clip to listen to."""

    key: str  # of its audio script
    name: str
    versions: tuple[Version, ...]


def render_open_page(evaluation: Evaluation, clips: Sequence[OpenClip]) -> str:
    """The whole page; every text that comes from data is escaped."""
    template = Template(
        resources.files("pipelines.evaluating").joinpath("listening/open.html").read_text(encoding="utf-8")
    )
    names = " against ".join(one.system for one in evaluation.contestants)
    seconds = sum(scores[0].seconds for scores in evaluation.clips.values())
    return template.substitute(
        title=escape(names),
        lede=escape(
            f"{len(evaluation.clips)} clips, {seconds / 60:.1f} minutes, compared at "
            f"{evaluation.sample_rate / 1000:g} kHz; {len(clips)} of them to listen to."
        ),
        scores=_scores(evaluation),
        clips="".join(_clip(clip) for clip in clips),
        levels=_levels(evaluation.codebook_use),
        unreadable=_unreadable(evaluation.unreadable),
        footer=escape(f"Made by quantone evaluate. Opus: {evaluation.opus or 'not in this comparison'}."),
    )


def _scores(evaluation: Evaluation) -> str:
    headings = ["", "kbps", "measured kbps", *HEADINGS.values(), "encode", "decode"]
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = []
    for row in evaluation.rows:
        cells = [escape(row.system), f"{row.bandwidth_kbps:g}", f"{row.measured_kbps:.2f}"]
        for name in HEADINGS:
            mean, width = score_text(row.scores[name], DIGITS[name])
            lacking = f"<br><small>{row.failures[name]} clips without</small>" if row.failures[name] else ""
            cells.append(f"{mean} <small>{width}</small>{lacking}")
        cells += [f"{speed:.1f}&times;" for speed in (row.encode_x_real_time, row.decode_x_real_time)]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    note = (
        "Means over all clips, &plusmn; half of the 95 % bootstrap interval. Mel distance: lower is nearer; all "
        "others: higher is better. Speeds: times real time on one thread, beside whatever else ran."
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<p class="note">{note}</p><div class="scroll">{table}</div>'


def _clip(clip: OpenClip) -> str:
    versions = "".join(_version(version) for version in clip.versions)
    return (
        f'<article data-clip="{escape(clip.key, quote=True)}"><h3>{escape(clip.name)}</h3>'
        f'<div class="versions">{versions}</div></article>'
    )


def _version(version: Version) -> str:
    condition = escape(version.condition, quote=True)
    title = escape(TITLES.get(version.condition, version.condition))
    figures = [
        f"{heading.removesuffix(' dB')} {score:.{DIGITS[name]}f}{' dB' if heading.endswith(' dB') else ''}".replace(
            " ", "&nbsp;"
        )
        for name, heading in HEADINGS.items()
        if (score := version.scores.get(name)) is not None
    ]
    image = base64.b64encode(version.spectrogram).decode()
    return (
        f'<button type="button" class="version" aria-pressed="false" data-condition="{condition}">'
        f'<span class="picture"><img alt="" src="data:image/png;base64,{image}"></span>'
        f'<span class="name">{title}</span><span class="figures">{" · ".join(figures)}</span></button>'
    )


def _levels(uses: Sequence[CodebookUse]) -> str:
    return f'<div class="charts">{"".join(_chart(use) for use in uses)}</div>'


def _chart(use: CodebookUse) -> str:
    """A bar for each level, in front of all of the codebook."""
    pitch = CHART_WIDTH / max(len(use.shares), 4)
    bar = 0.74 * pitch
    every = -(-len(use.shares) // 16)  # labels must not touch: at most sixteen of them
    bars = []
    for level, share in enumerate(use.shares):
        x, height = level * pitch, CHART_HEIGHT * share
        label = f'<text x="{x + bar / 2:.2f}" y="{CHART_HEIGHT + 16}" text-anchor="middle">{level}</text>'
        bars.append(
            f"<g><title>level {level}: {100 * share:.0f} %</title>"
            f'<rect class="rest" x="{x:.2f}" y="0" width="{bar:.2f}" height="{CHART_HEIGHT}" rx="3"/>'
            f'<rect class="bar" x="{x:.2f}" y="{CHART_HEIGHT - height:.2f}" width="{bar:.2f}" height="{height:.2f}"/>'
            f"{label if level % every == 0 else ''}</g>"
        )
    return (
        f"<figure><figcaption><b>{escape(use.system)}</b><span>% of {use.codebook_size} entries in use, by level</span>"
        f'</figcaption><svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT + 20}" role="img" '
        f'aria-label="{escape(codebook_line(use), quote=True)}">{"".join(bars)}</svg></figure>'
    )


def _unreadable(unreadable: Mapping[str, str]) -> str:
    if not unreadable:
        return ""
    rows = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in unreadable.items())
    return f'<section aria-labelledby="left-out"><h2 id="left-out">Clips left out</h2><ul>{rows}</ul></section>'
