"""Scans are measured on a dataset like any other, and only where all engines give the same answer."""

import importlib.util

import numpy as np
import pytest

from pipelines import open_dataset
from pipelines.benchmarking import bench_scan as room
from pipelines.benchmarking.bench_contest import Turns
from pipelines.benchmarking.bench_scan import BASELINE, OURS, bench_scan, scan_target
from pipelines.benchmarking.scan_dataset import write_scan_dataset
from tokenizer import DatasetError

QUICK = Turns(rounds=1, patience_s=0.0)
HAS_DUCKDB = importlib.util.find_spec("duckdb") is not None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """36,000 codes of real speech: three rows of 16 levels."""
    root = tmp_path_factory.mktemp("scan") / "tokens"
    return root, write_scan_dataset(root, 30_000)


def test_there_are_as_many_codes_as_asked_for_in_whole_rows(dataset):
    root, num_codes = dataset
    assert num_codes == 3 * 16 * 750
    frame = open_dataset(root).collect()
    assert frame.height == 3
    assert frame["codes_15"].list.len().to_list() == [750] * 3
    assert scan_target(root).codes(4) == 3 * 4 * 750


def test_all_engines_answer_alike_and_have_a_row_each(dataset):
    said = []
    rows = bench_scan(dataset[0], turns=QUICK, missing=said.append)
    assert [row.work for row in rows] == ["histograms of 16 levels", "4 of 16 levels to arrays"]
    names = [OURS, "quantone, verify=False", BASELINE] + ["DuckDB"] * HAS_DUCKDB
    for row in rows:
        assert [result.contender for result in row.results] == names
        assert all(result.value > 0 for result in row.results)
    assert len(said) == (0 if HAS_DUCKDB else 2)
    assert all("pip install duckdb" in message for message in said)


def test_the_answers_are_those_of_the_dataset(dataset):
    """Counts of every level, and codes of the first ones, as the rows have them."""
    target = scan_target(dataset[0])
    codes = open_dataset(dataset[0]).codes.to_numpy()
    everything = np.stack(list(codes))
    counts = room._histograms(target, lambda _: None)[OURS]()
    assert np.array_equal(counts[5], np.bincount(everything[:, 5].ravel(), minlength=1024))
    assert np.array_equal(room._views(target, 4, lambda _: None)[OURS](), everything[:, :4])


def test_engines_that_differ_are_not_timed():
    engines = {OURS: lambda: np.zeros(3), BASELINE: lambda: np.ones(3)}
    with pytest.raises(DatasetError, match="give different answers"):
        room._require_agreement("counting", engines)
