"""`.codes`: queries over token datasets."""

import subprocess
import sys

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


def test_counts_do_not_end_at_32_bits(frame):
    """Silence alone is one entry, 270,000 times an hour: a corpus of 16,000 hours has 2**32 of it."""
    assert frame.codes.histogram(0).schema["count"] == pl.UInt64


def jensen_shannon(group, whole):
    """By the definition, over all entries."""
    p, q = group / group.sum(), whole / whole.sum()
    entropy = [-(share[share > 0] * np.log2(share[share > 0])).sum() for share in ((p + q) / 2, p, q)]
    return entropy[0] - (entropy[1] + entropy[2]) / 2


def test_drift_compares_each_group_with_the_whole(frame):
    """Perplexity is the group's own; divergence is Jensen-Shannon's, entries that the group lacks included."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 4 * (1 + index % 3), size=50).tolist() for index in range(9)]
    frame = pl.DataFrame(
        {"speaker": [f"s{index % 3}" for index in range(9)], "codes_00": rows},
        schema_overrides={"codes_00": pl.List(pl.UInt16)},
    )
    drift = frame.lazy().codes.drift("speaker").collect()
    assert drift["speaker"].to_list() == ["s0", "s1", "s2"]
    assert drift["codes"].to_list() == [150] * 3
    counts = [np.bincount(np.concatenate(rows[group::3]), minlength=12) for group in range(3)]
    for row, count in zip(drift.iter_rows(named=True), counts, strict=True):
        share = count[count > 0] / 150
        assert row["perplexity"] == pytest.approx(2 ** -(share * np.log2(share)).sum())
        assert row["divergence_bits"] == pytest.approx(jensen_shannon(count, sum(counts)))
    assert frame.codes.drift("speaker").equals(drift)


def test_drift_is_between_zero_and_one_bit(frame):
    """Groups that use one book alike do not differ; the only group is the whole; a null is a group of its own."""
    alike = pl.concat([frame.with_columns(count=pl.lit(name)) for name in ("a", "b", None)])
    drift = alike.codes.drift("count", level=1)
    assert drift["count"].to_list() == [None, "a", "b"]
    assert drift["divergence_bits"].to_list() == pytest.approx([0, 0, 0])
    assert frame.with_columns(all=pl.lit(1)).codes.drift("all")["divergence_bits"].to_list() == pytest.approx([0])
    apart = frame.codes.drift("id")
    assert apart["id"].to_list() == ["a", "c"]  # b has no codes
    assert ((apart["divergence_bits"] > 0) & (apart["divergence_bits"] < 1)).all()
    with pytest.raises(ValueError, match="no column 'speaker'"):
        frame.codes.drift("speaker")
    with pytest.raises(ValueError, match="0 to 1"):
        frame.codes.drift("id", level=2)


def test_drift_reads_only_what_it_needs(frame, tmp_path):
    """Over parts, by their names: of all columns only one level is read."""
    for name in ("part-0", "part-1"):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    drift = pl.scan_parquet(tmp_path / "*.parquet", include_file_paths="part").codes.drift("part", level=1)
    assert drift.collect().height == 2
    assert "PROJECT 1/7 COLUMNS" in drift.explain()


@pytest.mark.slow
def test_queries_over_codes_stay_small(tmp_path):
    """Histograms, drift and arrays of 80 million codes in 16 levels: each takes less than 300 MB beyond the imports."""
    rng = np.random.default_rng(0)
    levels = {f"codes_{level:02d}": pl.List(pl.UInt16) for level in range(16)}
    for part in range(20):
        rows = [rng.integers(0, 1024, 1000, dtype=np.uint16) for _ in range(250)]
        constants = {"sample_rate": 24000, "hop_length": 320, "codebook_size": 1024}
        pl.DataFrame(
            {
                "part": [part] * 250,
                **{key: [value] * 250 for key, value in constants.items()},
                **dict.fromkeys(levels, rows),
            },
            schema_overrides=levels,
        ).write_parquet(tmp_path / f"part-{part:02d}.parquet")
    for query in (
        "sum(frame.codes.histogram(level)['count'].sum() for level in range(16)) == 80_000_000",
        "frame.codes.drift('part').collect()['codes'].sum() == 5_000_000",
        "sum(codes.size for codes in frame.codes.to_numpy()) == 80_000_000",
        "sum(codes.size for codes in frame.codes.at_bandwidth(3.0).codes.to_numpy()) == 20_000_000",
    ):
        program = (
            "import resource, polars as pl, pipelines.polars_namespace\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            f"frame = pl.scan_parquet({str(tmp_path / '*.parquet')!r})\n"
            f"assert {query}\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        grown = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
        assert grown < 300_000, query


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
