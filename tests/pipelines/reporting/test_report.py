"""The report: one page that needs nothing beside it, and repeats data without ever running it."""

import io
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from lm_head.entropy import code_histogram, order_zero_entropy, perplexity
from pipelines.datasets.parts import ErrorRow
from pipelines.reporting.report import write_report
from pipelines.spectrogram import codes_png, entry_levels, magma, mel_filters, reference_level, spectrogram_png
from tests.conftest import make_codec, speech_like, tiny_spec
from tests.pipelines.pages import Page, decode_uri
from tests.pipelines.small_datasets import info_of, write_audio_folder, write_dataset, write_units
from tokenizer import DatasetError, load_codec, save_codec


@pytest.fixture
def originals(tmp_path):
    """A folder for the originals; tests may take it away."""
    return tmp_path / "speech"


@pytest.fixture
def dataset(originals, tiny_codec_dir, tmp_path):
    """Ten utterances in three parts, and two inputs that failed."""
    waveforms = write_audio_folder(originals, [f"speaker{index % 3}/clip{index}.wav" for index in range(10)])
    errors = [("bad.wav", "AudioError", "not audio"), ("<b>worse</b>.wav", "AudioError", "<script>alert(1)</script>")]
    write_dataset(tmp_path / "tokens", tiny_codec_dir, waveforms, audio_folder=originals, errors=errors)
    return tmp_path / "tokens"


def test_the_page_loads_nothing(dataset, tmp_path):
    """No address of a network or a file in it: only data inside the page, and no script at all."""
    path = write_report(dataset, tmp_path / "deep" / "r.html", num_examples=2)
    page = Page(path.read_text(encoding="utf-8"))
    sources = page.attributes("img", "src") + page.attributes("audio", "src")
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?://|@import|url\(", re.sub(r"base64,[^\"]+", "", path.read_text(encoding="utf-8")))


def test_every_example_plays_the_original_and_each_bandwidth(dataset, tmp_path):
    """Players hold FLAC of the right length; beside each stands its spectrogram with an alternative text."""
    page = Page(write_report(dataset, tmp_path / "r.html", bandwidths_kbps=[24, 12], num_examples=3).read_text())
    players = page.attributes("audio", "src")
    assert len(players) == 3 * 3
    labels = page.attributes("audio", "aria-label")
    assert [label.split(", ")[1] for label in labels[:3]] == ["Original", "12 kbps", "24 kbps"]
    kind, content = decode_uri(players[0])
    samples, rate = soundfile.read(content)
    assert (kind, rate) == ("audio/flac", 24000)
    assert 0.2 * rate <= len(samples) <= 0.65 * rate
    assert len(page.attributes("img", "alt")) == 3 * 4
    assert all(page.attributes("img", "alt"))


def test_examples_of_a_stereo_codec_begin_as_the_whole_file(segmented_codec_dir, tmp_path, monkeypatch):
    """The beginning of an utterance, cut anywhere in a segment, is what decoding all of it begins with, in stereo."""
    # 264 samples, of segments of 160 every 152
    monkeypatch.setattr("pipelines.reporting.report_examples.MAX_EXAMPLE_S", 0.011)
    waveforms = write_audio_folder(tmp_path / "speech", ["a.wav"])
    write_dataset(tmp_path / "tokens", segmented_codec_dir, waveforms, audio_folder=tmp_path / "speech")
    page = Page(write_report(tmp_path / "tokens", tmp_path / "r.html", bandwidths_kbps=[48]).read_text())
    original, decoded = (
        soundfile.read(decode_uri(uri)[1], dtype="float32")[0] for uri in page.attributes("audio", "src")
    )
    codec = load_codec(segmented_codec_dir)
    expected = codec.decode(codec.encode(torch.from_numpy(waveforms["a.wav"]).expand(2, -1)))[0].clamp(-1, 1).T
    assert original.shape == decoded.shape == (264, 2)
    assert np.allclose(decoded, expected[:264], atol=1 / 32768)
    assert "4 levels by 34 frames" in " ".join(page.attributes("img", "alt"))


def test_text_from_data_is_never_markup(tiny_codec_dir, tmp_path):
    """Ids and messages are shown as they are: what looks like HTML in them does not become an element."""
    name = "<img src=x onerror=alert(1)>\"'&.wav"
    errors = [("<b>bold</b>.wav", "AudioError", "<script>alert(1)</script> $title ${lede}")]
    write_dataset(tmp_path / "t<i>&", tiny_codec_dir, {name: speech_like(0.2)}, errors=errors)
    page = Page(write_report(tmp_path / "t<i>&", tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not {"script", "i"} & {tag for tag, _ in page.elements}
    assert not any("onerror" in values for _, values in page.elements)
    assert name in page.text
    assert "<script>alert(1)</script> $title ${lede}" in page.text


def test_levels_are_those_of_the_codes(tiny_codec_dir, tmp_path):
    """Entries in use, perplexity and entropy of a level are computed over the whole dataset, in all of its parts."""
    waveforms = {f"{index}.wav": speech_like(0.3, seed=index) for index in range(6)}
    codes = write_dataset(tmp_path / "tokens", tiny_codec_dir, waveforms)
    page = Page(write_report(tmp_path / "tokens", tmp_path / "r.html", num_examples=0).read_text(encoding="utf-8"))
    histogram = code_histogram(np.concatenate(list(codes.values()), axis=1), 16)
    for level in range(4):
        assert f"{(histogram[level] > 0).sum()} of 16" in page.text
        assert f"{order_zero_entropy(histogram)[level]:.2f}" in page.text
        assert f"{perplexity(histogram)[level]:.0f}" in page.text
    charts = [label for label in page.attributes("svg", "aria-label") if label.startswith("Entropy by level")]
    assert len(charts) == 1


def test_a_missing_original_is_said_and_the_rest_still_plays(dataset, originals, tmp_path):
    """Tokens outlive their audio: without the original there are the decoded players, and the reason."""
    shutil.rmtree(originals)
    page = Page(write_report(dataset, tmp_path / "r.html", bandwidths_kbps=[48], num_examples=2).read_text())
    assert page.text.count("cannot be read any more") == 2
    assert len(page.attributes("audio", "src")) == 2


def test_an_original_that_changed_is_not_compared_with(dataset, originals, tmp_path):
    """A file that got longer since is another file: it is neither played nor scored as the original."""
    for path in originals.rglob("*.wav"):
        samples, sample_rate = soundfile.read(path)
        soundfile.write(path, np.concatenate([samples, samples]), sample_rate)
    page = Page(write_report(dataset, tmp_path / "r.html", bandwidths_kbps=[48], num_examples=2).read_text())
    assert page.text.count("has changed") == 2
    assert len(page.attributes("audio", "src")) == 2


def test_errors_are_listed(dataset, tmp_path):
    """Inputs that failed stand in the report with the reason."""
    page = Page(write_report(dataset, tmp_path / "r.html", num_examples=0).read_text(encoding="utf-8"))
    assert "bad.wav" in page.text
    assert "not audio" in page.text
    assert "AudioError" in page.text


def test_a_dataset_without_a_single_row_has_a_report(tiny_codec_dir, tmp_path):
    """Where every input failed, the page says so instead of dividing by zero."""
    info = info_of(load_codec(tiny_codec_dir), tiny_codec_dir, 4)
    write_units(tmp_path / "tokens", info, [[]], [ErrorRow("a.wav", "/nowhere/a.wav", "AudioError", "broken")])
    page = Page(write_report(tmp_path / "tokens", tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "No audio in this dataset could be tokenized." in page.text
    assert "broken" in page.text


def test_what_cannot_be_reported_is_refused(dataset, tmp_path):
    """A bandwidth that is not stored and a codec that is another one leave no page behind."""
    save_codec(make_codec(tiny_spec("seanet")), tmp_path / "other")
    with pytest.raises(ValueError, match="100 kbps is not available"):
        write_report(dataset, tmp_path / "r.html", bandwidths_kbps=[100])
    with pytest.raises(DatasetError, match="made with"):
        write_report(dataset, tmp_path / "r.html", codec=str(tmp_path / "other"))
    with pytest.raises(DatasetError, match="not a token dataset"):
        write_report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_spectrogram_shows_a_tone_where_it_is():
    """A pure tone lights the row of its mel band, high tones higher up, and silence stays black."""
    time = np.arange(24000) / 24000
    rows = []
    for frequency in (200, 1000, 5000):
        tone = (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)
        picture = Image.open(io.BytesIO(spectrogram_png(tone, 24000, reference_level(tone, 24000)))).convert("L")
        rows.append(int(np.asarray(picture, np.float64).mean(axis=1).argmax()))
    assert rows[0] > rows[1] > rows[2]
    silence = Image.open(io.BytesIO(spectrogram_png(np.zeros(2400, np.float32), 24000, 1.0))).convert("L")
    assert np.asarray(silence).max() < 8


@pytest.mark.parametrize("sample_rate", [8000, 16000, 24000, 48000])
def test_no_mel_band_is_empty(sample_rate):
    """Every band averages over some bins, at any rate: an empty one would be a black stripe in every picture."""
    filters = mel_filters(sample_rate, 1025)
    assert np.isfinite(filters).all()
    assert np.allclose(filters.sum(axis=1), 1, atol=1e-5)


def test_a_picture_of_any_length_can_be_drawn():
    """One sample is enough for a spectrogram, one frame for a picture of codes."""
    sound = speech_like(0.01)[:1]
    assert Image.open(io.BytesIO(spectrogram_png(sound, 24000, reference_level(sound, 24000)))).width >= 1
    assert Image.open(io.BytesIO(codes_png(np.zeros((2, 1), np.uint16), np.zeros((4, 16), np.float32)))).size == (1, 2)


def test_colours_grow_brighter_and_codebook_neighbours_look_alike():
    """The colour scale has one direction, and entries on a line get levels in the order of that line."""
    brightness = magma(np.linspace(0, 1, 64, dtype=np.float32)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > 0).all()
    places = np.random.default_rng(0).permutation(16).astype(np.float32)
    levels = entry_levels((places[:, None] * np.array([1.0, 2.0, -0.5], np.float32))[None])[0]
    order = levels[places.argsort()]
    assert (np.diff(order) > 0).all() or (np.diff(order) < 0).all()
