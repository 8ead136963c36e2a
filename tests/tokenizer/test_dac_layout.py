"""DAC's checkpoints, descript's and those of transformers: read, written, and one codec through both."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import weight_norm

from tests.conftest import make_codec, tiny_spec
from tokenizer import CheckpointError, Codec, CodecSpec, dac_layout, export_codec, load_codec
from tokenizer.folded_weights import fold
from tokenizer.network_config import DacConfig
from tokenizer.presets import PRESETS

SETTINGS = {
    "encoder_dim": 4,
    "encoder_rates": [2, 4],
    "latent_dim": None,
    "decoder_dim": 16,
    "decoder_rates": [4, 2],
    "n_codebooks": 3,
    "codebook_size": 16,
    "codebook_dim": 4,
    "quantizer_dropout": 0.5,
    "sample_rate": 24000,
}
SMALL = {
    "encoder_hidden_size": 4,
    "downsampling_ratios": [2, 4],
    "decoder_hidden_size": 16,
    "n_codebooks": 3,
    "codebook_size": 16,
    "codebook_dim": 4,
    "sampling_rate": 24000,
}


class Snake(nn.Module):
    """The parameter of descript's activation."""

    def __init__(self, width):
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(1, width, 1))


class Block(nn.Module):
    """Layers named `block`, or otherwise."""

    def __init__(self, *layers, name="block"):
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))


class Level(nn.Module):
    """Projections and codebook of one level."""

    def __init__(self, latent_dim):
        super().__init__()
        self.in_proj, self.out_proj = conv(latent_dim, 4, 1), conv(4, latent_dim, 1)
        self.codebook = nn.Embedding(16, 4)


def conv(*sizes, kind=nn.Conv1d):
    """A convolution split by weight norm, with lengths that are not those it starts with."""
    layer = weight_norm(kind(*sizes))
    layer.weight_g.data.uniform_(0.5, 2.0)
    return layer


def unit(width):
    """A residual unit."""
    return Block(Snake(width), conv(width, width, 7), Snake(width), conv(width, width, 1))


def units(width):
    """One unit a dilation."""
    return [unit(width) for _ in range(3)]


def descript_model(latent_dim=16, seed=0):
    """The module tree of descript-audio-codec 1.0.0 for SETTINGS. The package itself wants half of an audio studio."""
    model = nn.Module()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.encoder = Block(
            conv(1, 4, 7),
            Block(*units(4), Snake(4), conv(4, 8, 4)),
            Block(*units(8), Snake(8), conv(8, 16, 8)),
            Snake(16),
            conv(16, latent_dim, 3),
        )
        model.quantizer = nn.Module()
        model.quantizer.quantizers = nn.ModuleList(Level(latent_dim) for _ in range(3))
        model.decoder = Block(
            conv(latent_dim, 16, 7),
            Block(Snake(16), conv(16, 8, 8, kind=nn.ConvTranspose1d), *units(8)),
            Block(Snake(8), conv(8, 4, 4, kind=nn.ConvTranspose1d), *units(4)),
            Snake(4),
            conv(4, 1, 7),
            name="model",
        )
    return model


def save_descript(path, model, **changes):
    """As `DAC.save(package=False)` writes it."""
    torch.save(
        {"state_dict": model.state_dict(), "metadata": {"kwargs": {**SETTINGS, **changes}, "tag": "0.0.1"}}, path
    )


def transformers_model(seed=0, **changes):
    """A tiny DacModel of `transformers` with random weights."""
    from transformers import DacConfig as TransformersDacConfig
    from transformers import DacModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DacModel(TransformersDacConfig(**{**SMALL, **changes})).eval()
        for parameter in model.parameters():
            parameter.data.normal_()
    return model


def assert_same_weights(model, other):
    """All tensors, weight norm folded."""
    ours, theirs = fold(model.state_dict()), fold(other.state_dict())
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("latent_dim", [16, 10])
def test_descript_files_go_both_ways(latent_dim, tmp_path):
    """A .pth is loaded, exported, and taken by the same modules again: strictly, and with the same weights."""
    reference = descript_model(latent_dim)
    save_descript(tmp_path / "weights.pth", reference, latent_dim=None if latent_dim == 16 else latent_dim)
    codec = load_codec(tmp_path / "weights.pth")
    assert (codec.name, codec.spec.latent_dim) == ("weights", latent_dim)
    assert codec.spec.network == DacConfig(encoder_width=4, decoder_width=16, strides=(2, 4), codebook_dim=4)
    export_codec(codec, tmp_path / "again.pth", layout="dac")
    written = torch.load(tmp_path / "again.pth", weights_only=True)
    assert written["metadata"]["kwargs"] == {**SETTINGS, "latent_dim": latent_dim, "quantizer_dropout": 0.0}
    again = descript_model(latent_dim, seed=7)
    again.load_state_dict(written["state_dict"], strict=True)
    assert_same_weights(reference, again)
    assert load_codec(tmp_path / "again.pth").sha256 == codec.sha256


@pytest.mark.parametrize("changes", [{}, {"hidden_size": 10}], ids=["usual width", "narrow latents"])
def test_transformers_directories_go_both_ways(changes, tmp_path):
    """A directory of `transformers` is loaded, exported, and taken by `from_pretrained` again, nothing missing."""
    from transformers import DacModel

    reference = transformers_model(**changes)
    reference.save_pretrained(tmp_path / "mine")
    codec = load_codec(tmp_path / "mine")
    assert (codec.name, codec.spec.num_codebooks) == ("mine", 3)
    export_codec(codec, tmp_path / "again", layout="transformers")
    again, report = DacModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    assert_same_weights(reference, again)
    assert load_codec(tmp_path / "again").sha256 == codec.sha256


def test_split_weights_of_transformers_are_read(tmp_path):
    """Saved in training, with weight norm applied, it is the same codec as without."""
    model = transformers_model()
    model.save_pretrained(tmp_path / "plain")
    model.apply_weight_norm()
    expected = load_codec(tmp_path / "plain")
    model.save_pretrained(tmp_path / "split")
    codec = load_codec(tmp_path / "split")
    assert codec.spec == expected.spec
    for key, value in codec.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key])


def test_both_layouts_hold_one_codec(tmp_path):
    """Descript's file, converted to transformers' layout, is the same codec by its sha256."""
    save_descript(tmp_path / "weights.pth", descript_model())
    codec = load_codec(tmp_path / "weights.pth")
    export_codec(codec, tmp_path / "mine", layout="transformers")
    assert load_codec(tmp_path / "mine").sha256 == codec.sha256


def test_default_configs_give_the_presets():
    """Every key that transformers writes is understood, and the released settings are our presets."""
    from transformers import DacConfig as TransformersDacConfig

    for name, changes in {
        "dac_16khz": {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12},
        "dac_24khz": {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24000},
        "dac_44khz": {"sampling_rate": 44100},
    }.items():
        config = json.loads(TransformersDacConfig(**changes).to_json_string(use_diff=False))
        assert dac_layout.spec_from_config(config) == PRESETS[name]
        metadata = dac_layout.metadata_from_spec(PRESETS[name])
        assert dac_layout.spec_from_metadata(metadata) == PRESETS[name]


@st.composite
def dac_specs(draw):
    """Small DACs of all kinds."""
    strides = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    network = DacConfig(
        encoder_width=draw(st.integers(1, 4)),
        decoder_width=2 ** len(strides) * draw(st.integers(1, 3)),
        strides=strides,
        codebook_dim=draw(st.integers(1, 4)),
    )
    return CodecSpec(
        family="dac",
        sample_rate=draw(st.sampled_from([16000, 24000, 44100])),
        hop_length=math.prod(strides),
        num_codebooks=draw(st.integers(1, 4)),
        codebook_size=draw(st.sampled_from([2, 16])),
        latent_dim=draw(st.integers(1, 6)),
        network=network,
    )


@pytest.mark.parametrize(("layout", "name"), [("dac", "any.pth"), ("transformers", "any")])
@given(spec=dac_specs())
@settings(max_examples=20, deadline=None)
def test_any_dac_survives(layout, name, spec, tmp_path_factory):
    """Spec, weights and identity come back, whatever the network's settings."""
    codec, path = Codec(spec, name="any"), tmp_path_factory.mktemp("any") / name
    codec.quantizer.set_codebooks(torch.randn_like(codec.quantizer.codebooks))
    export_codec(codec, path, layout=layout)
    assert load_codec(path).sha256 == codec.sha256


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decoder_rates": [2, 4]}, "decoder_rates"),
        ({"codebook_dim": [4, 8, 4]}, "codebook_dim differs between levels"),
        ({"codebook_dim": "4"}, "codebook_dim"),
        ({"n_codebooks": 4}, "missing .*quantizers.3"),
        ({"n_codebooks": 2}, "not of this codec .*quantizers.2"),
        ({"n_codebooks": 2**24}, "missing"),
        ({"encoder_dim": 8}, "is .*, not"),
        ({"encoder_dim": 2**24, "encoder_rates": [2] * 16, "decoder_rates": [2] * 16}, "weights.pth"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"encoder_rates": []}, "strides"),
        ({"encoder_dim": None}, "encoder_dim must be a whole number"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(changes, reason, tmp_path):
    """Metadata that contradict the weights, or our networks."""
    save_descript(tmp_path / "weights.pth", descript_model(), **changes)
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path / "weights.pth")


@pytest.mark.parametrize("sizes", [[4, 4, 4], 4], ids=str)
def test_one_codebook_size_may_be_listed_by_level(sizes, tmp_path):
    """Descript's settings allow a list; equal entries are one number. Settings that it does not know it drops."""
    save_descript(tmp_path / "weights.pth", descript_model(), codebook_dim=sizes, from_another_version=1)
    assert load_codec(tmp_path / "weights.pth").spec.network.codebook_dim == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"colour": "red"}, "unknown settings.*colour"),
        ({"upsampling_ratios": [2, 4]}, "upsampling_ratios"),
        ({"hop_length": 9}, "hop_length = 9"),
        ({"encoder_hidden_size": 2**24, "downsampling_ratios": [2] * 16}, "config.json"),
        ({"downsampling_ratios": [2] * 10**5}, "strides"),
        ({"codebook_dim": None}, "codebook_dim"),
    ],
    ids=str,
)
def test_configs_that_we_cannot_honour_are_refused(changes, reason, tmp_path):
    """By name, before any weight is read."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dac", **SMALL, **changes}))
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path)


@pytest.mark.parametrize("metadata", [None, {}, {"kwargs": None}, [1]], ids=str)
def test_files_without_settings_are_refused(metadata, tmp_path):
    """The strides cannot all be told from shapes: nothing is guessed."""
    torch.save({"state_dict": descript_model().state_dict(), "metadata": metadata}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="metadata without kwargs"):
        load_codec(tmp_path / "weights.pth")


def test_stereo_is_refused(tmp_path):
    """Neither library has DAC with two channels."""
    codec = make_codec(dataclasses.replace(tiny_spec("dac"), channels=2))
    for layout in ("dac", "transformers"):
        with pytest.raises(CheckpointError, match="channels 2 would become 1"):
            export_codec(codec, tmp_path / "x", layout=layout)
    with pytest.raises(CheckpointError, match="no EnCodec"):
        export_codec(codec, tmp_path / "x", layout="encodec")
