"""Codecs by their name on the Hugging Face hub, played here by a server on the loopback interface."""

import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import make_codec, tiny_spec
from tokenizer import CheckpointError, checkpoint, export_codec, load_codec, save_codec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(main|[0-9a-f]{40})/(?P<name>[^/?]+)$")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub and an empty cache: files go to `hub.folder`, requests are noted in `hub.requests`."""
    folder, requests = tmp_path / "hub", []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            requests.append(self.path)
            body = self.answer()
            if body is not None:
                self.wfile.write(body)

        def answer(self):
            found = PATH.match(self.path)
            path = folder / found["repository"] / found["name"] if found else None
            exists = path is not None and path.exists()
            body = path.read_bytes() if exists else b""
            self.send_response(200 if exists else 404)
            if not exists:
                unknown = found is None or not path.parent.exists()
                self.send_header("X-Error-Code", "RepoNotFound" if unknown else "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body if exists else None

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    server.folder, server.requests = folder, requests
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def use_hub(monkeypatch, endpoint, tmp_path):
    """Point huggingface_hub to another server and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.mark.parametrize("layout", ["transformers", "ours", "shards", "pickle"])
def test_a_codec_is_fetched_by_name(layout, hub, monkeypatch):
    """Its config and its weights, in any layout; nothing else that the repository holds."""
    codec, folder = make_codec(tiny_spec("mirrored")), hub.folder / "someone" / "tiny"
    if layout == "shards":
        monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 4000)
    if layout in ("ours", "shards"):
        save_codec(codec, folder)
    else:
        export_codec(codec, folder, layout="transformers")
    if layout == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    (folder / "README.md").write_text("large")
    if layout == "transformers":
        torch.save({}, folder / "pytorch_model.bin")  # safetensors are preferred
    wanted = {path.name for path in folder.iterdir()} - {"README.md"}
    wanted -= {"pytorch_model.bin"} if layout == "transformers" else set()
    loaded = load_codec("someone/tiny")
    assert loaded.sha256 == codec.sha256
    assert loaded.name == ("someone/tiny" if layout in ("transformers", "pickle") else codec.name)
    assert {path.rpartition("/")[2] for path in hub.requests} == wanted


def test_a_fetched_codec_needs_no_hub_any_more(hub, monkeypatch, tmp_path):
    """The second time it comes from the cache, though nothing answers."""
    export_codec(make_codec(tiny_spec("mirrored")), hub.folder / "someone" / "tiny", layout="transformers")
    sha256 = load_codec("someone/tiny").sha256
    use_hub(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path)
    assert load_codec("someone/tiny").sha256 == sha256


def closed_port():
    """A port of the loopback interface where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_helpful(error, repository):
    """The text names what to download, and what to do with it."""
    for name in ("config.json", "model.safetensors"):
        assert f"https://huggingface.co/{repository}/resolve/main/{name}" in str(error)
    assert "pass that directory" in str(error)


def test_an_unreachable_hub_says_what_to_download(monkeypatch, tmp_path):
    """No network, no waiting: the way out is in the message."""
    use_hub(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_codec("facebook/encodec_24khz")
    assert_helpful(caught.value, "facebook/encodec_24khz")


def test_offline_mode_says_what_to_download(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE is honoured."""
    from huggingface_hub import constants

    use_hub(monkeypatch, "https://huggingface.co", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        load_codec("facebook/encodec_24khz")
    assert_helpful(caught.value, "facebook/encodec_24khz")


def test_an_unknown_repository_is_a_checkpoint_error(hub):
    """The hub says that there is none."""
    with pytest.raises(CheckpointError) as caught:
        load_codec("nobody/nothing")
    assert_helpful(caught.value, "nobody/nothing")


def test_a_repository_without_weights_is_a_checkpoint_error(hub):
    """The config alone is no codec."""
    folder = hub.folder / "someone" / "tiny"
    export_codec(make_codec(tiny_spec("mirrored")), folder, layout="transformers")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be had"):
        load_codec("someone/tiny")


def test_another_model_is_not_downloaded(hub):
    """Its config is enough to see that it is no codec of ours; the error names the way to transformers."""
    folder = hub.folder / "someone" / "mimi"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mimi"}))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match='"hf:someone/mimi"'):
        load_codec("someone/mimi")
    assert not any("safetensors" in path for path in hub.requests)


@pytest.mark.parametrize(
    "source", ["a/b/c", "../x", "a/../b", ".a/b", "a--b/c", "a/b.th", "a/b.pth", "-a/b", "a" * 97 + "/b"]
)
def test_other_strings_are_no_repositories(source, hub, tmp_path, monkeypatch):
    """Mistyped paths do not become requests."""
    monkeypatch.chdir(tmp_path)  # where there is nothing of these names
    with pytest.raises(CheckpointError, match="no codec"):
        load_codec(source)
    assert not hub.requests
