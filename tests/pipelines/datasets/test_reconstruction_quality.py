"""Reconstruction quality: what the job measures is what decoding later would give, whatever the batch."""

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.datasets.reconstruction_quality import Quality, measure_quality
from tests.conftest import make_codec, speech_like, tiny_spec
from tokenizer import CodesError, load_codec
from tokenizer.metrics import mel_distance, si_snr

KINDS = ["seanet", "mirrored", "patch", "dac", "segmented"]


def waveforms_of(codec, lengths):
    speech = torch.from_numpy(speech_like(1.0))
    return [speech[1000 : 1000 + length].expand(codec.spec.channels, -1).clone() for length in lengths]


@pytest.fixture(scope="module", params=KINDS)
def codec(request):
    """Every family, those included that cannot share a pass, as the job computes: batches move no bit."""
    return make_codec(tiny_spec(request.param)).with_precision("exact")


def test_quality_is_that_of_decoding_each_alone(codec):
    """However different in length the members of a batch are, each gets the numbers of its own `decode`."""
    waveforms = waveforms_of(codec, [4000, 1500, 9, 2049, 4000, 1])
    measured = measure_quality(codec, waveforms, codec.encode_batch(waveforms, bandwidth_kbps=24))
    for waveform, quality in zip(waveforms[:2] + waveforms[3:5], measured[:2] + measured[3:5], strict=True):
        decoded = codec.decode(codec.encode(waveform, bandwidth_kbps=24))[0].mean(dim=0)
        expected = si_snr(waveform[0], decoded, 24000), mel_distance(waveform[0], decoded, 24000)
        assert (quality.si_snr_db, quality.mel_distance) == pytest.approx(expected, abs=1e-3)


def test_what_has_no_answer_is_none(codec):
    """Silence and DC have neither number, and a few samples no mel distance: never NaN, never infinite."""
    silence, constant = torch.zeros(codec.spec.channels, 3000), torch.full((codec.spec.channels, 3000), 0.25)
    waveforms = [silence, constant, *waveforms_of(codec, [1, 500, 1023, 1024])]
    measured = measure_quality(codec, waveforms, codec.encode_batch(waveforms))
    assert measured[:3] == [Quality(None, None)] * 3
    assert [quality.mel_distance is None for quality in measured[3:]] == [True, True, False]
    numbers = [value for quality in measured for value in dataclasses.astuple(quality) if value is not None]
    assert np.isfinite(numbers).all()


def test_more_levels_are_nearer():
    """With a codec that has learnt, the numbers mean what they say: at 12 kbps nearer than at 1.5, on both scales."""
    codec = load_codec("speech_24khz")
    waveforms = waveforms_of(codec, [12000, 20000])
    low, high = (
        measure_quality(codec, waveforms, codec.encode_batch(waveforms, bandwidth_kbps=kbps)) for kbps in (1.5, 12)
    )
    for coarse, fine in zip(low, high, strict=True):
        assert fine.si_snr_db > coarse.si_snr_db + 2
        assert fine.mel_distance < coarse.mel_distance


def test_what_was_decoded_before_is_measured_as_itself():
    """Compared with its own decoding, sound is as near as the metrics can say."""
    codec = make_codec(tiny_spec("patch"))
    encoded = codec.encode_batch(waveforms_of(codec, [12000]))
    (quality,) = measure_quality(codec, [codec.decode(encoded[0])[0]], encoded)
    assert quality == Quality(100.0, 0.0)


def test_decoded_values_that_are_not_finite_are_no_score():
    """A decoder that overflows, as in half precision, gives None instead of ending the job."""
    codec = make_codec(tiny_spec("patch"))
    waveforms = waveforms_of(codec, [2000, 3000])
    encoded = codec.encode_batch(waveforms)
    with torch.no_grad():
        codec.decoder.head.bias.fill_(float("nan"))
    assert measure_quality(codec, waveforms, encoded) == [Quality(None, None)] * 2


def test_codes_of_another_codec_are_refused():
    """Entries that the codec does not have are an error, as in `Codec.decode`."""
    codec = make_codec(tiny_spec("patch"))
    waveforms = waveforms_of(codec, [2000])
    encoded = [dataclasses.replace(item, codes=item.codes + 16) for item in codec.encode_batch(waveforms)]
    with pytest.raises(CodesError):
        measure_quality(codec, waveforms, encoded)


def test_nothing_to_measure_is_fine(codec):
    """An empty batch has no qualities."""
    assert measure_quality(codec, [], []) == []
