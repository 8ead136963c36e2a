"""Reading without wrong tokens: damage is an error that names the part, and everything else is as Polars reads it."""

import random
import shutil

import polars as pl
import pyarrow.parquet as pq
import pytest

import pipelines.polars_namespace  # noqa: F401
from pipelines.datasets.commit_record import read_record
from pipelines.datasets.dataset import open_dataset, open_errors, query_dataset
from pipelines.datasets.stored_codes import level_bytes, read_utterances
from tests.pipelines.datasets.damage import flip_bit, part_of, record_of_unit, write_small
from tokenizer import DatasetError


@pytest.fixture
def dataset(tmp_path):
    """Three parts of three rows."""
    return write_small(tmp_path / "tokens")


QUERIES = {
    "all": lambda rows: rows,
    "projection": lambda rows: rows.select("codes_02", "id"),
    "count": lambda rows: rows.select(pl.len()),
    "sum": lambda rows: rows.select(pl.col("num_frames").sum()),
    "predicate": lambda rows: rows.filter(pl.col("id").str.ends_with("1.wav")).select("id", "codes_03"),
    "nothing passes": lambda rows: rows.filter(pl.col("num_frames") > 10**6),
    "literal predicate": lambda rows: rows.filter(pl.lit(True)),
    "slice": lambda rows: rows.slice(2, 5),
    "head of filtered": lambda rows: rows.filter(pl.col("id") > "1").head(2),
    "tail": lambda rows: rows.tail(2),
    "self join": lambda rows: rows.select("id").join(rows.select("id", "codes_00"), on="id").sort("id"),
    "no columns": lambda rows: rows.select(pl.lit(1).alias("one")),
    "group": lambda rows: rows.group_by("codebook_size").agg(pl.col("codes_01").list.len().sum()),
    "bandwidth": lambda rows: rows.drop("codes_02", "codes_03"),
}


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("name", QUERIES)
def test_queries_give_what_polars_alone_gives(dataset, name, engine):
    """Projection, predicates, slices, joins: rows, order and types, in both engines."""
    query = QUERIES[name]
    verified = query(open_dataset(dataset)).collect(engine=engine)
    assert verified.equals(query(open_dataset(dataset, verify=False)).collect(engine=engine))
    assert verified.schema == query(open_dataset(dataset)).collect_schema()


PART_QUERIES = {
    "all": lambda rows: rows,
    "alone": lambda rows: rows.select("part"),
    "with others": lambda rows: rows.select("part", "id", "codes_01"),
    "predicate": lambda rows: rows.filter(pl.col("part").str.contains("00001")).select("id", "codes_03"),
    "group": lambda rows: rows.group_by("part").len().sort("part"),
}


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "native"])
@pytest.mark.parametrize("name", PART_QUERIES)
def test_a_column_says_which_part_a_row_is_of(dataset, name, verify):
    """By the file's name, wherever the dataset lies; asked for, and projected like any other."""
    expected = (
        open_dataset(dataset).collect().with_columns(part=pl.Series([f"part-0000{i // 3}.parquet" for i in range(9)]))
    )
    found = PART_QUERIES[name](open_dataset(dataset, part_column="part", verify=verify)).collect()
    assert found.equals(PART_QUERIES[name](expected.lazy()).collect())


def test_the_namespace_and_sql_work_on_it(dataset):
    """`.codes` and SQL take the frame as they took Polars' own."""
    rows = open_dataset(dataset)
    assert rows.codes.num_codebooks() == 4
    assert [codes.shape for codes in rows.codes.at_bandwidth(rows.codes.bitrate_kbps() / 2).codes.to_numpy(2)] == [
        (2, 40)
    ] * 9
    assert rows.codes.histogram(0)["count"].sum() == 9 * 40
    assert query_dataset(dataset, "SELECT COUNT(*) FROM tokens JOIN errors ON tokens.id <> errors.id").item() == 9


def test_only_the_columns_that_a_query_needs_are_read(dataset):
    """Damage in one level is nothing to a query of another one."""
    chunk = read_record(str(record_of_unit(dataset, 1))).part.chunks["codes_03"][0]
    flip_bit(part_of(dataset, 1), chunk.offset + chunk.num_bytes // 2)
    assert open_dataset(dataset).select("codes_00").collect().height == 9
    assert open_dataset(dataset).filter(pl.col("id") == "0/1.wav").collect().height == 1
    with pytest.raises(DatasetError, match=r"part-00001\.parquet: .*codes_03 .*`quantone verify .*tokens`"):
        open_dataset(dataset).select("codes_03").collect()


def test_damage_is_a_dataset_error_wherever_it_is_met(dataset, tmp_path):
    """collect, batches, sinks, SQL, and the reader of utterances; another codec's reader of sizes too."""
    flip_bit(part_of(dataset, 2), len(part_of(dataset, 2).read_bytes()) - 20)
    rows = open_dataset(dataset)
    runs = [
        rows.collect,
        lambda: rows.collect(engine="streaming"),
        lambda: list(rows.collect_batches(lazy=True)),
        lambda: rows.sink_parquet(tmp_path / "copy.parquet"),
        lambda: query_dataset(dataset, "SELECT COUNT(*) FROM tokens"),
        lambda: list(read_utterances(dataset, 4)),
        lambda: level_bytes(dataset),
    ]
    for run in runs:
        with pytest.raises(DatasetError, match=r"part-00002\.parquet: damaged"):
            run()


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone", "text", "no record", "damaged record", "swapped"])
def test_other_damage_has_a_clear_end_too(dataset, damage):
    """Each names the file and says what helps."""
    rows, part, record = open_dataset(dataset), part_of(dataset, 1), record_of_unit(dataset, 1)
    if damage == "truncated":
        part.write_bytes(part.read_bytes()[:1000])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "gone":
        part.unlink()
    elif damage == "text":
        part.write_text("<html>" * 5000)
    elif damage == "no record":
        record.unlink()
    elif damage == "damaged record":
        flip_bit(record, 30)
    else:
        shutil.copy(part_of(dataset, 2), part)
    with pytest.raises(DatasetError, match="part-00001"):
        (open_dataset(dataset) if damage == "no record" else rows).collect()


def test_errors_are_read_as_written_or_not_at_all(dataset):
    """Their files are small and checked whole."""
    path = dataset / "errors" / "part-00000.parquet"
    assert open_errors(dataset).select("id").collect().item() == "0/bad.wav"
    flip_bit(path, 30)
    with pytest.raises(DatasetError, match=r"errors/part-00000\.parquet: damaged"):
        open_errors(dataset).collect()


def test_one_of_two_records_is_enough(dataset):
    """Of two jobs that raced for a unit, both recorded it and one wrote it; the other's record may even be damaged."""
    text = record_of_unit(dataset, 0).read_text()
    other = dataset / "records" / "part-00001.0000000000000000.json"
    for content in (text, "{"):
        other.write_text(content)
        assert open_dataset(dataset).collect().height == 9


def test_datasets_without_records_are_read_with_their_page_checksums(dataset):
    """As version 0.1 wrote them: a flipped bit in a page is an error still."""
    chunk = read_record(str(record_of_unit(dataset, 1))).part.chunks["codes_03"][0]
    shutil.rmtree(dataset / "records")
    assert open_dataset(dataset).collect().height == 9
    flip_bit(part_of(dataset, 1), chunk.offset + chunk.num_bytes - 3)
    with pytest.raises(DatasetError, match=r"part-00001\.parquet: damaged"):
        open_dataset(dataset).select("codes_03").collect()


def test_a_part_with_other_columns_is_named(dataset):
    """A query must not guess what a missing level would have been."""
    shutil.rmtree(dataset / "records")
    part = part_of(dataset, 2)
    pl.read_parquet(part).drop("codes_03").write_parquet(part)
    with pytest.raises(DatasetError, match=r"part-00002\.parquet: lacks codes_03"):
        open_dataset(dataset).collect()
    pl.read_parquet(part).with_columns(codes_03=pl.lit("x")).write_parquet(part)
    with pytest.raises(DatasetError, match="codes_03 is String"):
        open_dataset(dataset).collect()


def flips(dataset, count, aim):
    """Outcomes of reading all rows after one flipped bit each."""
    part, good = part_of(dataset), open_dataset(dataset, verify=False).collect()
    content, record = part.read_bytes(), read_record(str(record_of_unit(dataset))).part
    headers = [chunk.offset + byte for own in record.chunks.values() for chunk in own for byte in range(40)]
    places = {
        "anywhere": range(len(content)),
        "footer": range(len(content) - record.footer_bytes, len(content)),
        "page headers": headers,
    }
    rng, outcomes = random.Random(aim), []  # noqa: S311 - not a secret
    for _ in range(count):
        flip_bit(part, rng.choice(places[aim]), rng.randrange(8))
        try:
            outcomes.append("same" if open_dataset(dataset).collect().equals(good) else "silent")
        except DatasetError:
            outcomes.append("error")
        part.write_bytes(content)
    return outcomes


@pytest.mark.parametrize("aim", ["anywhere", "footer", "page headers"])
def test_no_flipped_bit_gives_other_rows(tmp_path, aim):
    """A few here; `slow` has many."""
    outcomes = flips(write_small(tmp_path, num_units=1, errors=False), 40, aim)
    assert "silent" not in outcomes
    assert outcomes.count("error") >= 38


@pytest.mark.slow
@pytest.mark.parametrize(("aim", "count"), [("anywhere", 400), ("footer", 1000), ("page headers", 1000)])
def test_no_flipped_bit_of_thousands_gives_other_rows(tmp_path, aim, count):
    """400 anywhere, as in the acceptance list, and 2,000 where page checksums do not look."""
    outcomes = flips(write_small(tmp_path, num_units=1, num_frames=2000, errors=False), count, aim)
    assert "silent" not in outcomes


def test_datasets_in_s3_are_checked_too(bucket, tmp_path):
    """Ranges of objects in place of stretches of files; an object that is shorter than it was is damage."""
    import s3fs

    local = write_small(tmp_path / "tokens")
    remote = s3fs.S3FileSystem()
    remote.put(f"{local}/", f"{bucket}/tokens/", recursive=True)
    rows = open_dataset(f"{bucket}/tokens")
    assert rows.collect().equals(open_dataset(local).collect())
    assert rows.filter(pl.col("id") == "1/1.wav").select("codes_00").collect().height == 1
    key = f"{bucket}/tokens/parts/part-00001.parquet"
    for content in (part_of(local, 1).read_bytes()[:500], part_of(local, 0).read_bytes()):
        remote.pipe_file(key, content)
        with pytest.raises(DatasetError, match=r"part-00001\.parquet: damaged"):
            rows.collect()


def test_the_schema_of_a_part_is_what_pyarrow_says(dataset):
    """Types of columns, lists included, follow from the file."""
    expected = pl.from_arrow(pq.read_table(part_of(dataset))).schema
    assert open_dataset(dataset).collect_schema() == expected
