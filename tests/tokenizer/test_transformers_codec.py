"""Codecs that `transformers` computes, behind our interface: tiny random ones of every kind."""

import copy
import json
import math
import pickle
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokenizer.small_transformers import CONFIGS, encode_with_model, make_model, speech
from tokenizer import AudioError, CheckpointError, CodecSpec, Encoded, hub, load_codec
from tokenizer.transformers_codec import MODEL_TYPES, TransformersCodec, load_transformers_codec

pytestmark = pytest.mark.filterwarnings("default")  # transformers warns about its own making


@pytest.fixture(scope="module", params=MODEL_TYPES)
def pair(request, tmp_path_factory):
    """A model of `transformers`, and our codec from its files."""
    model = make_model(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    return model, load_transformers_codec(str(directory))


@pytest.fixture(scope="module")
def mimi_dir(tmp_path_factory):
    """The directory of a tiny Mimi."""
    directory = tmp_path_factory.mktemp("codec") / "tiny_mimi"
    make_model("mimi").save_pretrained(directory)
    return directory


def test_codes_are_those_of_the_model(pair):
    """Of whole frames, every level; and the same codes become the same sound."""
    model, codec = pair
    num_samples = 50 * codec.spec.hop_length - (codec.spec.network.model_type == "xcodec2")
    waveform = speech(num_samples)
    encoded = codec.encode(waveform)
    expected = encode_with_model(model, waveform)
    assert len(encoded.codes[0, 0].unique()) > 2, "the test says nothing about degenerate codes"
    assert torch.equal(encoded.codes, expected)
    codes = expected[None] if codec.spec.network.model_type == "encodec" else expected
    options = {"audio_scales": [None]} if codec.spec.network.model_type == "encodec" else {}
    with torch.inference_mode():
        sound = model.decode(audio_codes=codes, **options).audio_values.reshape(1, 1, -1)
    length = min(sound.shape[-1], num_samples)
    assert torch.equal(codec.decode(encoded)[..., :length], sound[..., :length])


def test_the_spec_describes_the_model(pair):
    """Frames as many as the hop says; the spec survives its JSON form, as a dataset stores it."""
    _, codec = pair
    spec = codec.spec
    assert spec.num_codebooks == {"dac": 3, "mimi": 4, "encodec": 4, "xcodec2": 1}.get(spec.network.model_type, 4)
    assert spec.hop_length == {"dac": 8, "encodec": 8, "higgs_audio_v2_tokenizer": 960, "xcodec2": 320}.get(
        spec.network.model_type, 16
    )
    assert CodecSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert not codec.streamable
    with pytest.raises(ValueError, match="takes whole files"):
        codec.encode_state()
    assert math.isinf(codec.algorithmic_latency_s)


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=3))
def test_neighbours_change_nothing_and_lengths_are_exact(pair, lengths):
    """A ragged batch is what its items are alone, in blocks too; sound is as long as it was."""
    _, codec = pair
    waveforms = [speech(length) for length in lengths]
    for waveform, encoded in zip(waveforms, codec.encode_batch(waveforms), strict=True):
        alone = codec.encode(waveform)
        assert torch.equal(encoded.codes, alone.codes)
        assert encoded.codes.shape[-1] == codec.spec.num_frames(waveform.shape[-1])
        assert torch.equal(codec.encode_blocks(waveform.split(700, dim=-1)).codes, alone.codes)
        assert codec.decode(encoded).shape == (1, 1, waveform.shape[-1])


def test_rows_of_a_batch_are_encoded_alone(pair):
    """Equally long rows too: the last bits of a sum may depend on how many rows there are."""
    _, codec = pair
    rows = torch.stack([speech(2000), -speech(2000).flip(-1)])
    together = codec.encode(rows)
    assert torch.equal(together.codes, torch.cat([codec.encode(row).codes for row in rows]))
    alone = [codec.decode(Encoded(row[None], None, 2000)) for row in together.codes]
    assert torch.equal(codec.decode(together), torch.cat(alone))


def test_fewer_levels_are_a_prefix(pair):
    """A lower bandwidth has the first levels, as the model itself gives them, and decodes."""
    model, codec = pair
    waveform = speech(1600)
    whole = codec.encode(waveform)
    for count in range(1, codec.spec.num_codebooks + 1):
        kbps = codec.spec.level_kbps * count
        encoded = codec.encode(waveform, bandwidth_kbps=kbps)
        assert torch.equal(encoded.codes, whole.codes[:, :count])
        assert torch.equal(codec.decode(encoded), codec.decode(whole, bandwidth_kbps=kbps))
    kind = codec.spec.network.model_type
    few = {"dac": {"n_quantizers": 2}, "mimi": {"num_quantizers": 2}}.get(kind)
    if kind != "xcodec2":
        few = few or {"bandwidth": CONFIGS[kind]["target_bandwidths"][0]}
        codes = encode_with_model(model, waveform, **few)
        assert codes.shape[1] < codec.spec.num_codebooks
        assert torch.equal(codes, whole.codes[:, : codes.shape[1]])


def test_a_codec_travels(pair):
    """Pickled, by Ray too, and copied, before and after use, it is the same codec."""
    _, codec = pair
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    waveform = speech(1000)
    codes = codec.encode(waveform).codes
    for other in (
        pickle.loads(pickle.dumps(codec)),  # noqa: S301 - our own
        cloudpickle.loads(cloudpickle.dumps(codec)),
        copy.deepcopy(codec),
    ):
        assert isinstance(other, TransformersCodec)
        assert other.sha256 == codec.sha256
        assert other.card() == codec.card()
        assert torch.equal(other.encode(waveform).codes, codes)


def test_a_used_codec_can_move(mimi_dir):
    """Mimi keeps codebooks beside its buffers; they are made anew where the weights went."""
    codec = load_transformers_codec(str(mimi_dir))
    codec.encode(speech(1000))
    moved = codec.to("meta")
    assert all(vars(module).get("_embed") is None for module in moved.modules())


def test_settings_belong_to_the_identity(mimi_dir, tmp_path):
    """The same weights under other settings give other codes: another codec. Bookkeeping changes nothing."""
    codec = load_codec(f"hf:{mimi_dir}")
    assert codec.name == "tiny_mimi"
    for key, value, same in (("sliding_window", 4, False), ("transformers_version", "6", True)):
        directory = tmp_path / key
        make_copy(mimi_dir, directory, {key: value})
        assert (load_transformers_codec(str(directory)).sha256 == codec.sha256) == same


def make_copy(source, directory, changes):
    """A model's directory with other settings."""
    directory.mkdir()
    config = json.loads((source / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "evil"])
def test_pickled_weights_are_read_and_never_run(kind, mimi_dir, tmp_path):
    """Weights in a pickle are the same codec; a pickle with code is refused, and the code does not run."""
    from safetensors.torch import load_file

    make_copy(mimi_dir, tmp_path / "pickled", {})
    (tmp_path / "pickled" / "model.safetensors").unlink()
    target = tmp_path / "pickled" / "pytorch_model.bin"
    if kind == "evil":
        torch.save({"encoder": Evil(tmp_path / "ran")}, target)
        with pytest.raises(CheckpointError):
            load_transformers_codec(str(tmp_path / "pickled"))
        assert not (tmp_path / "ran").exists()
    else:
        torch.save(load_file(mimi_dir / "model.safetensors"), target)
        loaded = load_transformers_codec(str(tmp_path / "pickled"))
        assert loaded.sha256 == load_transformers_codec(str(mimi_dir)).sha256


class Evil:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "not an audio codec"),
        ({"model_type": "no such type"}, "not an audio codec"),
        ({"model_type": None}, "not an audio codec"),
        ({"model_type": "neucodec"}, "one sample rate"),
        ({"model_type": "vibevoice_acoustic_tokenizer"}, "continuous latents"),
        ({"model_type": "encodec", "chunk_length_s": 1.0}, "segments"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized weights"),
        ({"_attn_implementation": "someone/kernel"}, "nothing else is loaded"),
        ({"codebook_size": 32}, "of another shape|mismatch|size"),
        ({"num_quantizers": 5}, "weights missing"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"codebook_size": 15}, "power of 2"),
    ],
)
def test_other_models_are_refused(changes, message, mimi_dir, tmp_path):
    """Text models, codecs without codes, and settings that do not fit the weights: one clear line each."""
    make_copy(mimi_dir, tmp_path / "other", changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_transformers_codec(str(tmp_path / "other"))
    assert "\n" not in str(caught.value)


def test_damaged_directories_are_refused(mimi_dir, tmp_path):
    """No config, no weights, half the weights, weights that are not numbers."""
    from safetensors.torch import load_file, save_file

    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_transformers_codec(str(tmp_path / "empty"))
    make_copy(mimi_dir, tmp_path / "damaged", {})
    weights = tmp_path / "damaged" / "model.safetensors"
    tensors = load_file(mimi_dir / "model.safetensors")  # mapped: of a file that stays whole
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        load_transformers_codec(str(tmp_path / "damaged"))
    save_file({key: value * math.nan for key, value in tensors.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        load_transformers_codec(str(tmp_path / "damaged"))
    weights.unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        load_transformers_codec(str(tmp_path / "damaged"))


@pytest.mark.parametrize("source", ["", "no such directory", "a" * 5000, "a/b/c"])
def test_sources_that_are_nothing(source):
    """Neither here nor on the hub."""
    with pytest.raises(CheckpointError, match="neither a directory"):
        load_transformers_codec(source)


def test_a_codec_comes_from_the_hub(mimi_dir, monkeypatch):
    """By its name; weights are fetched only after the config said that it is a codec."""
    fetched = []
    monkeypatch.setattr(hub, "download_config", lambda name: hub.Snapshot(name, mimi_dir, None))
    monkeypatch.setattr(hub, "download_weights", fetched.append)
    codec = load_transformers_codec("someone/mimi")
    assert codec.name == "someone/mimi"
    assert len(fetched) == 1
    assert codec.sha256 == load_transformers_codec(str(mimi_dir)).sha256


def test_a_text_model_of_the_hub_is_not_downloaded(mimi_dir, tmp_path, monkeypatch):
    """Its config is enough."""
    make_copy(mimi_dir, tmp_path / "text", {"model_type": "gpt2"})
    monkeypatch.setattr(hub, "download_config", lambda name: hub.Snapshot(name, tmp_path / "text", None))
    monkeypatch.delattr(hub, "download_weights")
    with pytest.raises(CheckpointError, match="'gpt2' is not an audio codec"):
        load_transformers_codec("someone/gpt")


def test_without_transformers_the_error_says_what_to_install(mimi_dir, monkeypatch):
    """It is an optional extra."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r'pip install "quantone\[hf\]"'):
        load_transformers_codec(str(mimi_dir))


def test_a_model_that_miscounts_frames_is_an_audio_error(mimi_dir, monkeypatch):
    """Rather than codes of which nobody knows what they stand for."""
    codec = load_transformers_codec(str(mimi_dir))
    encode = codec.model.encode

    def forgetful(*args, **options):
        output = encode(*args, **options)
        output.audio_codes = output.audio_codes[..., 1:]
        return output

    monkeypatch.setattr(codec.model, "encode", forgetful)
    with pytest.raises(AudioError, match="gives 9 frames for 160 samples, not 10"):
        codec.encode(speech(160))


def test_loading_is_silent(mimi_dir, capfd):
    """No progress bars, no warnings."""
    load_transformers_codec(str(mimi_dir))
    assert capfd.readouterr() == ("", "")
