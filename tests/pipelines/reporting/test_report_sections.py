"""Sections of the report: what each says about a dataset, and that it stays away where there is nothing to say."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.reporting.report import write_report
from tests.pipelines.pages import Page
from tests.pipelines.small_datasets import write_audio_folder, write_dataset

NEW_COLUMNS = ["input_id", "start_sample", "clipping_share", "speech_share", "content_hash"]


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    """Twelve utterances in three parts, and three inputs that failed."""
    folder = tmp_path / "speech"
    waveforms = write_audio_folder(folder, [f"clip{index:02d}.wav" for index in range(12)])
    errors = [("a.wav", "AudioError", "x"), ("b.wav", "AudioError", "y"), ("c.wav", "killed_worker", "z")]
    write_dataset(tmp_path / "tokens", tiny_codec_dir, waveforms, audio_folder=folder, errors=errors)
    return tmp_path / "tokens"


def change_parts(dataset, change):
    """Rewrite every part as `change(table, first_row)`; without records, as parts of an older job are."""
    shutil.rmtree(dataset / "records")
    first = 0
    for path in sorted((dataset / "parts").iterdir()):
        table = pq.read_table(path)
        pq.write_table(change(table, first), path)
        first += table.num_rows


def with_columns(columns):
    """A change that sets columns, given as one value for each row of the dataset."""

    def change(table, first):
        for name, values in columns.items():
            new = pa.array(values)[first : first + table.num_rows]
            names = table.column_names
            table = table.set_column(names.index(name), name, new) if name in names else table.append_column(name, new)
        return table

    return change


def page_of(dataset, tmp_path, num_examples=0):
    return Page(write_report(dataset, tmp_path / "r.html", num_examples=num_examples).read_text(encoding="utf-8"))


def test_every_dataset_says_what_it_knows(dataset, tmp_path):
    """Sections stand in a fixed order; quality and hours are left out where nothing measured or groups them."""
    page = page_of(dataset, tmp_path)
    assert page.sections == ["rates", "examples", "audio", "duplicates", "levels", "drift", "errors", "next"]
    assert "3 parts" not in page.text  # all of them were counted
    charts = [label.split(":")[0] for label in page.attributes("svg", "aria-label")]
    assert charts[:4] == ["Length, seconds", "Level (RMS), dBFS", "Peak, dBFS", "Speech activity, share of the time"]


def test_datasets_of_older_jobs_have_a_report(dataset, tmp_path):
    """Without the columns that came later: levels and lengths, examples with their originals, no word on the rest."""
    change_parts(dataset, lambda table, _: table.drop_columns(NEW_COLUMNS))
    page = page_of(dataset, tmp_path, num_examples=2)
    assert page.sections == ["rates", "examples", "audio", "levels", "drift", "errors", "next"]
    assert "clipped" not in page.text
    assert sum(label.endswith("Original") for label in page.attributes("audio", "aria-label")) == 2


def test_quality_is_shown_and_the_worst_can_be_heard(dataset, tmp_path):
    """Both histograms, the ten worst of each kind by name, and among the players the worst with a remark."""
    ratio = [None, *np.linspace(1, 9, 11)]
    change_parts(dataset, with_columns({"si_snr_db": ratio, "mel_distance": np.linspace(0.2, 0.6, 12)}))
    page = page_of(dataset, tmp_path, num_examples=4)
    assert "quality" in page.sections
    assert "1 row here" in page.text
    listed = page.text[page.text.index("Lowest SI-SNR") : page.text.index("What the audio is like")]
    assert listed.index("clip01.wav") < listed.index("clip02.wav") < listed.index("clip10.wav")
    assert listed.index("clip11.wav") < listed.rindex("clip10.wav") < listed.rindex("clip02.wav")
    assert "clip00.wav" not in listed
    heard = page.text[: page.text.index("How near the decoded audio is")]
    assert heard.index("clip11.wav") < heard.index("among the worst by mel distance")
    assert heard.index("clip01.wav") < heard.index("among the worst by SI-SNR")
    assert "mean of 2 examples" in page.text


def test_clipped_files_are_named(dataset, tmp_path):
    """How many there are, and those with the largest share."""
    change_parts(dataset, with_columns({"clipping_share": [0.0] * 9 + [0.02, 0.0, 0.013]}))
    page = page_of(dataset, tmp_path)
    assert "2 rows with clipped peaks (17 %)" in page.text
    listed = page.text[page.text.index("Most clipped") :]
    assert listed.index("clip09.wav") < listed.index("2.00") < listed.index("clip11.wav") < listed.index("1.30")


def test_duplicates_are_counted_and_named(dataset, tmp_path):
    """Rows of equal content_hash: how many, how long, which."""
    change_parts(dataset, with_columns({"content_hash": ["a" * 16] * 2 + [f"{index:016x}" for index in range(10)]}))
    text = page_of(dataset, tmp_path).text
    assert "1 row repeats the sound of another one, in 1 group" in text
    assert text.index("What is there twice") < text.index("clip00.wav") < text.index("clip01.wav")
    assert "clip02.wav" not in text


def test_hours_are_shown_by_columns_of_the_source(dataset, tmp_path):
    """Whatever travelled with the audio and groups it; its values are text, never markup."""
    speakers = [("<i>Ann</i>", "Bob", None)[index % 3] for index in range(12)]
    change_parts(dataset, with_columns({"speaker": speakers, "text": [f"t{index}" for index in range(12)]}))
    page = page_of(dataset, tmp_path)
    assert "hours" in page.sections
    hours = page.text[page.text.index("Where the hours are") :]
    assert hours.index("speaker") < hours.index("<i>Ann</i>")
    assert "(none)" in hours
    assert "t3" not in hours


def test_errors_are_counted_by_class(dataset, tmp_path):
    """The share of all inputs, the commonest class first."""
    assert "20 % of 15 inputs: 2 AudioError, 1 killed_worker." in page_of(dataset, tmp_path).text


def test_segments_are_told_from_files(dataset, tmp_path):
    """Four inputs that were cut into twelve rows are four files."""
    inputs = [f"talk{index // 3}.wav" for index in range(12)]
    change_parts(
        dataset, with_columns({"input_id": inputs, "start_sample": [3000 * (index % 3) for index in range(12)]})
    )
    text = page_of(dataset, tmp_path).text
    assert "4 files" in text
    assert "12 segments" in text


def test_parts_of_another_sound_stand_out(dataset, tmp_path):
    """A part whose codes were replaced by one entry has a perplexity of 1 and the largest divergence."""

    def collapse(table, first):
        if first != 4:
            return table
        codes = [[7] * len(row) for row in table.column("codes_00").to_pylist()]
        return table.set_column(
            table.column_names.index("codes_00"), "codes_00", pa.array(codes, pa.list_(pa.uint16()))
        )

    change_parts(dataset, collapse)
    page = page_of(dataset, tmp_path)
    (label,) = [text for text in page.attributes("svg", "aria-label") if text.startswith("Divergence from")]
    divergences = [float(value) for value in label.split(": ")[1].split(", ")]
    assert np.argmax(divergences) == 1
    assert divergences[1] > 0.3
