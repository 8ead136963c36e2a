"""The page to hear the service by, in a real browser against a real server: what is heard, seen and said is true."""

import base64
import io
import math
import re
import shutil
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.service import create_app
from pipelines.serving.service_page import page_router
from pipelines.serving.service_settings import ServiceSettings
from tests.conftest import speech_like
from tests.pipelines.pages import decode_uri
from tokenizer import Encoded, load_codec

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SECONDS = 1.2
ONE_STEP = 1.01 / 32768  # of 16-bit sound
LEFT, FOOT = 52, 24  # pixels that the axes take
TIMES = "\N{MULTIPLICATION SIGN}"

# Keeps what the browser is told to play: the very samples, and when.
LISTEN_IN = """
window.played = [];
window.contexts = [];
window.AudioContext = class extends AudioContext {
  constructor(options) { super(options); contexts.push(this); }
};
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, offset) {
  const { buffer } = this, bytes = new Uint8Array(buffer.getChannelData(0).slice().buffer);
  const samples = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  played.push({ rate: buffer.sampleRate, samples, when, offset });
  return start.call(this, when, offset);
};
"""


@contextmanager
def served(codec, **settings):
    """The address of a service with one codec, on a free port of this machine."""
    app = create_app({codec.name: DecodeEngine(codec)}, ServiceSettings(**settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.02)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def codec():
    return load_codec("speech_24khz")


@pytest.fixture(scope="module")
def address(codec):
    with served(codec) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, **options):
    """The page, watched: nothing may be asked of another host, nothing may go wrong unseen."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.add_init_script(LISTEN_IN)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("websocket", lambda socket: page.asked.append(socket.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    yield page
    hosts = {urlsplit(url).netloc for url in page.asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).netloc}
    context.close()


def wav(samples, sample_rate=24000):
    """[S] samples as a file to upload."""
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="WAV", subtype="PCM_16")
    return {"name": "spoken.wav", "mimeType": "audio/wav", "buffer": file.getvalue()}


def upload(page, file):
    """Give the page a file and wait until it has made the round trip."""
    expect(page.locator("#bandwidths input")).not_to_have_count(0)
    page.set_input_files("#file", file)
    expect(page.locator("#status")).to_contain_text("encoded in")


def downloaded(page, selector):
    with page.expect_download() as download:
        page.click(selector)
    return download.value.path()


def codes_of(page):
    """[K, T] codes that the page has."""
    return np.load(downloaded(page, "#save-npy"))


def decoded(codec, codes, num_samples):
    """[S] samples that these codes stand for."""
    encoded = Encoded(torch.from_numpy(codes.astype(np.int64))[None], None, num_samples)
    return codec.decode(encoded)[0, 0].numpy()


def played(page):
    """What the browser was told to play since the last question: blocks with samples [S] of their first channel."""
    blocks = page.evaluate("played.splice(0)")
    return [block | {"samples": np.frombuffer(base64.b64decode(block["samples"]), "<f4")} for block in blocks]


def pixels(page, selector):
    """[height, width, 4] of a canvas, at one pixel per CSS pixel."""
    uri = page.locator(selector).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(decode_uri(uri)[1]).convert("RGBA"))


@pytest.fixture(scope="module")
def page(browser, address):
    """The page after one upload; tests of this module share it, and leave it as it was."""
    with opened(browser, address) as page:
        upload(page, wav(speech_like(SECONDS)))
        yield page
        assert page.complaints == []


def test_what_is_heard_is_what_the_codec_decodes(page, codec):
    """The player gets, sample for sample, the decoding of the codes that the page shows, beside the original."""
    played(page)
    page.click("#play")
    original, heard = played(page)
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")  # again: it has come to its end
    num_samples = round(SECONDS * 24000)
    expected = decoded(codec, codes_of(page), num_samples)
    assert heard["rate"] == 24000
    assert len(heard["samples"]) == num_samples
    assert np.abs(heard["samples"] - expected).max() <= ONE_STEP
    assert math.isclose(len(original["samples"]) / original["rate"], SECONDS, abs_tol=1e-3)
    assert (original["when"], original["offset"]) == (heard["when"], heard["offset"])  # one start, one place


def test_switching_keeps_the_place(page):
    """A and B change what is heard; neither starts anything anew, nor moves the position."""
    page.locator("#seek").fill("0.6")
    played(page)
    page.click("#play")
    page.evaluate("contexts[0].suspend()")  # the clock of sound stands still
    for key, heard, other in (("a", "original", "decoded"), ("b", "decoded", "original")):
        page.keyboard.press(key)
        expect(page.locator(f"#{heard}-figure")).to_have_class("heard")
        expect(page.locator(f"#{other}-figure")).not_to_have_class("heard")
        expect(page.locator(f"#version-{heard}")).to_be_checked()
    assert [one["offset"] for one in played(page)] == pytest.approx([0.6, 0.6], abs=0.011)
    page.evaluate("contexts[0].resume()")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")


def test_downloads_are_the_codes_of_the_file_and_their_sound(page, codec):
    """The NPY holds what the codec makes of the file at the bandwidth chosen, the WAV what it makes of that."""
    chosen = float(page.locator("input[name=bandwidth]:checked").get_attribute("value"))
    samples, _ = soundfile.read(io.BytesIO(wav(speech_like(SECONDS))["buffer"]), dtype="float32")
    codes = codes_of(page)
    encoded = codec.encode(torch.from_numpy(samples)[None], bandwidth_kbps=chosen)
    assert codes.dtype == np.uint16
    assert np.mean(codes == encoded.codes[0].numpy()) > 0.999  # near-ties may fall either way
    sound, rate = soundfile.read(downloaded(page, "#save-wav"), dtype="float32")
    assert rate == 24000
    assert np.abs(sound - decoded(codec, codes, len(samples))).max() <= ONE_STEP


def test_pictures_show_the_sound(page):
    """Both spectrograms and the codes fill their boxes with more than a few colours."""
    for name, least in (("original", 200), ("decoded", 200), ("codes", 50)):
        inside = pixels(page, f"#{name}-picture")[:-FOOT, LEFT:-1, :3]
        assert len(np.unique(inside.reshape(-1, 3), axis=0)) > least, name
        assert inside[:, -20:].max() > 60, name  # to the end of the time axis


def test_a_tone_stands_at_its_pitch(browser, address):
    """1 kHz is brightest where the axis says 1 kHz."""
    with opened(browser, address) as page:
        upload(page, wav(0.3 * np.sin(2 * np.pi * 1000 * np.arange(24000) / 24000)))
        picture = pixels(page, "#original-picture")[:-FOOT, LEFT + 100 : -100, :3]
    brightest = int(picture.sum(axis=(1, 2), dtype=np.int64).argmax())
    low, high, tone = (2595 * math.log10(1 + hertz / 700) for hertz in (40, 12000, 1000))
    assert abs(brightest / len(picture) - (1 - (tone - low) / (high - low))) < 0.02


def test_every_code_can_be_read(page):
    """Under the pointer and under the arrow keys stand level, frame and code."""
    codes = codes_of(page)
    levels, frames = codes.shape
    canvas = page.locator("#codes-picture")
    box = canvas.bounding_box()
    width, height = box["width"] - LEFT - 1, box["height"] - FOOT
    span = width * frames * 320 / round(SECONDS * 24000)
    canvas.hover(position={"x": LEFT + span * 40.5 / frames, "y": height * 2.5 / levels})
    said = f"Level 2, frame 40, 0.53 s: code {codes[2, 40]}"
    expect(page.locator("#cell")).to_have_text(said)
    expect(page.locator("#tip")).to_have_text(said)
    page.mouse.move(0, 0)
    expect(page.locator("#tip")).to_be_hidden()
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    expect(page.locator("#cell")).to_have_text(re.compile(rf"Level 1, frame 1, .*: code {codes[1, 1]}$"))
    page.locator("#play").focus()
    expect(page.locator("#cell")).to_have_text(re.compile("frames a second"))


def test_figures_follow_from_the_codes(page):
    """Kilobits, codes, bytes and the ratio to 16-bit PCM are those of the codes on show."""
    levels, frames = codes_of(page).shape
    kbps, number, size, ratio = page.locator("#figures b").all_inner_texts()
    num_bytes = math.ceil(levels * frames * 10 / 8)
    assert float(kbps) == levels * 0.75
    assert number == f"{levels * frames:,}"
    assert size == (f"{num_bytes} B" if num_bytes < 1000 else f"{num_bytes / 1000:.3g} kB")
    assert math.isclose(float(ratio.rstrip(TIMES)), 2 * SECONDS * 24000 / num_bytes, rel_tol=0.01)


@pytest.mark.parametrize(
    ("chunk", "pace", "least_underruns"),
    [("25", "0", 0), ("5", "2", 0), ("25", "0.8", 1)],
    ids=["at once", "fast", "too slow"],
)
def test_a_stream_brings_every_sample_once(page, codec, chunk, pace, least_underruns):
    """What plays as it arrives is, end to end, the decoding of the whole; the figures are those of what happened."""
    played(page)
    page.locator(f"label[for=chunk-{chunk}]").click()
    page.locator(f"label[for='pace-{pace}']").click()
    page.click("#stream-button")
    num_samples = round(SECONDS * 75) * 320
    expect(page.locator("#stream-status")).to_contain_text(f"All {num_samples:,} samples arrived")
    expect(page.locator("#stream-status")).to_contain_text("equal to decoding the whole at once")
    blocks = played(page)
    samples = np.concatenate([block["samples"] for block in blocks])
    assert np.abs(samples - decoded(codec, codes_of(page), num_samples)).max() <= ONE_STEP
    first, pieces, speed, underruns = page.locator("#stream-figures b").all_inner_texts()
    assert first.endswith(" ms")
    assert float(first.removesuffix(" ms").replace(",", "")) > 0
    assert int(pieces) == len(blocks)
    assert float(speed.rstrip(TIMES).replace(",", "")) > 0
    ends = [block["when"] + len(block["samples"]) / 24000 for block in blocks]
    gaps = [after["when"] - end for end, after in zip(ends, blocks[1:], strict=False)]
    assert sum(gap > 1e-6 for gap in gaps) == int(underruns) >= least_underruns
    assert min(gaps) > -1e-6  # blocks never overlap
    assert pixels(page, "#stream-picture")[:-FOOT, :, 3].max() == 255
    expect(page.locator("#stream-button")).to_have_text("Stream it")  # played to its end


def test_another_bandwidth_makes_another_round_trip(browser, address):
    """Choosing fewer kilobits encodes the same sound again, with fewer levels, and the levels left are the same."""
    with opened(browser, address) as page:
        upload(page, wav(speech_like(SECONDS)))
        before = codes_of(page)
        page.locator("label[for='bandwidth-1.5']").click()
        expect(page.locator("#figures b").first).to_have_text("1.5")
        after = codes_of(page)
    assert after.shape == (2, before.shape[1])
    assert np.array_equal(after, before[:2])


def test_what_is_no_sound_is_refused_in_words(browser, address):
    """A text file gets a sentence, not a trace; and the next good file is heard."""
    with opened(browser, address) as page:
        expect(page.locator("#bandwidths input")).not_to_have_count(0)
        notes = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no sound at all\n" * 40}
        page.set_input_files("#file", notes)
        problem = page.get_by_role("alert").filter(visible=True)
        expect(problem).to_contain_text("This is not a sound that the service can read.")
        expect(problem.locator("span")).to_have_text(re.compile(r"\w.*\.$"))
        expect(page.locator("#listen")).to_be_hidden()
        upload(page, wav(speech_like(0.3)))
        expect(page.locator("#problem")).to_be_hidden()
        assert all("status of 4" in complaint for complaint in page.complaints)  # the browser's own line


def test_the_microphone_is_recorded(browser, address):
    """What is spoken becomes a WAV in the browser, and makes the same round trip as a file."""
    with opened(browser, address) as page:
        expect(page.locator("#bandwidths input")).not_to_have_count(0)
        page.get_by_role("button", name="Record").click()
        expect(page.locator("#record")).to_contain_text("0:01.")
        page.locator("#record").click()
        expect(page.locator("#status")).to_contain_text("recording.wav: encoded in")
        assert codes_of(page).shape[1] > 60
        assert page.complaints == []


def test_our_sample_needs_no_file(browser, address):
    """One button makes the round trip with speech that comes with the package."""
    with opened(browser, address) as page:
        expect(page.locator("#bandwidths input")).not_to_have_count(0)
        page.get_by_role("button", name="Use our sample").click()
        expect(page.locator("#status")).to_contain_text("sample.flac: encoded in")
        assert page.complaints == []


def test_a_token_is_asked_for_only_where_one_is_needed(browser, codec, page):
    """Without a token no field is shown; a service with one is used, streams too, once the field has the right word."""
    expect(page.locator("#token-form")).to_be_hidden()
    with served(codec, token="open-sesame") as address, opened(browser, address) as locked:  # noqa: S106
        expect(locked.locator("#token")).to_be_focused()
        expect(locked.locator("#problem")).to_contain_text("The token is missing")
        locked.fill("#token", "wrong")
        locked.keyboard.press("Enter")
        expect(locked.locator("#problem")).to_contain_text("The token is wrong")
        locked.fill("#token", "open-sesame")
        locked.keyboard.press("Enter")
        expect(locked.locator("#token-form")).to_be_hidden()
        upload(locked, wav(speech_like(0.3)))
        locked.click("#stream-button")
        expect(locked.locator("#stream-status")).to_contain_text("samples arrived")


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_scrolls_sideways(browser, address, width):
    """On a phone the page is as wide as the screen, with everything on show."""
    with opened(browser, address, viewport={"width": width, "height": 700}) as page:
        upload(page, wav(speech_like(0.3)))
        page.click("#stream-button")
        expect(page.locator("#stream-status")).to_contain_text("samples arrived")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.complaints == []


def test_every_control_has_a_name_and_can_be_reached_by_keys(page):
    """The Tab key visits every control once, and a screen reader has a name for each."""
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.locator("#file").focus()
    seen = []
    for _ in range(40):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
    for needed in ("file", "record", "sample", "codec", "play", "seek", "codes-picture", "save-wav", "stream-button"):
        assert seen.count(needed) == 1, needed
    nameless = """() => [...document.querySelectorAll("button, input, select, [role=img]")]
      .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_the_policy_allows_the_pages_own_script_and_no_other():
    """No inline code but what is hashed, no other host, and no attribute that the policy would silently switch off."""
    app = FastAPI()
    app.include_router(page_router())
    answer = TestClient(app).get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    page = answer.text
    assert not re.search(r"\s(on\w+|style)=", page.split("<script")[0].split("</style>")[1])
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
