"""One training step of a codec."""

import pytest
import torch

from tests.conftest import tiny_spec
from tokenizer.losses import MelLoss, time_loss
from tokenizer.training import Objective, QuantizerTraining, TrainableCodec

OBJECTIVE = Objective(mel_windows=(64, 256), mel_bins=16)


@pytest.fixture(params=["seanet", "patch"])
def trainable(request):
    """A tiny codec in training form that has seen a few batches, so that its codebooks are fitted."""
    torch.manual_seed(0)
    made = TrainableCodec(tiny_spec(request.param), QuantizerTraining(), OBJECTIVE).train()
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    for _ in range(5):
        made(0.1 * torch.randn(4, 1, 800)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return made


def test_every_weight_learns(trainable):
    """The loss reaches both networks through the quantizer."""
    trainable(0.1 * torch.randn(4, 1, 800)).loss.backward()
    for name, parameter in trainable.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    for part in ("encoder", "decoder"):
        assert max(float(p.grad.abs().max()) for p in getattr(trainable, part).parameters()) > 0


def test_the_exported_codec_gives_the_codes_of_training(trainable):
    """Weight norm folded, codebooks in one table, weights unchanged: the same nearest entries, the same sound."""
    codec = trainable.to_codec("exported")
    waveform = 0.1 * torch.randn(2, 1, 800)
    trainable.eval()
    with torch.inference_mode():
        latents = trainable.encoder(waveform).transpose(1, 2)
        quantized, codes, _ = trainable.quantizer(latents)
        decoded = trainable.decoder(quantized.transpose(1, 2))
    encoded = codec.encode(waveform)
    torch.testing.assert_close(encoded.codes, codes.transpose(1, 2))
    torch.testing.assert_close(codec.decode(encoded), decoded, atol=1e-5, rtol=1e-4)


def test_levels_are_dropped_in_training(trainable):
    """One model serves every bandwidth because each batch stops at a random level: the rest is marked -1."""
    counts = set()
    for seed in range(12):
        torch.manual_seed(seed)
        codes = trainable(0.1 * torch.randn(2, 1, 400)).codes
        counts.add(int((codes[0, :, 0] >= 0).sum()))
    assert counts == {2, 4}


def test_a_loss_that_is_not_finite_is_named(trainable):
    """Training stops with the culprit instead of with weights that are NaN."""
    with torch.no_grad():
        next(trainable.decoder.parameters()).fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"the (time|mel) loss"):
        trainable(0.1 * torch.randn(1, 1, 400))


def test_the_time_loss_is_the_mean_absolute_difference():
    """Written out."""
    assert time_loss(torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[0.5, 1.0]]])) == 1.25


def test_the_mel_loss_follows_its_formula():
    """One scale, against the transforms of torchaudio put together by hand."""
    from tokenizer.torchaudio_import import import_torchaudio

    torch.manual_seed(0)
    reference, decoded = 0.1 * torch.randn(2, 2, 1, 4000)
    transform = import_torchaudio().transforms.MelSpectrogram(
        24000, n_fft=512, hop_length=128, n_mels=64, power=1.0, f_max=12000.0
    )
    a, b = transform(reference[:, 0]), transform(decoded[:, 0])
    expected = ((a + 1e-5).log10() - (b + 1e-5).log10()).abs().mean() + 0.3 * (a - b).abs().mean() / (a.mean() + 1e-3)
    torch.testing.assert_close(MelLoss(24000, (512,))(reference, decoded), expected, rtol=1e-4, atol=1e-6)


def test_the_mel_loss_of_silence_has_a_gradient():
    """Digital silence is common at clip ends, and |z| has no gradient at 0."""
    silence = torch.zeros(1, 1, 2000, requires_grad=True)
    MelLoss(24000, (128,))(torch.zeros(1, 1, 2000), silence).backward()
    assert bool(silence.grad.isfinite().all())


def test_families_without_a_training_form_are_refused():
    """The error names those that have one."""
    with pytest.raises(ValueError, match="'dac' cannot be trained here, only seanet and patch"):
        TrainableCodec(tiny_spec("dac"), QuantizerTraining(), OBJECTIVE)
