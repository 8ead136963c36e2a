"""Codecs on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizer import CheckpointError, bundled_codecs, checkpoint, load_codec, save_codec


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


def test_an_unknown_name_lists_the_bundled_codecs():
    """The message is the way out; a path that climbs out of the models folder is no name."""
    for name in ("speech_99khz", "../models/speech_24khz", ""):
        with pytest.raises(CheckpointError, match=bundled_codecs()[0]):
            load_codec(name) if name else load_codec("nothing here")


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
        (lambda d: damage_config(d, spec={"family": "patch", "colour": "red"}), "config.json"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100), "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]), "safetensors"),
        (lambda d: change_tensors(d, lambda t: t.pop("quantizer.codebooks")), "missing"),
        (lambda d: change_tensors(d, lambda t: t.update(extra=torch.zeros(1))), "extra"),
        (lambda d: change_tensors(d, lambda t: t.update({"quantizer.codebooks": torch.zeros(1)})), "codebooks"),
        (lambda d: change_tensors(d, lambda t: t["quantizer.codebooks"].fill_(torch.nan)), "NaN"),
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
