"""`.codes`: queries over token datasets."""

import numpy as np
import polars as pl
import pytest

import pipelines.polars_namespace  # noqa: F401


@pytest.fixture
def frame():
    """Three utterances of two levels, V = 16, 75 frames a second: 0.3 kbps a level."""
    constants = {"sample_rate": 24000, "hop_length": 320, "codebook_size": 16}
    return pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            **{name: [value] * 3 for name, value in constants.items()},
            "codes_00": [[1, 2, 2], [], [15]],
            "codes_01": [[3, 4, 5], [], [6]],
        },
        schema_overrides={"codes_00": pl.List(pl.UInt16), "codes_01": pl.List(pl.UInt16)},
    )


def test_rates_follow_from_the_rows(frame):
    """Levels x 4 bits x 75 frames a second."""
    assert frame.codes.num_codebooks() == 2
    assert frame.codes.bitrate_kbps() == pytest.approx(0.6)
    assert frame.lazy().codes.bitrate_kbps() == pytest.approx(0.6)


def test_a_lower_bandwidth_is_a_projection(frame, tmp_path):
    """Only columns are dropped, and the plan reads nothing of the levels left out."""
    frame.write_parquet(tmp_path / "part.parquet")
    lazy = pl.scan_parquet(tmp_path / "part.parquet").codes.at_bandwidth(0.3)
    assert lazy.collect().equals(frame.drop("codes_01"))
    assert "PROJECT 5/6 COLUMNS" in lazy.explain()
    assert frame.codes.at_bandwidth(0.6).equals(frame)


@pytest.mark.parametrize("kbps", [0.9, 0.4, 0.0, -0.3])
def test_a_bandwidth_that_is_not_stored_lists_what_is(frame, kbps):
    """The message is the way out."""
    with pytest.raises(ValueError, match=r"0\.3, 0\.6"):
        frame.lazy().codes.at_bandwidth(kbps)


def test_codes_become_arrays(frame):
    """[K, T] uint16 for every row in order, empty ones included, eagerly and in batches."""
    expected = [np.array([[1, 2, 2], [3, 4, 5]]), np.zeros((2, 0)), np.array([[15], [6]])]
    for arrays in (frame.codes.to_numpy(), list(frame.lazy().codes.to_numpy(rows_per_batch=2))):
        assert [array.dtype for array in arrays] == [np.uint16] * 3
        for array, wanted in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)


def test_histograms_count_every_entry(frame):
    """Unused entries are there with 0, so that histograms add up."""
    histogram = frame.codes.histogram(0)
    assert histogram["code"].to_list() == list(range(16))
    assert histogram.filter(pl.col("count") > 0).rows() == [(1, 1), (2, 2), (15, 1)]
    with pytest.raises(ValueError, match="0 to 1"):
        frame.codes.histogram(2)


def test_expressions_know_codes_too(frame):
    """Inside select and group_by."""
    assert frame.select(pl.col("codes_00").codes.num_frames()).to_series().to_list() == [3, 0, 1]
    counts = frame.select(pl.col("codes_00").codes.histogram()).to_series().to_list()
    assert counts[0] == {"code": 2, "count": 2}


def test_frames_that_lost_what_is_needed_say_so(frame):
    """Columns dropped by a query are named."""
    with pytest.raises(ValueError, match="no codes"):
        frame.drop("codes_00", "codes_01").codes.num_codebooks()
    with pytest.raises(ValueError, match="hop_length"):
        frame.drop("hop_length").codes.bitrate_kbps()
    with pytest.raises(ValueError, match="gaps"):
        frame.drop("codes_00").codes.num_codebooks()
    with pytest.raises(ValueError, match="no rows"):
        frame.head(0).codes.bitrate_kbps()
