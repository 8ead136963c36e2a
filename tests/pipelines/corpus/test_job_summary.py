"""How much of a job may fail, counted over all of its runs."""

import pytest

from pipelines.corpus.job_summary import ErrorLimit
from pipelines.datasets.parts import ErrorRow, encode_errors, part_name
from tokenizer import DatasetError


@pytest.fixture
def dataset(tmp_path):
    """Two units that are done, with three failed inputs; and one with five that was interrupted before its part."""
    for folder in ("parts", "errors"):
        (tmp_path / folder).mkdir()
    for unit, count in enumerate((1, 2, 5)):
        rows = [ErrorRow(f"{unit}-{index}", "", "AudioError", "not audio") for index in range(count)]
        (tmp_path / "errors" / part_name(unit)).write_bytes(encode_errors(rows))
    for unit in range(2):
        (tmp_path / "parts" / part_name(unit)).touch()
    return tmp_path


def test_errors_of_earlier_runs_count_once(dataset):
    """Those of a unit that will be done again do not: it will have its errors then."""
    ErrorLimit(0.3, 10, str(dataset)).check(0)
    with pytest.raises(DatasetError, match="4 of 10 inputs failed"):
        ErrorLimit(0.3, 10, str(dataset)).check(1)
    with pytest.raises(DatasetError, match="3 of 10 inputs failed"):
        ErrorLimit(0.2, 10, str(dataset))


def test_a_new_dataset_has_no_errors(dataset):
    """Whatever lies there."""
    ErrorLimit(0.0, 10, None).check(0)


def test_damage_is_told(dataset):
    """With the file that it is in."""
    (dataset / "errors" / part_name(1)).write_bytes(b"PAR1 but not for long")
    with pytest.raises(DatasetError, match=r"part-00001\.parquet: damaged"):
        ErrorLimit(0.5, 10, str(dataset))
