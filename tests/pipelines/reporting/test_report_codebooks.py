"""Codebook use in a report: what the codes of a dataset's parts are, counted from their files."""

import numpy as np
import polars as pl
import pytest

import pipelines.polars_namespace  # noqa: F401
from lm_head.entropy import code_histogram, perplexity
from pipelines.datasets.dataset import list_parts
from pipelines.datasets.stored_codes import level_bytes
from pipelines.reporting import report_codebooks
from pipelines.reporting.report_codebooks import divergence_bits, measure_codebooks
from tests.conftest import speech_like
from tests.pipelines.small_datasets import write_dataset
from tokenizer import CodesError

NUM_CODEBOOKS, CODEBOOK_SIZE = 4, 16


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    """Twelve utterances in six parts, and their codes."""
    waveforms = {f"{index:02d}": speech_like(0.1 + 0.02 * index, seed=index) for index in range(12)}
    codes = write_dataset(tmp_path / "tokens", tiny_codec_dir, waveforms, rows_per_part=2)
    return tmp_path / "tokens", codes


def measure(path, codes):
    num_codes = sum(row.size for row in codes.values())
    return measure_codebooks(path, CODEBOOK_SIZE, level_bytes(path)[0], num_codes)


def test_use_is_that_of_all_codes(dataset):
    """Every level over all parts, and of each part its perplexity at the coarsest level."""
    path, codes = dataset
    found = measure(path, codes)
    whole = code_histogram(np.concatenate([*codes.values()], axis=1), CODEBOOK_SIZE)
    assert [level.perplexity for level in found.levels] == pytest.approx(perplexity(whole))
    assert [level.entries_used for level in found.levels] == (whole > 0).sum(axis=1).tolist()
    assert (len(found.parts), found.num_parts) == (6, 6)
    first = code_histogram(np.concatenate([codes["00"], codes["01"]], axis=1), CODEBOOK_SIZE)
    assert found.parts[0].name == "part-00000"
    assert found.parts[0].perplexity == pytest.approx(perplexity(first)[0])


def test_drift_of_parts_is_that_of_the_query(dataset):
    """`.codes.drift` by part and the report say the same."""
    path, codes = dataset
    frame = pl.scan_parquet(path / "parts" / "*.parquet", include_file_paths="part")
    drift = frame.codes.drift("part").collect()["divergence_bits"].to_list()
    assert [part.divergence_bits for part in measure(path, codes).parts] == pytest.approx(drift)


def test_of_many_parts_some_are_counted(dataset, monkeypatch):
    """They lie at equal distances, and the report says how many there are."""
    path, codes = dataset
    monkeypatch.setattr(report_codebooks, "MAX_PARTS", 3)
    found = measure(path, codes)
    assert [part.name for part in found.parts] == ["part-00001", "part-00003", "part-00005"]
    assert found.num_parts == 6
    counted = np.concatenate([codes[name] for name in ("02", "03", "06", "07", "10", "11")], axis=1)
    assert found.levels[0].perplexity == pytest.approx(perplexity(code_histogram(counted, CODEBOOK_SIZE))[0])


def test_bits_at_rest_are_those_of_the_whole_dataset(dataset, monkeypatch):
    """Footers of all parts are read, whichever parts are counted: the levels' bytes add up."""
    path, codes = dataset
    monkeypatch.setattr(report_codebooks, "MAX_PARTS", 2)
    num_frames = sum(row.shape[1] for row in codes.values())
    total = sum(level.bits_at_rest for level in measure(path, codes).levels) * num_frames
    assert total == pytest.approx(8 * sum(level_bytes(path)[0]))


def test_divergence_is_zero_for_the_same_and_one_for_strangers():
    """And between them otherwise, whatever the sizes."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, 64)
    assert divergence_bits(counts, 7 * counts) == pytest.approx(0, abs=1e-12)
    assert divergence_bits(np.eye(4, dtype=np.int64)[0], np.eye(4, dtype=np.int64)[2]) == pytest.approx(1)
    assert 0 < divergence_bits(counts, rng.integers(0, 50, 64)) < 1


def test_chance_is_what_random_parts_diverge_by(dataset, tmp_path):
    """Parts that are samples of one source diverge by about as much as the report says that chance gives."""
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 1024, 2_000_000)
    counts = [np.bincount(part, minlength=1024) for part in np.split(whole, 100)]
    measured = np.mean([divergence_bits(count, np.sum(counts, axis=0)) for count in counts])
    said = report_codebooks._part_use("p", counts[0], np.sum(counts, axis=0)).chance_bits
    assert measured == pytest.approx(said, rel=0.1)


def test_a_code_that_no_codebook_has_is_an_error(dataset):
    """It would otherwise make a histogram longer than the codebook."""
    path, codes = dataset
    with pytest.raises(CodesError, match="allowed is 0 to 7"):
        measure_codebooks(path, 8, level_bytes(path)[0], sum(row.size for row in codes.values()))


def test_a_dataset_without_codes_has_no_levels(dataset):
    """There is nothing to divide by."""
    path, _ = dataset
    found = measure_codebooks(path, CODEBOOK_SIZE, level_bytes(path)[0], 0)
    assert (found.levels, found.parts, found.num_parts) == ((), (), len(list_parts(path)))
