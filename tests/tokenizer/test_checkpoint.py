"""Codecs on disk."""

import json
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import make_codec, tiny_spec
from tokenizer import CheckpointError, bundled_codecs, checkpoint, export_codec, load_codec, save_codec


def test_a_saved_codec_is_the_same_codec(tiny_codec, waveform, tmp_path):
    """Same identity, same codes, same sound."""
    save_codec(tiny_codec, tmp_path)
    loaded = load_codec(tmp_path)
    assert (loaded.sha256, loaded.name, loaded.spec) == (tiny_codec.sha256, tiny_codec.name, tiny_codec.spec)
    encoded = loaded.encode(waveform)
    assert torch.equal(encoded.codes, tiny_codec.encode(waveform).codes)
    assert torch.equal(loaded.decode(encoded), tiny_codec.decode(encoded))


def test_large_weights_are_split_and_joined(tiny_codec, tmp_path, monkeypatch):
    """Several files with an index are one codec, and no file passes the limit by more than one tensor."""
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 2000)
    save_codec(tiny_codec, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_codec(tmp_path).sha256 == tiny_codec.sha256


def test_half_precision_is_another_codec(tiny_codec, tmp_path):
    """Rounded weights give other codes now and then; the identity says so, and stays the same from then on."""
    save_codec(tiny_codec, tmp_path / "half", half=True)
    half = load_codec(tmp_path / "half")
    assert half.sha256 != tiny_codec.sha256
    save_codec(half, tmp_path / "again", half=True)
    assert load_codec(tmp_path / "again").sha256 == half.sha256


def test_the_bundled_codec_works_offline(waveform):
    """`speech_24khz` loads by name and has the documented shape."""
    codec = load_codec("speech_24khz")
    assert (codec.spec.sample_rate, codec.spec.frame_rate, codec.spec.bandwidth_kbps) == (24000, 75, 12.0)
    assert codec.decode(codec.encode(waveform, bandwidth_kbps=6.0)).shape == (1, 1, 23999)


def test_the_bundled_codec_is_the_one_that_was_published():
    """Datasets name it by this hash: no change of code may change it."""
    assert load_codec("speech_24khz").sha256.startswith("3a69749e")


@pytest.mark.parametrize("layout", ["ours", "encodec", "transformers", "file of descript"])
def test_a_loaded_codec_is_ready_for_inference(layout, tmp_path):
    """Whatever it came from: evaluation mode, no gradients, float32, on the CPU; and its search is prepared."""
    codec, path = make_codec(tiny_spec("dac" if "descript" in layout else "mirrored")), tmp_path / "mine"
    if layout == "ours":
        save_codec(codec, path)
    else:
        export_codec(codec, path, layout="dac" if "descript" in layout else layout)
    loaded = load_codec(str(path))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {(value.dtype, value.device.type) for value in loaded.state_dict().values()} == {(torch.float32, "cpu")}
    noise = torch.randn(1, 1, 400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.encode(noise).codes, codec.encode(noise).codes)


def test_stored_doubles_are_read(tiny_codec, tmp_path):
    """float64 and bfloat16 weights become float32, as when the reference loads them."""
    save_codec(tiny_codec, tmp_path)
    change_tensors(tmp_path, lambda t: t.update({key: value.double() for key, value in t.items()}))
    assert load_codec(tmp_path).sha256 == tiny_codec.sha256


def test_codecs_of_transformers_have_their_own_prefix(monkeypatch):
    """What follows "hf:" goes to the room that imports transformers."""
    room = types.ModuleType("tokenizer.transformers_codec")
    room.load_transformers_codec = lambda source: f"loaded {source}"
    monkeypatch.setitem(sys.modules, "tokenizer.transformers_codec", room)
    assert load_codec("hf:kyutai/mimi") == "loaded kyutai/mimi"


def test_loading_imports_no_other_library(tmp_path):
    """Neither encodec nor transformers, nor the hub's client, for files that are there."""
    export_codec(make_codec(tiny_spec("mirrored")), tmp_path / "mine", layout="transformers")
    code = f"import sys, tokenizer; tokenizer.load_codec({str(tmp_path / 'mine')!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"encodec", "transformers", "huggingface_hub"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("missing.th", "no codec"),
        ("x" * 10000, "no codec|too long"),
        ("null\0byte", "no codec"),
        ("", "no codec"),
    ],
    ids=["missing", "long", "null", "empty"],
)
def test_sources_that_are_nothing_are_refused(source, reason):
    """Whatever the file system says about such a name."""
    with pytest.raises(CheckpointError, match=reason):
        load_codec(source)


def test_weights_alone_are_refused(tiny_codec, tmp_path):
    """Their config is in the directory."""
    save_codec(tiny_codec, tmp_path)
    with pytest.raises(CheckpointError, match="pass the directory"):
        load_codec(tmp_path / "model.safetensors")


def test_an_unknown_name_lists_the_bundled_codecs():
    """The message is the way out; a path that climbs out of the models folder is no name."""
    for name in ("speech_99khz", "../models/speech_24khz", ""):
        with pytest.raises(CheckpointError, match=bundled_codecs()[0]):
            load_codec(name) if name else load_codec("nothing here")


TRANSFORMERS_SPEC = {
    "family": "transformers",
    "sample_rate": 24000,
    "hop_length": 1920,
    "num_codebooks": 8,
    "codebook_size": 2048,
    "network": {"model_type": "mimi"},
}


def damage_config(folder, **changes):
    """Change keys of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
        (lambda d: damage_config(d, format=99), "format 99"),
        (lambda d: damage_config(d, format=["1"] * 100), "format .'1'"),
        (lambda d: damage_config(d, spec={"family": "patch", "colour": "red"}), "config.json"),
        (lambda d: damage_config(d, spec={"family": ["patch"]}), "config.json"),
        (lambda d: damage_config(d, spec="patch"), "config.json"),
        (lambda d: (d / "config.json").write_text('{"format": 1}'), "'spec' is missing"),
        (lambda d: damage_config(d, spec=TRANSFORMERS_SPEC), '"hf:'),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100), "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]), "safetensors"),
        (lambda d: change_tensors(d, lambda t: t.pop("quantizer.codebooks")), "missing"),
        (lambda d: change_tensors(d, lambda t: t.update(extra=torch.zeros(1))), "extra"),
        (lambda d: change_tensors(d, lambda t: t.update({"quantizer.codebooks": torch.zeros(1)})), "codebooks"),
        (lambda d: change_tensors(d, lambda t: t["quantizer.codebooks"].fill_(torch.nan)), "NaN"),
        (lambda d: change_tensors(d, lambda t: t.update({k: v.long() for k, v in t.items()})), "not of floats"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_checkpoints_are_refused(tiny_codec, tmp_path, damage, reason):
    """Missing, cut, altered or foreign: a CheckpointError that names the place."""
    save_codec(tiny_codec, tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path)


def change_tensors(folder, change):
    """Load, alter and save the weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
