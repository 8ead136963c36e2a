"""EnCodec's networks: however a stream is cut into hops, the result is that of the whole file."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_spec
from tests.tokenizer.streaming import CUTS, noise, seeded, stream
from tokenizer.convolution import apply_weight_norm, fold_weight_norm
from tokenizer.network_config import SeanetConfig
from tokenizer.seanet import SeanetDecoder, SeanetEncoder, SkipLstm
from tokenizer.spec import CodecSpec


def spec_with(*, channels: int = 1, **settings) -> CodecSpec:
    """The tiny codec with other network settings."""
    network = dataclasses.replace(tiny_spec("seanet").network, **settings)
    return dataclasses.replace(tiny_spec("seanet"), network=network, channels=channels)


@pytest.fixture(scope="module", params=["plain", "deep", "stereo without lstm", "mirrored"])
def spec(request):
    """Several residual units of growing dilation, several LSTM layers or none, two channels, a mirrored start."""
    if request.param == "deep":
        return spec_with(num_residual_layers=3, num_lstm_layers=2, compress=4)
    if request.param == "mirrored":
        return spec_with(num_residual_layers=2, pad_mode="reflect")
    return spec_with() if request.param == "plain" else spec_with(num_lstm_layers=0, channels=2)


@given(cuts=CUTS, hops=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_encoding_streams(spec, cuts, hops):
    """Any chunks of whole hops, empty ones included, give the latents of the whole file."""
    encoder, waveform = seeded(SeanetEncoder, spec), noise(2, spec.channels, 8 * hops)
    whole = encoder(waveform)
    assert whole.shape == (2, spec.latent_dim, hops)
    torch.testing.assert_close(stream(encoder, waveform, cuts, 8), whole, atol=1e-5, rtol=0)


@given(cuts=CUTS, frames=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_decoding_streams(spec, cuts, frames):
    """Any chunks of frames, empty ones included, give the waveform of the whole file."""
    decoder, latents = seeded(SeanetDecoder, spec), noise(2, spec.latent_dim, frames)
    whole = decoder(latents)
    assert whole.shape == (2, spec.channels, 8 * frames)
    torch.testing.assert_close(stream(decoder, latents, cuts), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 100])
def test_whole_files_of_any_length_are_encoded(pad_mode, num_samples):
    """ceil(S / hop_length) frames, and as many whole hops back."""
    spec = spec_with(pad_mode=pad_mode)
    latents = seeded(SeanetEncoder, spec)(noise(1, 1, num_samples))
    assert latents.shape == (1, spec.latent_dim, -(-num_samples // 8))
    assert seeded(SeanetDecoder, spec)(latents).shape == (1, 1, 8 * latents.shape[-1])


def test_frames_know_nothing_of_later_samples():
    """Causal: a change in hop 10 leaves the ten frames before it as they were, and the ten hops of the decoder."""
    spec = spec_with(num_residual_layers=2)
    encoder, decoder = seeded(SeanetEncoder, spec), seeded(SeanetDecoder, spec)
    waveform = noise(1, 1, 160)
    changed = torch.cat([waveform[..., :80], -waveform[..., 80:]], dim=-1)
    before, after = encoder(waveform), encoder(changed)
    torch.testing.assert_close(before[..., :10], after[..., :10], atol=1e-6, rtol=0)
    assert not torch.allclose(before[..., 10], after[..., 10])
    first, second = decoder(before), decoder(after)
    torch.testing.assert_close(first[..., :80], second[..., :80], atol=1e-6, rtol=0)


def test_streams_in_one_batch_do_not_touch():
    """Stacking states is batching streams: row by row, each is as it is alone."""
    spec = spec_with()
    encoder, waveform = seeded(SeanetEncoder, spec), noise(3, 1, 64)
    both = stream(encoder, waveform, [2, 3], 8)
    for row in range(3):
        alone = stream(encoder, waveform[row : row + 1], [2, 3], 8)
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=0)


def test_every_tensor_of_a_state_has_the_batch_first():
    """So that states of several streams can be stacked without knowing the network."""
    spec = spec_with(num_lstm_layers=2)

    def tensors(state):
        return [state] if isinstance(state, torch.Tensor) else [leaf for part in state for leaf in tensors(part)]

    for kind in (SeanetEncoder, SeanetDecoder):
        fresh = seeded(kind, spec).initial_state(5)
        assert tensors(fresh)
        assert {tensor.shape[0] for tensor in tensors(fresh)} == {5}


def test_parameters_are_named_as_in_encodecs_checkpoints():
    """Positions in `model` are EnCodec's, with the doubled `conv.conv` taken out: adapters only rename."""
    spec = dataclasses.replace(tiny_spec("seanet"), hop_length=320, network=SeanetConfig(num_filters=2))
    encoder, decoder = set(seeded(SeanetEncoder, spec).state_dict()), set(seeded(SeanetDecoder, spec).state_dict())
    assert {"model.0.conv.weight", "model.1.block.1.conv.weight", "model.1.shortcut.conv.bias"} <= encoder
    assert {"model.3.conv.weight", "model.13.lstm.weight_hh_l1", "model.15.conv.bias"} <= encoder
    assert {"model.1.lstm.bias_ih_l0", "model.3.convtr.weight", "model.4.block.3.conv.bias"} <= decoder
    assert {"model.12.convtr.bias", "model.15.conv.weight"} <= decoder


@pytest.mark.parametrize("kind", [SeanetEncoder, SeanetDecoder])
def test_weight_norm_keeps_the_output(kind):
    """Training splits the weights, inference folds them: the network computes the same."""
    spec = spec_with()
    network = seeded(kind, spec)
    x = noise(1, 1, 80) if kind is SeanetEncoder else noise(1, spec.latent_dim, 10)
    expected, names = network(x), set(network.state_dict())
    apply_weight_norm(network)
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=0)
    fold_weight_norm(network)
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=0)


def test_an_empty_chunk_leaves_the_lstm_as_it_was():
    """An LSTM of torch refuses sequences of length zero; a stream may well deliver one."""
    layer = SkipLstm(3, 2).eval()
    _, state = layer.step(noise(2, 3, 4), layer.initial_state(2))
    y, after = layer.step(noise(2, 3, 0), state)
    assert y.shape == (2, 3, 0)
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def test_settings_of_another_family_are_refused():
    """A programming mistake: TypeError."""
    with pytest.raises(TypeError, match="seanet settings, not PatchConfig"):
        SeanetEncoder(tiny_spec("patch"))
