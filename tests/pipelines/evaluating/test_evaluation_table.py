"""An evaluation on a terminal of 100 columns: every figure, and what it lacks."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipelines.evaluating.bootstrap import Interval
from pipelines.evaluating.evaluation_scores import CodebookUse, Evaluation, Row
from pipelines.evaluating.evaluation_table import (
    TABLE_WIDTH,
    codebook_line,
    evaluation_notes,
    evaluation_table,
    score_text,
)


def row(system="speech_24khz_long_name", kbps=12.0):
    """The widest figures that occur."""
    scores = {
        "si_snr_db": Interval(-12.34, -22.34, -2.34),
        "mel_distance": Interval(0.123, 0.1, 0.146),
        "stoi": Interval(0.912, 0.900, 0.924),
        "pesq_wb": Interval(3.21, 3.11, 3.33),
        "visqol": Interval(4.11, None, None),
    }
    return Row(system, kbps, kbps + 0.04, 20, scores, dict.fromkeys(scores, 0), 123.4, 5.678)


@pytest.fixture
def evaluation():
    """Two codecs, one at two bandwidths."""
    rows = [row(kbps=6.0), row(), row("runs/an/experiment/with/a/name/codec")]
    use = CodebookUse("speech_24khz", 1024, 2048, (0.98, 0.613, 0.9))
    clips = {f"clip{number}": [] for number in range(20)}
    return Evaluation((), "speech", 24000, 8, None, (), clips, {"bad.wav": "AudioError: no"}, rows, [use])


def printed(evaluation):
    console = Console(width=TABLE_WIDTH, file=io.StringIO())
    console.print(evaluation_table(evaluation))
    return console.file.getvalue()


def test_every_figure_fits(evaluation):
    """Nothing is cut off or wrapped, though long names are folded; the interval stands beside its mean."""
    lines = printed(evaluation).splitlines()
    assert all(len(line.rstrip()) <= TABLE_WIDTH for line in lines)
    figures = "-12.34 ±10.00 0.123 ±.023 0.912 ±.012 3.21 ±.11   4.11   123   5.7"
    assert sum(figures in line for line in lines) == 3
    assert "…" not in "".join(lines)
    assert "".join(line[:20].strip() for line in lines[2:]).count("speech_24khz_long_name") == 1
    assert "20 clips, compared at 24 kHz" in lines[0]


def test_notes_say_what_is_missing(evaluation):
    """Scores that clips lack, by metric, and clips that have none with the reason."""
    failures = {**evaluation.rows[0].failures, "pesq_wb": 3}
    evaluation.rows[0] = replace(evaluation.rows[0], failures=failures)
    notes = list(evaluation_notes(evaluation))
    assert "no PESQ-WB of up to 3 clips" in notes
    assert "left out: bad.wav: AudioError: no" in notes
    assert not any("STOI" in note for note in notes)


def test_codebook_use_is_told_by_level():
    """The lowest level stands out, and too little audio is no fault of the codec."""
    line = codebook_line(CodebookUse("mine", 1024, 2048, (0.98, 0.613, 0.9)))
    assert "at least 61 % of 1024 entries" in line
    assert "least: level 1" in line
    assert "98 61 90; only 2.0 codes per entry" in line
    assert "only" not in codebook_line(CodebookUse("mine", 16, 2048, (1.0, 0.5)))


def test_a_score_that_nobody_has_is_a_dash():
    """And one without an interval stands alone."""
    assert score_text(None, 2) == ("-", "")
    assert score_text(Interval(1.25, None, None), 3) == ("1.250", "")
