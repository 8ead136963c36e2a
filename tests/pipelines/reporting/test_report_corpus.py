"""What a report gathers from the rows: the same facts however the rows arrive, in memory that does not grow."""

import numpy as np
import polars as pl
import pytest

from pipelines.reporting import report_corpus
from pipelines.reporting.report_corpus import scan_rows
from pipelines.reporting.report_examples import ExampleChoice, choose_examples
from pipelines.reporting.report_groups import MOST_VALUES, HoursBy, SoundHashes

NUM_ROWS = 500


@pytest.fixture
def rows():
    """Rows of a dataset with every column that facts come from; the first ten are silence, two have no SI-SNR."""
    rng = np.random.default_rng(0)
    silent = np.arange(NUM_ROWS) < 10
    ratio = np.where(np.arange(NUM_ROWS) < 2, np.nan, rng.normal(7, 3, NUM_ROWS))
    return pl.DataFrame(
        {
            "id": [f"clip{index:04d}" for index in range(NUM_ROWS)],
            "uri": "file:///nowhere",
            "num_samples": rng.integers(1000, 99999, NUM_ROWS),
            "duration_s": rng.uniform(0.5, 20, NUM_ROWS),
            "source_sample_rate": np.where(np.arange(NUM_ROWS) % 5, 16000, 44100),
            "source_channels": 1,
            "peak": np.where(silent, 0, rng.uniform(0.1, 1, NUM_ROWS)).astype(np.float32),
            "rms_dbfs": np.where(silent, -120, rng.normal(-26, 4, NUM_ROWS)).astype(np.float32),
            "clipping_share": np.where(np.arange(NUM_ROWS) % 50 == 7, rng.uniform(0, 0.1, NUM_ROWS), 0),
            "speech_share": np.where(silent, 0, rng.uniform(0.3, 1, NUM_ROWS)),
            "content_hash": [f"{int(number):016x}" for number in rng.integers(0, 2**63, NUM_ROWS)],
            "si_snr_db": ratio,
            "mel_distance": rng.uniform(0.1, 0.5, NUM_ROWS),
            "speaker": [f"s{index % 7}" for index in range(NUM_ROWS)],
            "text": [f"sentence {index}" for index in range(NUM_ROWS)],
            "codes_00": [[1, 2]] * NUM_ROWS,
        }
    ).with_columns(pl.col("si_snr_db").fill_nan(None))


def test_histograms_count_every_row_that_has_the_number(rows):
    """Silence has no level and no peak, rows without an SI-SNR are not in its histogram; quantiles are the column's."""
    found = scan_rows(rows.lazy(), NUM_ROWS, 0).corpus
    totals = {name: histogram.total for name, histogram in found.histograms.items()}
    assert totals == {
        "duration_s": 500,
        "rms_dbfs": 490,
        "peak_dbfs": 490,
        "speech_share": 500,
        "si_snr_db": 498,
        "mel_distance": 500,
    }
    audible = rows.filter(pl.col("rms_dbfs") > -120)
    assert found.histograms["rms_dbfs"].quantile(0.5) == pytest.approx(audible["rms_dbfs"].median(), abs=1)
    assert found.histograms["duration_s"].quantile(0.95) == pytest.approx(rows["duration_s"].quantile(0.95), rel=0.1)
    assert (found.num_silent, found.num_clipped, found.num_unmeasured) == (10, 10, 2)
    assert found.num_without_speech == 10


def test_what_lies_beyond_a_histogram_is_in_its_last_bin(rows):
    """A mel distance of 9, a file of a week and an SI-SNR of -100 are counted like all others."""
    extreme = rows.with_columns(mel_distance=pl.lit(9.0), duration_s=pl.lit(6e5), si_snr_db=pl.lit(-100.0))
    found = scan_rows(extreme.lazy(), NUM_ROWS, 0).corpus.histograms
    assert found["mel_distance"].counts[-1] == found["duration_s"].counts[-1] == found["si_snr_db"].counts[0] == 500


def test_the_worst_are_the_worst(rows):
    """Ten of each kind, the worst first, none without the number, and of clipping only rows that have some."""
    worst = scan_rows(rows.lazy(), NUM_ROWS, 0).corpus.worst
    measured = rows.drop_nulls("si_snr_db").sort("si_snr_db")
    assert [name for name, _ in worst["si_snr_db"]] == measured["id"].head(10).to_list()
    farthest = rows.sort("mel_distance", descending=True)
    assert [name for name, _ in worst["mel_distance"]] == farthest["id"].head(10).to_list()
    assert len(worst["clipping_share"]) == 10
    assert all(share > 0 for _, share in worst["clipping_share"])


def test_copies_of_one_bad_sound_are_listed_once(rows):
    """Otherwise a jingle that is in every episode would be all that the report shows."""
    jingle = pl.col("id") < "clip0050"
    copied = rows.with_columns(
        content_hash=pl.when(jingle).then(pl.lit("f" * 16)).otherwise("content_hash"),
        mel_distance=pl.when(jingle).then(2.0).otherwise("mel_distance"),
    )
    worst = scan_rows(copied.lazy(), NUM_ROWS, 0).corpus.worst["mel_distance"]
    assert [value == 2.0 for _, value in worst] == [True] + [False] * 9


def test_facts_do_not_depend_on_how_rows_arrive(rows, monkeypatch, tmp_path):
    """In one batch, or in many of some rows each, from files: the same facts, the same choice."""
    whole = scan_rows(rows.lazy(), NUM_ROWS, 8)
    for start in range(0, NUM_ROWS, 60):
        rows.slice(start, 60).write_parquet(tmp_path / f"{start:03d}.parquet", row_group_size=20)
    monkeypatch.setattr(report_corpus, "ROWS_AT_ONCE", 13)
    pieces = scan_rows(pl.scan_parquet(tmp_path / "*.parquet"), NUM_ROWS, 8)
    assert pieces.spread.equals(whole.spread)
    assert pieces.corpus.worst == whole.corpus.worst
    assert pieces.corpus.duplicates == whole.corpus.duplicates
    for name, histogram in whole.corpus.histograms.items():
        assert np.array_equal(pieces.corpus.histograms[name].counts, histogram.counts)
    for ours, theirs in zip(pieces.corpus.groupings, whole.corpus.groupings, strict=True):
        assert [(group.value, group.num_rows) for group in ours.groups] == [
            (group.value, group.num_rows) for group in theirs.groups
        ]


def test_codes_are_never_read(rows, tmp_path):
    """The scan asks for the columns that it needs, so a dataset's codes stay on the disk."""
    asked = []

    def source(columns, predicate, num_rows, batch_size):
        asked.append(columns)
        yield rows.select(columns)

    frame = pl.io.plugins.register_io_source(source, schema=rows.schema)
    scan_rows(frame, NUM_ROWS, 4)
    assert asked
    assert not {"codes_00"} & {name for columns in asked for name in columns}


def test_older_datasets_have_fewer_facts(rows):
    """Without the columns there is no clipping, quality or duplicate to report, and no error."""
    old = rows.drop("clipping_share", "speech_share", "content_hash", "si_snr_db", "mel_distance", "speaker", "text")
    found = scan_rows(old.lazy(), NUM_ROWS, 3)
    assert set(found.corpus.histograms) == {"duration_s", "rms_dbfs", "peak_dbfs"}
    assert found.corpus.num_clipped is found.corpus.duplicates is found.corpus.num_unmeasured is None
    assert (found.worst, found.spread.height) == ({}, 3)


def test_hours_by_columns_that_group(rows):
    """Speakers and sample rates are groups; sentences, of which each is there once, and constants are not."""
    groupings = scan_rows(rows.with_columns(language=pl.lit("en")).lazy(), NUM_ROWS, 0).corpus.groupings
    assert [grouping.column for grouping in groupings] == ["source_sample_rate", "speaker"]
    speakers = groupings[1]
    assert sum(group.num_rows for group in speakers.groups) == NUM_ROWS
    assert sum(group.seconds for group in speakers.groups) == pytest.approx(rows["duration_s"].sum())
    seconds = [group.seconds for group in speakers.groups]
    assert seconds == sorted(seconds, reverse=True)


def test_speakers_may_be_numbers(rows):
    """LibriSpeech's are; numbers with fractions are measurements, and no groups."""
    numbered = rows.with_columns(speaker=pl.col("speaker").str.slice(1).cast(pl.Int64), loudness=pl.lit(0.5))
    groupings = scan_rows(numbered.lazy(), NUM_ROWS, 0).corpus.groupings
    assert [grouping.column for grouping in groupings] == ["source_sample_rate", "speaker"]
    assert {group.value for group in groupings[1].groups} == {str(index) for index in range(7)}


def test_small_groups_are_added_up():
    """Twelve are named, the rest is one line; rows without a value are a group too."""
    hours = HoursBy("speaker")
    names = [f"s{index % 20}" for index in range(200)] + [None] * 30
    hours.add(pl.DataFrame({"speaker": names, "duration_s": [1.0] * 230}))
    grouping = hours.grouping()
    assert (grouping.groups[0].value, grouping.groups[0].seconds) == ("(none)", 30.0)
    assert len(grouping.groups) == 12
    assert (grouping.rest.value, grouping.rest.num_rows) == ("9 others", 90)


def test_a_column_of_too_many_values_is_let_go():
    """Beyond 20,000 values it is no grouping, even if each is there often: memory is bounded."""
    hours = HoursBy("word")
    for _ in range(3):
        names = [f"w{index}" for index in range(MOST_VALUES + 1)]
        hours.add(pl.DataFrame({"word": names, "duration_s": [1.0] * len(names)}))
    assert hours.grouping() is None


def sounds(hashes):
    return pl.DataFrame(
        {
            "id": [f"r{index:05d}" for index in range(len(hashes))],
            "content_hash": [f"{int(value):016x}" for value in hashes],
            "duration_s": [2.0] * len(hashes),
        }
    )


def test_rows_of_equal_sound_are_found():
    """Every group, what it costs, and the first ids of the costliest ones."""
    rng = np.random.default_rng(0)
    single = rng.integers(0, 2**64, 1000, dtype=np.uint64)
    rows = sounds([*single, *single[:20], *single[:5]])
    hashes = SoundHashes()
    for start in range(0, rows.height, 100):
        hashes.add(rows.slice(start, 100))
    found = hashes.duplicates(rows.lazy())
    assert (found.num_groups, found.num_surplus, found.surplus_seconds) == (20, 25, 50.0)
    assert found.looked_at == 1
    assert [num_rows for _, num_rows, _ in found.examples] == [3] * 5 + [2] * 5
    seconds, num_rows, ids = found.examples[0]
    assert (seconds, num_rows) == (2.0, 3)
    assert rows.filter(pl.col("id").is_in(ids))["content_hash"].n_unique() == 1


def test_of_too_many_rows_a_share_of_the_hashes_is_looked_at():
    """The numbers are estimates then, and no more than so many hashes are held."""
    rng = np.random.default_rng(0)
    single = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    rows = sounds(rng.permutation(np.concatenate([single, single[:8000]])))
    hashes = SoundHashes(most=4000)
    for start in range(0, rows.height, 1000):
        hashes.add(rows.slice(start, 1000))
    found = hashes.duplicates(rows.lazy())
    assert found.looked_at == 1 / 8
    assert found.num_groups == pytest.approx(8000, rel=0.1)
    assert found.surplus_seconds == pytest.approx(16_000, rel=0.1)


def test_no_duplicates_are_none(rows):
    """A dataset of different sounds has no groups."""
    found = scan_rows(rows.lazy(), NUM_ROWS, 0).corpus.duplicates
    assert (found.num_groups, found.num_surplus, found.examples) == (0, 0, ())


def test_examples_come_from_everywhere(rows):
    """One from each stretch of the dataset, and a short one wherever there is one."""
    mostly_long = rows.with_columns(
        duration_s=pl.when(pl.int_range(pl.len()) % 10 == 0).then(5.0).otherwise(pl.lit(60.0))
    )
    choice = ExampleChoice(8, NUM_ROWS)
    for start in range(0, NUM_ROWS, 33):
        choice.add(mostly_long.slice(start, 33))
    chosen = choice.rows()
    numbers = [int(name.removeprefix("clip")) for name in chosen["id"]]
    assert [number * 8 // NUM_ROWS for number in numbers] == list(range(8))
    assert (chosen["duration_s"] == 5.0).all()
    assert ExampleChoice(3, 2).rows().height == 0


def test_examples_without_enough_rows_are_all_of_them(rows):
    """Of two rows two are shown, in their order."""
    choice = ExampleChoice(8, 2)
    choice.add(rows.head(2))
    assert choice.rows()["id"].to_list() == ["clip0000", "clip0001"]


def test_up_to_half_of_the_examples_are_the_worst(rows):
    """A quarter by each number, the rest from everywhere, nothing twice; without quality all are from everywhere."""
    scan = scan_rows(rows.lazy(), NUM_ROWS, 8)
    chosen = choose_examples(scan.spread, scan.worst, 8)
    remarks = [row["remark"] for row in chosen.values()]
    assert len(chosen) == 8
    assert sorted(remark.split()[-1] for remark in remarks if remark) == ["SI-SNR", "SI-SNR", "distance", "distance"]
    plain = choose_examples(scan.spread, {}, 8)
    assert [*plain] == scan.spread["id"].to_list()
    assert {row["remark"] for row in plain.values()} == {None}
    assert choose_examples(scan.spread.clear(), {}, 8) == {}
