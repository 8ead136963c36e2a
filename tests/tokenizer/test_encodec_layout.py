"""EnCodec's checkpoints: what the reference libraries write we read, and the other way round, bit for bit."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_codec, tiny_spec
from tests.tokenizer.small_encodecs import GROUPED, MUSICGEN, SMALL, original_model, transformers_model
from tokenizer import CheckpointError, Codec, CodecSpec, encodec_layout, export_codec, load_codec, save_codec
from tokenizer.folded_weights import fold
from tokenizer.network_config import SeanetConfig
from tokenizer.presets import PRESETS
from tokenizer.spec import SegmentConfig
from tokenizer.torchaudio_import import import_torchaudio


@torch.no_grad()
def decoded(model, latent_dim=8):
    """What a model's decoder makes of some latents."""
    latents = torch.randn(1, latent_dim, 20, generator=torch.Generator().manual_seed(1))
    return model.decoder(latents)


def assert_same_weights(model, other):
    """Weight norm has many spellings of one weight: what counts is the product, and the codebooks."""
    ours, theirs = fold(model.state_dict()), fold(other.state_dict())
    assert ours.keys() == theirs.keys()
    for key in ours:
        if not key.endswith(("inited", "cluster_size", "embed_avg")):
            assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("kind", ["24khz", "48khz"])
def test_original_files_go_both_ways(kind, tmp_path):
    """A .th of `encodec` is loaded, exported, and taken by `encodec` again: strictly, and with the same weights."""
    reference = original_model(kind)
    torch.save(reference.state_dict(), tmp_path / "mine.th")
    codec = load_codec(tmp_path / "mine.th")
    preset = PRESETS[f"encodec_{kind}"]
    assert (codec.name, codec.spec.segment, codec.spec.sample_rate) == ("mine", preset.segment, preset.sample_rate)
    assert codec.spec.network == dataclasses.replace(preset.network, num_filters=4, strides=(2, 4), num_lstm_layers=1)
    export_codec(codec, tmp_path / "again.th", layout="encodec")
    again = original_model(kind, seed=7)
    again.load_state_dict(torch.load(tmp_path / "again.th", weights_only=True), strict=True)
    assert_same_weights(reference, again)
    torch.testing.assert_close(decoded(again), decoded(reference), atol=1e-6, rtol=1e-5)  # torch folds in another order
    assert load_codec(tmp_path / "again.th").sha256 == codec.sha256


@pytest.mark.parametrize("changes", [{}, GROUPED, MUSICGEN], ids=["24khz", "48khz", "musicgen"])
def test_transformers_directories_go_both_ways(changes, tmp_path):
    """A directory of `transformers` is loaded, exported, and taken by `from_pretrained` again, nothing missing."""
    from transformers import EncodecModel

    reference = transformers_model(**changes)
    reference.save_pretrained(tmp_path / "mine")
    codec = load_codec(tmp_path / "mine")
    assert (codec.name, codec.spec.num_codebooks) == ("mine", 4)
    export_codec(codec, tmp_path / "again", layout="transformers")
    again, report = EncodecModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    assert_same_weights(reference, again.eval())
    torch.testing.assert_close(decoded(again), decoded(reference), atol=1e-6, rtol=1e-5)  # torch folds in another order
    assert again.config.num_quantizers == 4
    assert load_codec(tmp_path / "again").sha256 == codec.sha256


def test_the_two_libraries_hold_one_codec(tmp_path):
    """The same weights, through either library's files, are the same codec by its sha256."""
    torch.save(original_model().state_dict(), tmp_path / "mine.th")
    codec = load_codec(tmp_path / "mine.th")
    export_codec(codec, tmp_path / "mine", layout="transformers")
    assert load_codec(tmp_path / "mine").sha256 == codec.sha256


def respelled(state, spelling):
    """A state dict in one of the three spellings of weight norm."""
    if spelling == "folded":
        return fold(state)
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {
        f"{key.rpartition('.')[0]}.{names.get(key.rpartition('.')[2], key.rpartition('.')[2])}": state[key]
        for key in state
    }


@pytest.mark.parametrize("spelling", ["parametrized", "folded"])
def test_all_spellings_of_weight_norm_are_read(spelling, tmp_path):
    """Old hooks, new parametrizations, or folded already: one codec."""
    state = original_model().state_dict()
    torch.save(state, tmp_path / "mine.th")
    torch.save(respelled(state, spelling), tmp_path / "other.th")
    assert "weight_g" not in "".join(respelled(state, spelling))
    assert load_codec(tmp_path / "other.th").sha256 == load_codec(tmp_path / "mine.th").sha256


def test_released_shapes_give_the_presets():
    """Full-size models of `encodec`, without their weights, are read as the two presets."""
    import_torchaudio()
    from encodec import EncodecModel

    with torch.device("meta"):
        models = {
            "encodec_24khz": EncodecModel.encodec_model_24khz(pretrained=False),
            "encodec_48khz": EncodecModel.encodec_model_48khz(pretrained=False),
        }
    for name, model in models.items():
        assert encodec_layout.spec_from_shapes(fold(model.state_dict())) == PRESETS[name]


def test_default_configs_give_the_presets():
    """What transformers writes for its default settings, every key of it, is the 24 kHz preset; and 48 kHz likewise."""
    from transformers import EncodecConfig

    config = json.loads(EncodecConfig().to_json_string(use_diff=False))
    assert encodec_layout.spec_from_config(config) == PRESETS["encodec_24khz"]
    grouped = {**GROUPED, "target_bandwidths": [3.0, 6.0, 12.0, 24.0]}
    assert encodec_layout.spec_from_config(grouped) == PRESETS["encodec_48khz"]
    assert (
        encodec_layout.spec_from_config(json.loads(EncodecConfig(**grouped).to_json_string()))
        == PRESETS["encodec_48khz"]
    )


@st.composite
def seanet_specs(draw):
    """Small SEANets of all kinds, segmented or not."""
    causal = draw(st.booleans())
    grouped = not causal and draw(st.booleans())
    last = draw(st.integers(1, 5))
    network = SeanetConfig(
        num_filters=draw(st.integers(2, 5)),
        strides=tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))),
        kernel_size=draw(st.integers(1, 5)),
        latent_kernel_size=last,
        last_kernel_size=last,
        residual_kernel_size=draw(st.integers(1, 4)),
        num_residual_layers=draw(st.integers(0, 2)),
        compress=draw(st.integers(1, 2)),
        num_lstm_layers=draw(st.integers(1, 2)),
        causal=causal,
        norm="time_group_norm" if grouped else "weight_norm",
        pad_mode=draw(st.sampled_from(["constant", "reflect"])),
        conv_shortcut=draw(st.booleans()),
        dilation_base=draw(st.integers(1, 3)),
    )
    segment = SegmentConfig(length=4800, stride=4752, normalize=draw(st.booleans())) if grouped else None
    return CodecSpec(
        family="seanet",
        sample_rate=draw(st.sampled_from([16000, 24000, 44100, 48000])),
        hop_length=math.prod(network.strides),
        num_codebooks=draw(st.integers(1, 5)),
        codebook_size=draw(st.sampled_from([2, 16, 64])),
        channels=draw(st.integers(1, 2)),
        latent_dim=draw(st.integers(1, 6)),
        network=network,
        segment=segment,
    )


def random_codec(spec):
    """Untrained, with codebooks that are not all zeros."""
    codec = Codec(spec, name="any")
    codec.quantizer.set_codebooks(torch.randn_like(codec.quantizer.codebooks))
    return codec


@given(spec=seanet_specs())
@settings(max_examples=40, deadline=None)
def test_original_files_hold_a_codec_or_refuse_it(spec, tmp_path_factory):
    """They have no settings in them: a codec that its shapes do not tell is never written, all others come back."""
    likely = dataclasses.replace(spec.network, dilation_base=2, pad_mode="reflect", conv_shortcut=True)
    preset = PRESETS["encodec_24khz" if spec.network.causal else "encodec_48khz"]
    spec = dataclasses.replace(spec, network=likely, sample_rate=preset.sample_rate, segment=preset.segment)
    codec, path = random_codec(spec), tmp_path_factory.mktemp("any") / "any.th"
    try:
        export_codec(codec, path, layout="encodec")
    except CheckpointError:
        assert not path.exists()
        narrow = spec.network.num_filters * 2 ** (len(spec.network.strides) - 1) // spec.network.compress
        assert not spec.network.causal or spec.network.num_residual_layers == 0 or narrow == 1
    else:
        assert load_codec(path).sha256 == codec.sha256


@given(spec=seanet_specs())
@settings(max_examples=25, deadline=None)
def test_any_seanet_survives_transformers_layout(spec, tmp_path_factory):
    """Spec, weights and identity come back, whatever the network's settings."""
    codec, directory = random_codec(spec), tmp_path_factory.mktemp("any")
    export_codec(codec, directory, layout="transformers")
    assert load_codec(directory).sha256 == codec.sha256


@given(
    num_codebooks=st.integers(1, 64),
    codebook_size=st.sampled_from([2, 64, 1024, 2048, 65536]),
    sample_rate=st.sampled_from([16000, 22050, 24000, 44100, 48000]),
    stride=st.integers(1, 1000),
)
@settings(max_examples=200, deadline=None)
def test_transformers_reckons_as_many_levels_as_there_are(num_codebooks, codebook_size, sample_rate, stride):
    """Its configs store a bandwidth and divide: the bandwidths that we write come out at whole numbers of levels."""
    from transformers import EncodecConfig

    spec = dataclasses.replace(
        tiny_spec("seanet"),
        sample_rate=sample_rate,
        hop_length=stride,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        network=SeanetConfig(strides=(stride,)),
    )
    config = encodec_layout.config_from_spec(spec)
    assert EncodecConfig(**config).num_quantizers == num_codebooks
    assert encodec_layout.spec_from_config(config).num_codebooks == num_codebooks


def test_a_row_of_zeros_survives(tmp_path):
    """It has no direction: naively split and folded it would become NaN."""
    codec = make_codec(tiny_spec("mirrored"))
    codec.encoder.model[0].conv.weight[1] = 0
    codec.encoder.model[0].conv.weight[2] = -0.0
    export_codec(codec, tmp_path / "mine.th", layout="encodec")
    assert load_codec(tmp_path / "mine.th").sha256 == codec.sha256


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"colour": "red"}, "unknown settings.*colour"),
        ({"quantization_config": {}}, "unknown settings.*quantization_config"),
        ({"trim_right_ratio": 0.5}, "trim_right_ratio = 0.5 is not supported"),
        ({"codebook_dim": 4}, "codebook_dim = 4 is not supported"),
        ({"normalize": True}, "normalize without chunk_length_s"),
        ({"use_causal_conv": False, "chunk_length_s": 1.0}, "needs an overlap"),
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "segments are for networks that are not causal"),
        ({"norm_type": "time_group_norm", "use_causal_conv": False}, "needs segments"),
        ({"norm_type": "spectral"}, "norm_type must be one of"),
        ({"pad_mode": "replicate"}, "pad_mode must be one of"),
        ({"num_lstm_layers": 0}, "num_lstm_layers = 0"),
        ({"num_filters": "4"}, "num_filters must be a whole number"),
        ({"num_filters": True}, "num_filters must be a whole number"),
        ({"num_filters": 2**40}, "num_filters"),
        ({"num_filters": 2**24, "upsampling_ratios": [2] * 16}, "config.json"),
        ({"upsampling_ratios": 8}, "a list of whole numbers"),
        ({"upsampling_ratios": [2] * 100000}, "strides"),
        ({"target_bandwidths": []}, "a list of finite numbers"),
        ({"target_bandwidths": [math.nan]}, "a list of finite numbers"),
        ({"chunk_length_s": math.inf, "overlap": 0.0}, "chunk_length_s must be a finite number"),
        ({"codebook_size": 15}, "power of two"),
        ({"use_conv_shortcut": "yes"}, "true or false"),
        ({"model_type": "mimi"}, 'model_type .mimi.*"hf:'),
        ({"model_type": ["encodec"]}, "model_type"),
    ],
    ids=str,
)
def test_settings_that_we_cannot_honour_are_refused(changes, reason, tmp_path):
    """By name, before any weight is read: a codec that is almost right would make noise."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "encodec", **SMALL, **changes}))
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path)


def change(key, value=None):
    """A state dict without a key, or with another value for it."""

    def apply(state):
        state.pop(key) if value is None else state.update({key: value})

    return apply


LATENTS, UNIT = "encoder.model.9.conv.conv", "encoder.model.1.block.1.conv.conv"
LEVEL = "quantizer.vq.layers.3._codebook.embed"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change(f"{LATENTS}.bias"), "missing .*model.9.conv.conv.bias"),
        (change(f"{LATENTS}.weight_v"), "missing .*model.9.conv.conv.weight_v"),
        (change("extra", torch.zeros(1)), "not of this codec .*extra"),
        (change(LEVEL), "missing .*layers.3._codebook.embed"),
        (change("quantizer.vq.layers.1._codebook.embed"), "missing .*layers.1._codebook.embed"),
        (change(LEVEL, torch.zeros(17, 8)), r"layers.3._codebook.embed is \[17, 8\], not \[16, 8\]"),
        (change(LEVEL, torch.full((16, 8), torch.inf)), "NaN or infinite"),
        (change(LEVEL, torch.zeros(16, 8, dtype=torch.int64)), "torch.int64, not of floats"),
        (change(f"{UNIT}.weight_v", torch.zeros(2, 4, 3, dtype=torch.int32)), "torch.int32, not of floats"),
        (change(f"{UNIT}.weight_g", torch.zeros(3, 1, 1)), "weight_g"),
        (change(f"{UNIT}.weight_v", torch.zeros(2, 4)), "weight_g"),
        (change(f"{UNIT}.weight_g", torch.full((2, 1, 1), torch.nan)), "NaN or infinite"),
        (change("decoder.model.1.lstm.weight_ih_l0", torch.zeros(3, 3)), "lstm.weight_ih_l0 is"),
        (change(LEVEL, torch.full((1,), 1e39, dtype=torch.float64).repeat(16, 8)), "NaN or infinite"),
        (lambda state: [state.pop(key) for key in list(state) if ".shortcut." in key], "audiocraft"),
        (lambda state: state.update(best_state={}), "audiocraft"),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("encoder.")], "neither an EnCodec"),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("decoder.")], "decoder"),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("quantizer.")], "missing quantizer"),
    ],
)
def test_damaged_state_dicts_are_refused(damage, reason, tmp_path):
    """Missing, foreign, of the wrong shape or type, or not numbers: a CheckpointError that names the tensor."""
    state = original_model().state_dict()
    damage(state)
    torch.save(state, tmp_path / "mine.th")
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path / "mine.th")


@pytest.mark.parametrize(
    ("layout", "spec", "reason"),
    [
        ("encodec", tiny_spec("patch"), "no EnCodec"),
        ("encodec", tiny_spec("seanet"), "pad_mode constant would become reflect"),
        ("encodec", dataclasses.replace(tiny_spec("mirrored"), sample_rate=16000), "sample_rate 16000"),
        ("dac", tiny_spec("seanet"), "no DAC"),
        ("transformers", tiny_spec("patch"), "no DAC"),
        (
            "transformers",
            dataclasses.replace(tiny_spec("seanet"), network=SeanetConfig(strides=(2, 4), latent_kernel_size=3)),
            "latent_kernel_size 3 would become 7",
        ),
        (
            "transformers",
            dataclasses.replace(tiny_spec("seanet"), network=SeanetConfig(strides=(2, 4), num_lstm_layers=0)),
            "num_lstm_layers",
        ),
    ],
)
def test_layouts_that_cannot_hold_a_codec_say_why(layout, spec, reason, tmp_path):
    """Rather than writing a file that the other library would read as another codec."""
    with pytest.raises(CheckpointError, match=reason):
        export_codec(Codec(spec), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["encodec", "transformers"])
def test_exports_are_reproducible(layout, tmp_path):
    """The same codec gives the same bytes."""
    codec, contents = make_codec(tiny_spec("mirrored")), []
    for folder in ("first", "second"):
        path = tmp_path / folder / "mine"
        export_codec(codec, path, layout=layout)
        contents.append((path if layout == "encodec" else path / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_names_that_promise_a_hash_are_not_written(tmp_path):
    """The file could not be loaded again: its bytes do not have that sha256."""
    codec = make_codec(tiny_spec("mirrored"))
    with pytest.raises(CheckpointError, match="sha256"):
        export_codec(codec, tmp_path / "encodec_24khz-d7cc33bc.th", layout="encodec")
    with pytest.raises(ValueError, match="layout 'moshi' is not one of"):
        export_codec(codec, tmp_path / "x", layout="moshi")


def test_codecs_in_training_are_not_stored(tmp_path):
    """Their weights are split by weight norm; the error says how to fold them."""
    from tokenizer.convolution import apply_weight_norm

    codec = make_codec(tiny_spec("mirrored"))
    apply_weight_norm(codec)
    with pytest.raises(CheckpointError, match="fold"):
        export_codec(codec, tmp_path / "x.th", layout="encodec")
    with pytest.raises(CheckpointError, match="fold"):
        save_codec(codec, tmp_path / "x")
