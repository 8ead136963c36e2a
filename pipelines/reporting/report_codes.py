"""Sections of the report's page about codes: what each bandwidth costs, how codebooks are used, how that drifts."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pipelines.reporting.report_charts import bar_chart
from pipelines.reporting.report_elements import count, note, number, table
from pipelines.reporting.report_facts import CodebookFacts, Example, Report


def bandwidths_section(report: Report) -> str:
    """One row for each bandwidth: levels, bits at rest, entropy bound, size of an hour, quality."""
    if not report.codebooks.levels:
        return "<p>Nothing to show.</p>"
    level_kbps = report.info.bandwidth_kbps / report.info.num_codebooks
    pcm_kbps = report.totals.pcm_bytes * 8 / report.totals.audio_seconds / 1000
    rows = []
    for kbps in report.bandwidths_kbps:
        levels = report.codebooks.levels[: round(kbps / level_kbps)]
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
    compared = sum(example.original_problem is None for example in _usual(report.examples))
    text = (
        f"Sizes are measured over the whole dataset; quality is the mean of {count(compared, 'example')} "
        "below, against the original. "
        "SI-SNR rewards the exact waveform, mel distance the sound's colour over time; neither replaces listening."
    )
    if any(example.remark is not None for example in report.examples):
        text += " Examples that were chosen because they are bad are left out of it."
    bits = math.log2(report.info.codebook_size)
    if 8 * report.totals.codes_bytes / report.totals.num_codes > bits + 0.5:
        text += f" So little audio pays dearly for its dictionaries: over hours, bits per code fall towards {bits:g}."
    return note(text) + table(headings, rows)


def _mean_quality(examples: Iterable[Example], kbps: float) -> list[str]:
    renditions = [r for example in _usual(examples) for r in example.renditions if r.bandwidth_kbps == kbps]
    means = []
    for values in ([r.si_snr_db for r in renditions], [r.mel_distance for r in renditions]):
        known = [value for value in values if value is not None and math.isfinite(value)]
        means.append(number(sum(known) / len(known), 2) if known else "&ndash;")
    return means


def _usual(examples: Iterable[Example]) -> list[Example]:
    return [example for example in examples if example.remark is None]


def levels_section(report: Report) -> str:
    """Entries in use, perplexity and entropy of every level."""
    levels = report.codebooks.levels
    if not levels:
        return "<p>Nothing to show.</p>"
    size, bits = report.info.codebook_size, math.log2(report.info.codebook_size)
    charts = [
        bar_chart("Entries in use", f"% of {size}", [100 * lv.entries_used / size for lv in levels], 100, "level", "%"),
        bar_chart(
            "Perplexity", f"as if so many of {size} were used evenly", [lv.perplexity for lv in levels], size, "level"
        ),
        bar_chart(
            "Entropy", f"bits a code, at most {bits:g}", [lv.entropy_bits for lv in levels], bits, "level", " bits"
        ),
    ]
    text = "Level 0 is the coarsest. Over few minutes of audio rare entries have had no chance to occur yet."
    headings = ["Level", "Entries in use", "Perplexity", "Entropy, bits", "Bits at rest"]
    rows = [
        [str(index), f"{level.entries_used} of {size}", f"{level.perplexity:.0f}", f"{level.entropy_bits:.2f}",
         f"{level.bits_at_rest:.2f}"]
        for index, level in enumerate(levels)
    ]  # fmt: skip
    return (
        f'{note(text + _sampled(report.codebooks))}<div class="charts">{"".join(charts)}</div>'
        f"<details><summary>The numbers</summary>{table(headings, rows)}</details>"
    )


def drift_section(report: Report) -> str:
    """How parts differ in their use of the coarsest codebook; empty where there is only one part."""
    parts = report.codebooks.parts
    if len(parts) < 2:
        return ""
    size = report.info.codebook_size
    divergences = [part.divergence_bits for part in parts]
    chance = max(part.chance_bits for part in parts)
    text = (
        "Parts follow the order of the inputs, so another speaker, language or microphone shows as a step, and a fault "
        "in some files as a part that stands out. Divergence is Jensen-Shannon's between a part's codes of level 0 and "
        "those of all parts: 0 bits for the same frequencies, 1 for no entry in common; "
        f"the smallest part has at least {chance:.2g} by chance alone."
    )
    top = max(*divergences, 0.05)
    charts = [
        bar_chart("Perplexity of level 0", f"of at most {size}", [part.perplexity for part in parts], size, "part"),
        bar_chart(
            "Divergence from the whole", f"bits; the whole height is {top:.2g}", divergences, top, "part", " bits"
        ),
    ]
    rows = [
        [part.name, f"{part.perplexity:.0f}", f"{part.divergence_bits:.4f}", f"{part.chance_bits:.4f}"]
        for part in parts
    ]
    numbers = table(["Part", "Perplexity", "Divergence, bits", "By chance, at least"], rows, kind="ids")
    return (
        f'{note(text + _sampled(report.codebooks))}<div class="charts">{"".join(charts)}</div>'
        f"<details><summary>The numbers</summary>{numbers}</details>"
    )


def _sampled(codebooks: CodebookFacts) -> str:
    if len(codebooks.parts) >= codebooks.num_parts:
        return ""
    return f" Counted in {len(codebooks.parts)} of {codebooks.num_parts:,} parts, at equal distances."
