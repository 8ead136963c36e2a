"""The folder to listen in: complete, blind, playable from files, and its results are read by the command."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from pipelines.evaluating import listening_pages
from pipelines.evaluating.evaluate import evaluate_codec
from pipelines.evaluating.evaluation_scores import METRICS
from pipelines.evaluating.listening_pages import condition_name, write_listening_pages
from pipelines.evaluating.loudness import loudness
from pipelines.evaluating.mushra_results import COLUMNS, LOW_ANCHOR, REFERENCE
from tests.conftest import speech_like

SPECIAL = "<b>&amp;.wav"  # a file name that would be markup


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, tiny_codec_dir):
    """Three clips, two bandwidths, Opus where it is installed; cheap metrics are enough."""
    folder = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(["a.wav", "c.wav", SPECIAL]):
        soundfile.write(folder / name, speech_like(0.8, seed=number), 24000)
    with pytest.MonkeyPatch.context() as patch:
        cheap = {name: _no_score if name == "pesq_wb" else lambda *_: 0.875 for name in METRICS}
        patch.setattr("pipelines.evaluating.evaluation_scores.METRICS", cheap)
        return evaluate_codec(str(tiny_codec_dir), folder, num_workers=1, progress=False)


def _no_score(*_):
    raise ValueError("too short")


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    """The pages of all three clips."""
    folder = tmp_path_factory.mktemp("listening") / "pages"
    write_listening_pages(evaluation, folder)
    return folder


def data_of(folder):
    return json.loads((folder / "data.js").read_text().removeprefix("window.quantoneTest = ").rstrip(";\n"))


def conditions_of(folder):
    return json.loads(base64.b64decode(data_of(folder)["sealed"]))


def recordings_of(folder, key):
    """Token -> samples and rate, as the player would decode them."""
    call = (folder / "audio" / f"{key}.js").read_text()
    named, recordings = json.loads("[" + re.fullmatch(r"quantoneAudio\((.*)\);\n", call)[1] + "]")
    assert named == key
    return {token: soundfile.read(io.BytesIO(base64.b64decode(text))) for token, text in recordings.items()}


def test_every_clip_has_every_condition(folder, evaluation):
    """Hidden reference, low anchor, and each row of the table; one token each, none twice."""
    data, conditions = data_of(folder), conditions_of(folder)
    expected = {REFERENCE, LOW_ANCHOR} | {condition_name(row.system, row.bandwidth_kbps) for row in evaluation.rows}
    assert [clip["name"] for clip in data["clips"]] == [SPECIAL, "a.wav", "c.wav"]
    for clip in data["clips"]:
        assert {conditions[token] for token in clip["tokens"]} == expected
        assert len(clip["tokens"]) == len(expected)
        assert set(recordings_of(folder, clip["key"])) == set(clip["tokens"])
    assert len(conditions) == 3 * len(expected)


def test_all_versions_of_a_clip_fit_each_other(folder):
    """Equally long, equally loud, at one rate; and the versions differ from one another."""
    for clip in data_of(folder)["clips"]:
        recordings = recordings_of(folder, clip["key"])
        assert {(len(samples), rate) for samples, rate in recordings.values()} == {(19200, 24000)}
        levels = [loudness(samples, rate) for samples, rate in recordings.values()]
        assert max(levels) - min(levels) < 0.2
        assert len({samples.tobytes() for samples, _ in recordings.values()}) == len(recordings)


def test_the_low_anchor_has_no_treble(folder):
    """The one condition whose sound is known in advance; the reference keeps its own."""
    conditions = conditions_of(folder)
    for token, (samples, _) in recordings_of(folder, "clip-1").items():
        treble = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))[int(4500 * 0.8) :].max()
        if conditions[token] == LOW_ANCHOR:
            anchor = treble
        elif conditions[token] == REFERENCE:
            reference = treble
    assert anchor < 0.05 * reference


def test_the_blind_page_names_nobody(folder, evaluation):
    """Neither the page, its scripts, nor the data in plain text say which condition is which."""
    names = [row.system for row in evaluation.rows] + [LOW_ANCHOR]
    for file in ("index.html", "blind.js", "player.js", "data.js", "style.css", "audio/clip-1.js"):
        text = (folder / file).read_text()
        assert not [name for name in names if re.search(rf"\b{name}\b", text)], file
    for clip in data_of(folder)["clips"]:  # the order of tokens, which are hashes, says nothing either
        assert clip["tokens"] == sorted(clip["tokens"]) == list(recordings_of(folder, clip["key"]))


class References(HTMLParser):
    """Every address that a page refers to, and every id that labels and scripts need."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.labelled, self.controls = [], set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        self.ids |= {values["id"]} if "id" in values else set()
        self.labelled |= {values["for"]} if tag == "label" else set()
        if tag in ("input", "textarea", "progress"):
            self.controls.append(values)


@pytest.mark.parametrize("page", ["index.html", "open.html"])
def test_pages_load_only_what_lies_beside_them(folder, page):
    """No network, and nothing that a page opened as a file may not read: scripts, one style sheet, pictures in it."""
    text = (folder / page).read_text(encoding="utf-8")
    addresses = [address for address in References(text).addresses if not address.startswith("data:image/png;base64,")]
    assert addresses
    assert all((folder / address).is_file() for address in addresses)
    scripts = "".join((folder / name).read_text() for name in ("player.js", "blind.js", "open.js", "style.css"))
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import |@import|url\(", scripts.replace("where fetch()", ""))


def test_scripts_find_what_they_look_for(folder):
    """Every id that the blind page's script asks for is on the page, and every control has a label."""
    page = References((folder / "index.html").read_text())
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', (folder / "blind.js").read_text()))
    assert wanted
    assert wanted <= page.ids
    assert all(control.get("id") in page.labelled or "aria-label" in control for control in page.controls)


def test_results_are_what_the_command_reads(folder):
    """The page takes its columns, and the name of the reference, from where the reader has them."""
    data = data_of(folder)
    assert data["columns"] == list(COLUMNS)
    assert data["reference"] == REFERENCE
    assert "test.columns.map" in (folder / "blind.js").read_text()


def test_the_open_page_shows_names_pictures_and_scores(folder, evaluation):
    """A button per condition with its spectrogram; clips lack scores without harm; data is never markup."""
    text = (folder / "open.html").read_text(encoding="utf-8")
    num_conditions = 2 + len(evaluation.rows)
    assert text.count('class="version"') == text.count("data:image/png") == 3 * num_conditions
    assert text.count("STOI&nbsp;0.875") == 3 * len(evaluation.rows)
    assert "3 clips without" in text
    assert "&lt;b&gt;&amp;amp;.wav" in text
    assert "<b>&" not in text
    assert "entries in use" in text


def test_the_same_evaluation_gives_the_same_test(evaluation, folder, tmp_path):
    """Byte for byte, so that ratings of two copies belong together; other clips make another test."""
    write_listening_pages(evaluation, tmp_path / "again")
    assert data_of(tmp_path / "again") == data_of(folder)
    write_listening_pages(evaluation, tmp_path / "again", num_clips=1)
    assert data_of(tmp_path / "again")["id"] != data_of(folder)["id"]
    assert [path.name for path in (tmp_path / "again" / "audio").iterdir()] == ["clip-1.js"]


def test_every_asset_is_in_the_package(folder):
    """What the folder holds is what the package brings, and what is written for the clips."""
    brought = {path.name for path in folder.iterdir() if path.is_file()}
    assert brought == {*listening_pages.ASSETS, "open.html", "data.js"}


def test_no_clips_is_wrong_usage(evaluation, tmp_path):
    """Nothing is written for a test of nothing."""
    with pytest.raises(ValueError, match="at least 1"):
        write_listening_pages(evaluation, tmp_path / "none", num_clips=0)
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(shutil.which("opusenc") is None, reason="opus-tools is not installed")
def test_opus_takes_part_where_it_is_installed(folder):
    """Under both of its bandwidths."""
    assert {"opus 6 kbps", "opus 12 kbps"} <= set(conditions_of(folder).values())
