"""Query results: nothing is lost silently, nothing is interpreted, nothing is wider than needed."""

from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from pipelines.commands.frame_output import choose_format, frame_table, write_frame


def rendered(frame, **options):
    """The table as text without a terminal."""
    console = Console(width=120, record=True, quiet=False, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(frame_table(frame, **options))
    return console.export_text()


def test_a_cut_table_says_so():
    """Forty of a hundred rows are shown, and the last line says which part of all that is."""
    text = rendered(pl.DataFrame({"n": range(100)}))
    assert "40 of 100 rows" in text
    assert " 39 " in text
    assert " 40 \n" not in text


def test_text_that_looks_like_markup_is_shown_as_it_is():
    """Ids come from file names, and file names may say anything."""
    assert "[bold]loud[/bold].wav" in rendered(pl.DataFrame({"[red]id": ["[bold]loud[/bold].wav"]}))


def test_nulls_floats_and_lists_are_short():
    """Empty for null, three decimals, the first items of a list with their count."""
    text = rendered(pl.DataFrame({"a": [1.23456], "b": [None], "c": [list(range(10))]}))
    assert "1.235" in text
    assert "None" not in text
    assert "[0, 1, 2, 3, 4, 5, … 10 in all]" in text


@pytest.mark.parametrize(
    ("asked", "output", "chosen"),
    [(None, None, "table"), (None, "a.CSV", "csv"), (None, "a.txt", "table"), ("json", "a.csv", "json")],
)
def test_a_file_name_chooses_the_format_unless_one_is_asked_for(asked, output, chosen):
    """rows.csv is CSV without more words; an explicit --format wins."""
    assert choose_format(asked, None if output is None else Path(output)) == chosen


def test_an_unknown_format_lists_the_known_ones():
    """The error is the documentation."""
    with pytest.raises(ValueError, match="table, csv, json, parquet"):
        choose_format("xml", None)


@pytest.mark.parametrize("output_format", ["table", "csv", "json", "parquet"])
def test_an_empty_result_is_no_error(output_format, tmp_path):
    """No rows still gives a file with its columns."""
    write_frame(pl.DataFrame(schema={"id": pl.String, "codes_00": pl.List(pl.UInt16)}), output_format, tmp_path / "out")
    assert (tmp_path / "out").stat().st_size > 0
