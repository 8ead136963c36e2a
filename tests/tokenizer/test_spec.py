"""Constants of a codec: integers in, rates out."""

from fractions import Fraction

import pytest

from tests.conftest import tiny_spec
from tokenizer import CodecSpec
from tokenizer.network_config import PatchConfig, SeanetConfig
from tokenizer.spec import SegmentConfig


def speech_spec(**changes):
    """24 kHz, 75 frames a second, 16 codebooks of 1024."""
    settings = {"family": "seanet", "sample_rate": 24000, "hop_length": 320, "num_codebooks": 16}
    return CodecSpec(**{**settings, "codebook_size": 1024, "network": SeanetConfig(), **changes})


def test_rates_are_derived():
    """75 frames of 10 bits a second and level; bandwidths are EnCodec's."""
    spec = speech_spec()
    assert spec.frame_rate == 75
    assert spec.level_kbps == 0.75
    assert spec.bandwidth_kbps == 12.0
    assert spec.bandwidths_kbps == (1.5, 3.0, 6.0, 12.0)


def test_frame_rates_need_not_be_whole():
    """16 kHz over 320 x 4 samples is 12.5 frames a second, exactly."""
    spec = speech_spec(sample_rate=16000, hop_length=1280, network=SeanetConfig(strides=(4, 4, 8, 10)))
    assert spec.frame_rate == Fraction(25, 2)


def test_any_whole_number_of_levels_is_a_bandwidth():
    """Between the customary ones too; anything else is refused with what exists."""
    spec = speech_spec()
    assert [spec.num_codebooks_at(kbps) for kbps in (0.75, 1.5, 2.25, 12.0, None)] == [1, 2, 3, 16, 16]
    for kbps in (0, 1.0, 13.0, -1.5):
        with pytest.raises(ValueError, match=r"choose 1\.5, 3, 6, 12"):
            spec.num_codebooks_at(kbps)


def test_partial_frames_count():
    """Every sample lies in a frame."""
    assert [speech_spec().num_frames(n) for n in (0, 1, 320, 321)] == [0, 1, 1, 2]


@pytest.mark.parametrize("family", ["seanet", "mirrored", "segmented", "patch", "dac"])
def test_specs_survive_json(family):
    """to_dict and from_dict are inverse."""
    import json

    spec = tiny_spec(family)
    assert CodecSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"family": "wavenet"}, "wavenet"),
        ({"codebook_size": 1000}, "power of two"),
        ({"hop_length": 160}, "strides multiply"),
        ({"num_codebooks": 0}, "num_codebooks"),
        ({"network": PatchConfig()}, "do not fit"),
        ({"sample_rate": 2**30}, "sample_rate"),
        ({"segment": SegmentConfig(length=320, stride=300)}, "not causal"),
        ({"network": SeanetConfig(causal=False, norm="time_group_norm")}, "needs segments"),
    ],
    ids=str,
)
def test_impossible_specs_are_refused(change, reason):
    """At construction, with the reason."""
    with pytest.raises(ValueError, match=reason):
        speech_spec(**change)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"norm": "time_group_norm"}, "causal = False"),
        ({"norm": "batch_norm"}, "batch_norm"),
        ({"pad_mode": "circular"}, "circular"),
        ({"strides": (2, 0)}, "strides"),
        ({"num_filters": 2**40}, "num_filters"),
        ({"num_lstm_layers": -1}, "num_lstm_layers"),
    ],
    ids=str,
)
def test_impossible_networks_are_refused(settings, reason):
    """Before anything of an absurd size is allocated."""
    with pytest.raises(ValueError, match=reason):
        SeanetConfig(**settings)


def test_segments_leave_no_gaps():
    """Every sample lies in a segment, and every segment starts inside the file."""
    with pytest.raises(ValueError, match="gaps"):
        SegmentConfig(length=100, stride=101)
    spec = tiny_spec("segmented")
    assert [spec.num_segments(n) for n in (1, 152, 153, 160, 305)] == [1, 1, 2, 2, 3]
    assert [spec.num_frames(n) for n in (1, 152, 153, 160, 305)] == [1, 19, 21, 21, 41]


def test_the_identity_of_older_codecs_stays():
    """A setting that came later is left out where it is not used: hashes of stored codecs do not change."""
    assert "segment" not in speech_spec().to_dict()
    assert "segment" in tiny_spec("segmented").to_dict()


def test_unknown_keys_are_refused():
    """A misspelt setting must not be ignored."""
    plain = speech_spec().to_dict()
    plain["num_codebook"] = 8
    with pytest.raises(ValueError, match="num_codebook"):
        CodecSpec.from_dict(plain)
    plain = speech_spec().to_dict()
    plain["network"]["filters"] = 8
    with pytest.raises(ValueError, match="filters"):
        CodecSpec.from_dict(plain)
