"""A row of the benchmarks: everybody does the same work in turns, and ratios are of neighbours in time."""

import dataclasses
import time

import pytest

from pipelines.benchmarking.bench_contest import Contender, Contest, Turns, hold
from pipelines.benchmarking.bench_row import Result, Row


def _contest(calls, baseline="slow"):
    contenders = [Contender(name, call) for name, call in calls.items()]
    return Contest(key="a/b", work="encode", unit="x", contenders=contenders, baseline=baseline)


def test_another_contender_begins_each_round_and_the_first_calls_do_not_count():
    said = []

    def call(name):
        said.append(name)
        return 1.0

    row = hold(_contest({"slow": lambda: call("slow"), "fast": lambda: call("fast")}), Turns(rounds=3, patience_s=60))
    assert said == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert [len(result.rounds) for result in row.results] == [3, 3]


def test_ratios_are_medians_of_the_rounds_ratios():
    def slow():
        time.sleep(0.02)
        return 1.0

    def fast():
        time.sleep(0.01)
        return 2.0

    row = hold(_contest({"slow": slow, "fast": fast}), Turns(rounds=3, patience_s=60))
    base, other = row.results
    assert base.ratio == 1.0
    by_round = sorted(a / b for a, b in zip(other.rounds, base.rounds, strict=True))
    assert other.ratio == by_round[1]
    assert other.ratio > 1.5


def test_patience_ends_the_rounds_but_one_is_measured():
    row = hold(_contest({"slow": lambda: 1.0}), Turns(rounds=50, patience_s=0.0))
    assert len(row.results[0].rounds) == 1


def test_without_a_baseline_there_are_no_ratios():
    assert hold(_contest({"slow": lambda: 1.0}, None), Turns(1, 0.0)).results[0].ratio is None


def test_a_baseline_that_does_not_take_part_is_refused():
    with pytest.raises(ValueError, match="'slow' is not one of fast"):
        hold(_contest({"fast": lambda: 1.0}), Turns())


def test_a_row_survives_json_types_and_names_its_command():
    row = Row("scan", "histograms", "codes/s", (Result("ours", 2.0, (1.0, 2.0), 0.5, 8.0),), "theirs")
    plain = dataclasses.asdict(row)
    plain["results"] = [{**result, "rounds": list(result["rounds"])} for result in plain["results"]]
    assert Row.from_dict(plain) == row
    assert row.command == "quantone bench all --only scan"
    assert row.results[0].gap == 4.0
