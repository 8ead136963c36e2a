"""What listeners said: ratings in the blind page's CSV files, the filter for careless listeners, means of the rest."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from pipelines.evaluating.bootstrap import CONFIDENCE, NUM_RESAMPLES, Interval, crossed_interval
from tokenizer import DatasetError

REFERENCE, LOW_ANCHOR = "reference", "low_anchor"  # names of the two conditions that are known in advance
COLUMNS = ("test", "listener", "clip", "condition", "score")
OPTIONAL_COLUMN = "test"  # which pages the ratings were given on; other programs' files may lack it
MIN_REFERENCE, REFERENCE_PERCENT = 90, 20  # under it in so many cases or more
MAX_ANCHOR, ANCHOR_PERCENT = 80, 50  # above it in more cases than that


@dataclass(frozen=True, slots=True)
class Rating:
    """One slider of one listener."""

    test: str
    listener: str
    clip: str
    condition: str
    score: float  # 0 to 100


@dataclass(frozen=True, slots=True)
class Condition:
    """How a condition was rated by the listeners that count."""

    condition: str
    score: Interval
    num_ratings: int
    num_listeners: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Who counts, who does not and why, and the conditions from best to worst."""

    listeners: tuple[str, ...]
    dropped: dict[str, str]  # listener -> reason
    rows: tuple[Condition, ...]


def read_ratings(paths: Iterable[Path]) -> list[Rating]:
    """All ratings of CSV files with the columns listener, clip, condition and score (others may stand beside them).

    Raises:
        DatasetError: names the file and the row that cannot be what the page wrote, or that contradicts another one.
    """
    ratings: list[Rating] = []
    places: dict[tuple[str, str, str], str] = {}
    for path in paths:
        for place, rating in _read_file(path):
            key = (rating.listener, rating.clip, rating.condition)
            if key in places:
                raise DatasetError(
                    f"{place}: listener {rating.listener!r} rated {rating.condition!r} of {rating.clip!r} before, "
                    f"in {places[key]}"
                )
            if ratings and rating.test != ratings[0].test:
                raise DatasetError(f"{place}: of the test {rating.test!r}, the rows before are of {ratings[0].test!r}")
            places[key] = place
            ratings.append(rating)
    if not ratings:
        raise DatasetError("no ratings in these files")
    return ratings


def summarize(ratings: Sequence[Rating]) -> Summary:
    """Drop listeners by the paper's filter, and average over the others.

    A listener is dropped who rates the hidden reference under 90 in at least 20 % of the cases, or the low anchor
    above 80 in more than half of them. Intervals are bootstrapped over listeners and clips at once.

    Raises:
        DatasetError: nobody rated the reference, or the low anchor: there is nothing to filter by.

    Source: EnCodec, arXiv:2210.13438, 4.3.
    """
    for needed in (REFERENCE, LOW_ANCHOR):
        if all(rating.condition != needed for rating in ratings):
            raise DatasetError(f"no rating of the condition {needed!r}: the filter for listeners needs it")
    by_listener: dict[str, list[Rating]] = {}
    for rating in ratings:
        by_listener.setdefault(rating.listener, []).append(rating)
    reasons = {listener: _why_dropped(own) for listener, own in sorted(by_listener.items())}
    dropped = {listener: reason for listener, reason in reasons.items() if reason is not None}
    kept = tuple(listener for listener in reasons if listener not in dropped)
    counted = [rating for rating in ratings if rating.listener not in dropped]
    rows = [_average(name, counted) for name in sorted({rating.condition for rating in counted})]
    return Summary(kept, dropped, tuple(sorted(rows, key=lambda row: -row.score.mean)))


def summary_lines(summary: Summary) -> Iterator[str]:
    """Who was dropped, and over whom the means are."""
    for listener, reason in summary.dropped.items():
        yield f"dropped {listener}: {reason}"
    kept, everyone = len(summary.listeners), len(summary.listeners) + len(summary.dropped)
    yield f"{kept} of {everyone} listener{'' if everyone == 1 else 's'} kept"


def summary_table(summary: Summary) -> Table:
    """Conditions from best to worst."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("condition", overflow="fold")
    for heading in ("score", "95 % interval", "ratings", "listeners"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.rows:
        low, high = row.score.low, row.score.high
        interval = "-" if low is None or high is None else f"{low:.1f} to {high:.1f}"
        table.add_row(row.condition, f"{row.score.mean:.1f}", interval, str(row.num_ratings), str(row.num_listeners))
    return table


def write_summary(summary: Summary, path: Path) -> None:
    """The summary as JSON."""
    intervals = f"{CONFIDENCE:.0%} bootstrap over listeners and clips, {NUM_RESAMPLES} resamples"
    report = {"intervals": intervals, **asdict(summary)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _read_file(path: Path) -> Iterator[tuple[str, Rating]]:
    """Ratings of one file, each with the place to name when something is wrong with it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, strict=True)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ()) and name != OPTIONAL_COLUMN]
            if missing:
                raise DatasetError(
                    f"{path}, row 1: no column {', '.join(missing)}; needed are {', '.join(COLUMNS[1:])}"
                )
            for row in rows:
                place = f"{path}, row {rows.line_num}"
                yield place, _rating(row, place)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a CSV file in UTF-8: {error}") from error


def _rating(row: dict[str, str | None], place: str) -> Rating:
    empty = [name for name in COLUMNS[1:] if not (row[name] or "").strip()]
    if empty or None in row:  # csv keeps surplus cells under the key None
        raise DatasetError(f"{place}: {'nothing in column ' + empty[0] if empty else 'more cells than columns'}")
    text = {name: (row.get(name) or "").strip() for name in COLUMNS}
    try:
        score = float(text["score"])
    except ValueError:
        score = float("nan")
    if not 0 <= score <= 100:
        raise DatasetError(f"{place}: score {text['score']!r} is not a number from 0 to 100")
    return Rating(text["test"], text["listener"], text["clip"], text["condition"], score)


def _why_dropped(own: Sequence[Rating]) -> str | None:
    """The reason to leave a listener out, or None."""
    references = [rating.score for rating in own if rating.condition == REFERENCE]
    anchors = [rating.score for rating in own if rating.condition == LOW_ANCHOR]
    if not references or not anchors:
        return "rated no hidden reference, or no low anchor: nothing vouches for the other ratings"
    missed = sum(score < MIN_REFERENCE for score in references)
    if 100 * missed >= REFERENCE_PERCENT * len(references):
        cases = f"{missed} of {len(references)} cases ({REFERENCE_PERCENT} % or more)"
        return f"hidden reference under {MIN_REFERENCE} in {cases}"
    praised = sum(score > MAX_ANCHOR for score in anchors)
    if 100 * praised > ANCHOR_PERCENT * len(anchors):
        return f"low anchor above {MAX_ANCHOR} in {praised} of {len(anchors)} cases (more than {ANCHOR_PERCENT} %)"
    return None


def _average(condition: str, ratings: Sequence[Rating]) -> Condition:
    own = [rating for rating in ratings if rating.condition == condition]
    listeners = sorted({rating.listener for rating in own})
    clips = sorted({rating.clip for rating in own})
    matrix = np.full((len(listeners), len(clips)), np.nan)
    for rating in own:
        matrix[listeners.index(rating.listener), clips.index(rating.clip)] = rating.score
    return Condition(condition, crossed_interval(matrix), len(own), len(listeners))
