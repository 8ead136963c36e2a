"""A codec in training form."""

import pytest
import torch

from tests.conftest import make_codec, tiny_spec
from tokenizer.quantizer_training import QuantizerTraining
from tokenizer.trainable_codec import TrainableCodec

KINDS = ["seanet", "mirrored", "segmented", "patch", "dac"]


def waveform(spec, batch_size=4, num_samples=800):
    """Noise for a codec, whole frames of it."""
    return 0.1 * torch.randn(batch_size, spec.channels, num_samples)


@pytest.fixture(params=KINDS)
def trainable(request):
    """One of each kind that has seen a few batches, so that its codebooks are fitted."""
    torch.manual_seed(0)
    spec = tiny_spec(request.param)
    made = TrainableCodec(spec, QuantizerTraining()).train()
    for _ in range(3):
        made(waveform(spec))
    return made


def test_every_weight_learns(trainable):
    """A loss on the output and the commitment reach all of encoder, quantizer and decoder."""
    result = trainable(waveform(trainable.spec))
    assert result.decoded.shape == (4, trainable.spec.channels, 800)
    (result.decoded.square().mean() + result.commitment).backward()
    for name, parameter in trainable.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    for part in ("encoder", "decoder"):
        assert max(float(p.grad.abs().max()) for p in getattr(trainable, part).parameters()) > 0


def test_the_exported_codec_gives_the_codes_of_training(trainable):
    """Weight norm folded, codebooks in one table, weights unchanged: the same nearest entries, the same sound."""
    codec, spec = trainable.to_codec("exported"), trainable.spec
    samples = 800 if spec.segment is None else spec.segment.length
    heard = waveform(spec, 2, samples)
    trainable.eval()
    with torch.inference_mode():
        expected = trainable(heard)
    encoded = codec.encode(heard)
    if spec.segment is not None:  # a second, shorter segment begins inside the first
        encoded = type(encoded)(encoded.codes[..., : samples // spec.hop_length], encoded.scales, samples)
    torch.testing.assert_close(encoded.codes, expected.codes)
    if spec.segment is None:
        torch.testing.assert_close(codec.decode(encoded), expected.decoded, atol=1e-5, rtol=1e-4)


def test_training_goes_on_from_a_codec(trainable):
    """Exported and taken up again: the same sound before anything new is learned."""
    spec = trainable.spec
    again = TrainableCodec(spec, QuantizerTraining(), start=trainable.to_codec("start")).eval()
    trainable.eval()
    heard = waveform(spec)
    with torch.inference_mode():
        ours, theirs = again(heard), trainable(heard)
    torch.testing.assert_close(ours.codes, theirs.codes)
    torch.testing.assert_close(ours.decoded, theirs.decoded, atol=1e-5, rtol=1e-4)


def test_fewer_levels_give_the_first_codes(trainable):
    """One model serves every bandwidth: levels do not depend on those that come after them."""
    trainable.eval()
    heard = waveform(trainable.spec)
    with torch.inference_mode():
        assert torch.equal(trainable(heard, 2).codes, trainable(heard).codes[:, :2])


def test_loudness_does_not_change_the_codes_of_normalised_segments():
    """The 48 kHz codec divides by it, and multiplies again."""
    torch.manual_seed(0)
    trainable = TrainableCodec(tiny_spec("segmented"), QuantizerTraining())
    heard = waveform(trainable.spec)
    trainable(heard)
    trainable.eval()
    with torch.inference_mode():
        loud, quiet = trainable(heard), trainable(0.25 * heard)
    assert torch.equal(loud.codes, quiet.codes)
    torch.testing.assert_close(quiet.decoded, 0.25 * loud.decoded, atol=1e-6, rtol=1e-4)


def test_another_spec_is_refused():
    """Half of the weights would have no place."""
    with pytest.raises(ValueError, match="another spec"):
        TrainableCodec(tiny_spec("patch"), QuantizerTraining(), start=make_codec(tiny_spec("seanet")))


def test_reduced_precision_leaves_the_quantizer_alone(trainable):
    """The networks in bfloat16, codebooks and output in float32."""
    result = trainable(waveform(trainable.spec), autocast=torch.bfloat16)
    assert result.decoded.dtype == torch.float32
    assert all(level._codebook.embed.dtype == torch.float32 for level in trainable.quantizer.levels)
