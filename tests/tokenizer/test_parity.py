"""Same weights, same codes as the reference implementations, and the same sound from the same codes."""

from pathlib import Path

import pytest
import torch

from tests.tokenizer.reference_models import (
    compare_codes,
    fitted_codebooks,
    import_encodec,
    randomize,
    speech,
)
from tokenizer import Encoded, load_codec
from tokenizer.presets import PRESETS

ROOT = Path(__file__).parents[2]
SOME, MINUTE = 15.37, 60.37  # seconds: not a whole number of frames, nor of segments
DAC_RATES = ["dac_16khz", "dac_24khz", "dac_44khz"]
LENGTHS = [SOME, pytest.param(MINUTE, marks=pytest.mark.slow)]
OTHER_SECONDS = 20  # of speech after that, to which the codebooks are fitted


def assert_same_codes(codec, waveform, expected, actual, report):
    """Identical but for near-ties, which are counted and shown."""
    whole = waveform.shape[-1] // codec.spec.hop_length if codec.spec.segment is None else expected.shape[-1]
    assert expected.shape == actual.shape
    assert min(len(level.unique()) for level in expected) > 50, "the test says nothing about degenerate codes"
    differing, ties = compare_codes(codec, waveform, expected[:, :whole], actual[:, :whole])
    report(f"{differing} of {whole} frames x {len(expected)} levels differ, {ties} of them at a near-tie")
    assert differing == ties <= max(1, expected.numel() // 20_000)


@pytest.fixture
def report(record_property, request):
    """Shows a line with -s, and keeps it in the test's record."""

    def show(line):
        record_property("parity", line)
        print(f"\n{request.node.name}: {line}")

    return show


def two_speeches(sample_rate, channels=1):
    """A minute of speech to compare on, or the beginning of it, and some more to fit codebooks to."""
    both = speech(ROOT, MINUTE + OTHER_SECONDS, sample_rate, channels)
    split = both.shape[-1] - OTHER_SECONDS * sample_rate
    return both[:, :split], both[:, split:]


@pytest.fixture(scope="module", params=["encodec_24khz", "encodec_48khz"])
def encodec_pair(request, tmp_path_factory):
    """The `encodec` package's model, ours from its state dict, and a minute of speech."""
    name = request.param
    encodec = import_encodec()
    build = getattr(encodec.EncodecModel, name.replace("encodec_", "encodec_model_"))
    reference = randomize(build(pretrained=False))
    spec = PRESETS[name]
    waveform, other = two_speeches(spec.sample_rate, spec.channels)
    set_encodec_codebooks(reference, [layer._codebook for layer in reference.quantizer.vq.layers], other, spec)
    path = tmp_path_factory.mktemp("encodec") / f"{name}.th"
    torch.save(reference.state_dict(), path)
    return reference, load_codec(path), waveform


@torch.no_grad()
def set_encodec_codebooks(model, tables, waveform, spec):
    """Fit the codebooks of a reference to what its encoder makes of the speech."""
    if spec.segment is None:
        latents = model.encoder(waveform[None])
    else:
        segments = waveform.unflatten(1, (-1, spec.segment.length)).transpose(0, 1)
        loudness = segments.mean(dim=1).square().mean(dim=-1).sqrt() + 1e-8
        latents = model.encoder(segments / loudness[:, None, None])
    codebooks = fitted_codebooks(latents.transpose(1, 2).flatten(0, 1), len(tables), spec.codebook_size)
    for table, codebook in zip(tables, codebooks, strict=True):
        table.embed.copy_(codebook)
        table.inited.fill_(1)


@pytest.mark.parametrize("seconds", LENGTHS)
@torch.no_grad()
def test_encodec_codes_are_those_of_the_encodec_package(encodec_pair, seconds, report):
    """Speech, every level; and every bandwidth on some of it."""
    reference, codec, waveform = encodec_pair
    waveform = waveform[:, : int(seconds * codec.spec.sample_rate)]
    for kbps in reversed(reference.target_bandwidths):
        part = waveform if kbps == reference.target_bandwidths[-1] else waveform[:, : 5 * codec.spec.sample_rate + 77]
        reference.set_target_bandwidth(kbps)
        frames = reference.encode(part[None])
        encoded = codec.encode(part, bandwidth_kbps=kbps)
        assert_same_codes(codec, part, torch.cat([codes for codes, _ in frames], dim=-1)[0], encoded.codes[0], report)
        if encoded.scales is not None:
            torch.testing.assert_close(encoded.scales, torch.cat([scale for _, scale in frames], dim=1))
        same = Encoded(torch.cat([codes for codes, _ in frames], dim=-1), encoded.scales, part.shape[-1])
        torch.testing.assert_close(
            codec.decode(same), reference.decode(frames)[..., : part.shape[-1]], atol=1e-4, rtol=0
        )


@pytest.fixture(scope="module", params=["encodec_24khz", "encodec_48khz"])
def transformers_pair(request, tmp_path_factory):
    """transformers' EncodecModel, ours from its directory, and a minute of speech."""
    transformers = pytest.importorskip("transformers")
    spec = PRESETS[request.param]
    settings = {"use_causal_conv": True, "norm_type": "weight_norm", "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0]}
    if spec.segment is not None:
        settings = {
            "use_causal_conv": False,
            "norm_type": "time_group_norm",
            "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
            "normalize": True,
            "chunk_length_s": 1.0,
            "overlap": 0.01,
        }
    config = transformers.EncodecConfig(sampling_rate=spec.sample_rate, audio_channels=spec.channels, **settings)
    reference = randomize(transformers.EncodecModel(config))
    waveform, other = two_speeches(spec.sample_rate, spec.channels)
    set_encodec_codebooks(reference, [layer.codebook for layer in reference.quantizer.layers], other, spec)
    directory = tmp_path_factory.mktemp("transformers") / request.param
    reference.save_pretrained(directory)
    return reference, load_codec(directory), waveform


@pytest.mark.parametrize("seconds", LENGTHS)
@torch.no_grad()
def test_encodec_codes_are_those_of_transformers(transformers_pair, seconds, report):
    """Speech, every level; and every bandwidth on some of it."""
    reference, codec, waveform = transformers_pair
    waveform = waveform[:, : int(seconds * codec.spec.sample_rate)]
    for kbps in reversed(reference.config.target_bandwidths):
        most = kbps == reference.config.target_bandwidths[-1]
        part = waveform if most else waveform[:, : 5 * codec.spec.sample_rate + 77]
        output = reference.encode(part[None], bandwidth=kbps)
        frames = output.audio_codes[:, 0].transpose(0, 1).flatten(1)  # [K, segments * T]
        frames = frames[:, : frames.shape[1] - output.last_frame_pad_length]
        encoded = codec.encode(part, bandwidth_kbps=kbps)
        assert_same_codes(codec, part, frames, encoded.codes[0], report)
        padding = output.last_frame_pad_length
        expected = reference.decode(output.audio_codes, output.audio_scales, last_frame_pad_length=padding)[0]
        same = Encoded(frames[None], encoded.scales, part.shape[-1])
        torch.testing.assert_close(codec.decode(same), expected[..., : part.shape[-1]], atol=1e-4, rtol=0)


def dac_config(name, width):
    """transformers' settings of a DAC preset, `width` times narrower than released."""
    transformers = pytest.importorskip("transformers")
    spec = PRESETS[name]
    return transformers.DacConfig(
        encoder_hidden_size=spec.network.encoder_width // width,
        decoder_hidden_size=spec.network.decoder_width // width,
        downsampling_ratios=list(spec.network.strides),
        n_codebooks=spec.num_codebooks,
        codebook_size=spec.codebook_size,
        codebook_dim=spec.network.codebook_dim,
        sampling_rate=spec.sample_rate,
    )


@torch.no_grad()
def fit_dac(reference, waveform):
    """Fit the small codebooks to the projections of the residuals, level by level."""
    residual = reference.encoder(waveform)
    for level in reference.quantizer.quantizers:
        level.in_proj.weight.normal_(std=residual.shape[1] ** -0.5)
        level.out_proj.weight.normal_(std=0.3 * level.codebook_dim**-0.5)
        points = level.in_proj(residual).transpose(1, 2).flatten(0, 1)
        level.codebook.weight.copy_(fitted_codebooks(points, 1, len(level.codebook.weight))[0])
        residual = residual - level(residual)[0]
    heard = []
    hook = reference.decoder.conv2.register_forward_hook(lambda _module, _input, output: heard.append(output.std()))
    reference.decoder(reference.encoder(waveform))
    hook.remove()
    reference.decoder.conv2.weight.mul_(0.1 / heard[0])  # or tanh saturates, and amplifies rounding
    reference.decoder.conv2.bias.zero_()


@pytest.mark.parametrize(
    ("name", "width", "seconds"),
    [
        *[(name, 8, SOME) for name in DAC_RATES],
        *[pytest.param(name, 8, MINUTE, marks=pytest.mark.slow) for name in DAC_RATES],
        ("dac_24khz", 1, 3.1),  # as wide as released
    ],
)
@torch.no_grad()
def test_dac_codes_are_those_of_transformers(name, width, seconds, tmp_path, report):
    """Every rate of the released models; narrow ones on more speech, one at full size on some seconds."""
    transformers = pytest.importorskip("transformers")
    reference = randomize(transformers.DacModel(dac_config(name, width)))
    rate, hop = reference.config.sampling_rate, reference.config.hop_length
    waveform, other = two_speeches(rate)
    waveform = waveform[:, : int(seconds * rate) // hop * hop]  # their encoder takes whole frames
    fit_dac(reference, other[None, :, : int(min(10, seconds) * rate) // hop * hop])
    reference.save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    expected = reference.encode(waveform[None]).audio_codes
    encoded = codec.encode(waveform)
    assert_same_codes(codec, waveform, expected[0], encoded.codes[0], report)
    decoded = reference.decode(audio_codes=expected).audio_values
    same = codec.decode(Encoded(expected, None, waveform.shape[-1]))[0]
    torch.testing.assert_close(same[:, : decoded.shape[-1]], decoded, atol=1e-4, rtol=0)


@torch.no_grad()
def test_dac_codes_are_those_of_descripts_package(tmp_path, report):
    """Where descript-audio-codec installs (it pins an old protobuf, which Ray does not take): a minute of speech."""
    descript = pytest.importorskip("dac", exc_type=ImportError)
    kwargs = {
        "encoder_dim": 8,
        "encoder_rates": [2, 4, 5, 8],
        "decoder_dim": 192,
        "decoder_rates": [8, 5, 4, 2],
        "n_codebooks": 32,
        "sample_rate": 24000,
    }
    reference = randomize(descript.DAC(**kwargs))
    waveform, other = two_speeches(24000)
    residual = reference.encoder(other[None, :, :240_000])
    for level in reference.quantizer.quantizers:
        level.out_proj.weight_g.fill_(0.3)  # or the residual grows from level to level, and rounding with it
        points = level.in_proj(residual).transpose(1, 2).flatten(0, 1)
        level.codebook.weight.copy_(fitted_codebooks(points, 1, len(level.codebook.weight))[0])
        residual = residual - level(residual)[0]
    last = reference.decoder.model[-2]
    last.weight_g.fill_(0.002)  # or tanh saturates, and amplifies rounding
    last.bias.zero_()
    torch.save({"state_dict": reference.state_dict(), "metadata": {"kwargs": kwargs}}, tmp_path / "weights.pth")
    codec = load_codec(tmp_path / "weights.pth")
    expected = reference.encode(reference.preprocess(waveform[None], 24000))[1]
    encoded = codec.encode(waveform)
    assert_same_codes(codec, waveform, expected[0], encoded.codes[0], report)
    decoded = reference.decode(reference.quantizer.from_codes(expected)[0])[..., : waveform.shape[-1]]
    same = codec.decode(Encoded(expected, None, waveform.shape[-1]))
    torch.testing.assert_close(same[..., : decoded.shape[-1]], decoded, atol=1e-4, rtol=0)
