"""Results of listening tests: the paper's filter, means with intervals, and files that cannot be what they claim."""

import csv
import io
import json

import pytest
from rich.console import Console

from pipelines.evaluating.mushra_results import (
    COLUMNS,
    Rating,
    read_ratings,
    summarize,
    summary_lines,
    summary_table,
    write_summary,
)
from tokenizer import DatasetError


def ratings_of(listener, scores):
    """Ratings by condition: a list of scores, one a clip."""
    return [
        Rating("t", listener, f"clip{number}", condition, float(score))
        for condition, own in scores.items()
        for number, score in enumerate(own)
    ]


def write_csv(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


CAREFUL = {"reference": [100] * 10, "low_anchor": [30] * 10, "mine 6 kbps": [70] * 10}


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"reference": [89] + [100] * 9}, True),
        ({"reference": [90] * 10}, True),
        ({"reference": [89] * 2 + [100] * 8}, False),
        ({"low_anchor": [81] * 5 + [30] * 5}, True),
        ({"low_anchor": [80] * 10}, True),
        ({"low_anchor": [81] * 6 + [30] * 4}, False),
    ],
    ids=["one of ten", "at 90", "two of ten", "half the anchors", "at 80", "most anchors"],
)
def test_the_filter_is_the_paper_s(changed, kept):
    """Dropped: the reference under 90 in at least 20 % of cases, or the anchor above 80 in more than 50 %."""
    ratings = ratings_of("careful", CAREFUL) + ratings_of("other", CAREFUL | changed)
    summary = summarize(ratings)
    assert summary.listeners == (("careful", "other") if kept else ("careful",))
    assert list(summary.dropped) == ([] if kept else ["other"])


def test_who_was_dropped_is_told_with_the_reason():
    """In figures, so that the filter can be checked; their ratings do not count."""
    careless = CAREFUL | {"reference": [50] * 3 + [100] * 7, "mine 6 kbps": [0] * 10}
    summary = summarize(ratings_of("a", CAREFUL) + ratings_of("b", careless))
    assert list(summary_lines(summary)) == [
        "dropped b: hidden reference under 90 in 3 of 10 cases (20 % or more)",
        "1 of 2 listeners kept",
    ]
    assert {row.condition: row.score.mean for row in summary.rows} == {
        "reference": 100.0,
        "mine 6 kbps": 70.0,
        "low_anchor": 30.0,
    }


def test_a_listener_without_hidden_reference_is_not_believed():
    """Somebody who stopped before the first one: there is nothing to judge the ratings by."""
    summary = summarize(ratings_of("a", CAREFUL) + ratings_of("b", {"mine 6 kbps": [99]}))
    assert "nothing vouches" in summary.dropped["b"]


def test_conditions_come_best_first_with_their_intervals():
    """Mean over the ratings of those kept, bootstrapped over listeners and clips; all of it also as a table."""
    mild, strict = ({**CAREFUL, "mine 6 kbps": [base + number for number in range(10)]} for base in (70, 50))
    summary = summarize(ratings_of("mild", mild) + ratings_of("strict", strict))
    assert [row.condition for row in summary.rows] == ["reference", "mine 6 kbps", "low_anchor"]
    mine = summary.rows[1]
    assert (mine.score.mean, mine.num_ratings, mine.num_listeners) == (64.5, 20, 2)
    assert 50 < mine.score.low < 58 < 71 < mine.score.high < 79
    console = Console(width=80, file=io.StringIO())
    console.print(summary_table(summary))
    cells = ["mine", "6", "kbps", "64.5", f"{mine.score.low:.1f}", "to", f"{mine.score.high:.1f}", "20", "2"]
    assert console.file.getvalue().splitlines()[2].split() == cells


def test_nobody_left_is_an_answer():
    """Every listener dropped: no means, and the reasons."""
    summary = summarize(ratings_of("a", CAREFUL | {"reference": [10] * 10}))
    assert (summary.listeners, summary.rows) == ((), ())
    assert list(summary_lines(summary))[-1] == "0 of 1 listener kept"


@pytest.mark.parametrize("missing", ["reference", "low_anchor"])
def test_the_filter_needs_both_ends(missing):
    """Files without the hidden reference or the anchor are of some other test."""
    scores = {name: own for name, own in CAREFUL.items() if name != missing}
    with pytest.raises(DatasetError, match=missing):
        summarize(ratings_of("a", scores))


def test_several_files_are_read_as_one(tmp_path):
    """Other columns may stand among ours, in any order; a byte order mark, as Excel writes it, does no harm."""
    rows = [[85, "reference", "clip", "Anna", "quiet"], ["7.5", "low_anchor", "a, b", "Anna", ""]]
    columns = ["score", "condition", "clip", "listener", "room"]
    first = write_csv(tmp_path / "a.csv", rows, columns)
    first.write_bytes(b"\xef\xbb\xbf" + first.read_bytes())
    second = write_csv(tmp_path / "b.csv", [["", "Ben", "clip", "reference", 3]])
    assert read_ratings([first, second]) == [
        Rating("", "Anna", "clip", "reference", 85.0),
        Rating("", "Anna", "a, b", "low_anchor", 7.5),
        Rating("", "Ben", "clip", "reference", 3.0),
    ]


GOOD = ["t", "Anna", "clip", "reference", "95"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["t", "Anna", "clip", "low_anchor", "101"], "row 3: score '101'"),
        (["t", "Anna", "clip", "low_anchor", "loud"], "row 3: score 'loud'"),
        (["t", "Anna", "clip", "low_anchor", "nan"], "row 3: score 'nan'"),
        (["t", "Anna", "", "low_anchor", "5"], "row 3: nothing in column clip"),
        (["t", "Anna", "clip"], "row 3: nothing in column condition"),
        ([*GOOD, "more"], "row 3: more cells than columns"),
        (GOOD, "row 3: listener 'Anna' rated 'reference' of 'clip' before, in .*, row 2"),
        (["u", "Ben", "clip", "reference", "95"], "row 3: of the test 'u', the rows before are of 't'"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path, row, message):
    """By file and row, in one line."""
    path = write_csv(tmp_path / "a.csv", [GOOD, row])
    with pytest.raises(DatasetError, match=f"a.csv, {message}"):
        read_ratings([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "row 1: no column listener"),
        (b"listener;clip;condition;score\n", "row 1: no column"),
        (b"\xff\xfe\x00\x01", "not a CSV file"),
        (b'listener,clip,condition,score\n"Anna,x\n', "not a CSV file"),
        (b"listener,clip,condition,score\n", "no ratings"),
    ],
    ids=["empty", "semicolons", "binary", "open quote", "header only"],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, content, message):
    """With the name of what was expected."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_ratings([tmp_path / "a.csv"])


def test_the_summary_is_written_as_json(tmp_path):
    """Who was kept, who was not, and every condition."""
    write_summary(summarize(ratings_of("a", CAREFUL)), tmp_path / "deep" / "m.json")
    report = json.loads((tmp_path / "deep" / "m.json").read_text())
    assert report["listeners"] == ["a"]
    assert report["dropped"] == {}
    assert [row["condition"] for row in report["rows"]] == ["reference", "mine 6 kbps", "low_anchor"]
    assert report["rows"][0]["score"] == {"mean": 100.0, "low": 100.0, "high": 100.0}
    assert "listeners and clips" in report["intervals"]
