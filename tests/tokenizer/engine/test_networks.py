"""Programs of networks against the torch modules that they were made from."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings

from tests.conftest import make_codec, tiny_spec
from tests.tokenizer.streaming import CUTS, noise, seeded, stream
from tokenizer.engine import EngineNetwork, build_engine, library
from tokenizer.engine.patch_program import plan_patch
from tokenizer.engine.program import UnsupportedNetworkError
from tokenizer.engine.seanet_program import plan_seanet
from tokenizer.network_config import PatchConfig, SeanetConfig
from tokenizer.networks import Networks, build_networks
from tokenizer.seanet import SeanetDecoder, SeanetEncoder
from tokenizer.streaming_layer import StreamStart

SEANETS = {
    "EnCodec's": {},
    "with a mirrored start": {"pad_mode": "reflect"},
    "of several deep units": {"num_residual_layers": 3, "num_lstm_layers": 2, "compress": 4},
    "SoundStream's": {
        "num_residual_layers": 3,
        "residual_kernel_size": 7,
        "dilation_base": 3,
        "compress": 1,
        "conv_shortcut": False,
        "num_lstm_layers": 0,
        "latent_kernel_size": 3,
    },
    "mirrored and dilated": {"num_residual_layers": 2, "pad_mode": "reflect", "dilation_base": 3},
    "of recurrent weights in panels": {"num_filters": 8},
    "of rows that fill no vector": {"num_filters": 3, "compress": 3},
    "of windows in fours": {"num_filters": 32},
    "of windows in twos": {"num_filters": 128, "strides": (4, 2), "num_lstm_layers": 0},
}
PATCHES = {
    "speech's": {},
    "of one hop's context": {"context_frames": 1},
    "with whole overlap": {"overlap": 8},
    "of odd widths": {"width": 17, "hidden_width": 33, "patch_width": 25},
    "with a wide filter": {"kernel_size": 9},
}


def spec_with(kind, changed, channels=1):
    """The tiny codec of a family with other settings."""
    spec = tiny_spec(kind)
    return dataclasses.replace(spec, network=dataclasses.replace(spec.network, **changed), channels=channels)


def networks_of(spec):
    """Random weights, also where a module starts with zeros or ones."""
    networks = Networks(*(part.eval() for part in seeded_networks(spec)))
    generator = torch.Generator().manual_seed(2)
    for parameter in networks.encoder.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    for parameter in networks.decoder.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return networks


def seeded_networks(spec):
    """Networks without gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [part.requires_grad_(requires_grad=False) for part in build_networks(spec)]


def cases():
    """Every kind of network, alone and in stereo."""
    for kind, variants in (("seanet", SEANETS), ("patch", PATCHES)):
        for name, changed in variants.items():
            for channels in (1, 2):
                yield pytest.param(spec_with(kind, changed, channels), id=f"{kind} {name}, {channels} channels")


@pytest.fixture(params=list(cases()))
def spec(request):
    """A spec of each kind."""
    return request.param


def inputs_of(spec, frames=23, rows=3):
    """Noise for the encoder and for the decoder."""
    waveform = 0.5 * noise(rows, spec.channels, frames * spec.hop_length)
    return {"encoder": waveform, "decoder": noise(rows, spec.latent_dim, frames)}


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@torch.inference_mode()
def test_exact_networks_equal_torchs(kernels, spec, direction):
    """In float32 only the order of sums differs: every value is within some units in the last place of the largest."""
    networks = networks_of(spec)
    engine = build_engine(networks, spec, "exact")
    assert engine.name == f"{kernels.name}, float32"
    x = inputs_of(spec)[direction]
    expected = stream(getattr(networks, direction), x, [])
    y = stream(getattr(engine.networks, direction), x, [])
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@torch.inference_mode()
def test_fast_networks_are_close_to_torchs(kernels, spec, direction):
    """Bfloats have eight bits: the error of a whole network stays 30 dB below its values."""
    networks = networks_of(spec)
    x = inputs_of(spec)[direction]
    expected = stream(getattr(networks, direction), x, [])
    y = stream(getattr(build_engine(networks, spec, "fast").networks, direction), x, [])
    assert float((y - expected).square().sum() / expected.square().sum()) < 1e-3


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("precision", ["exact", "fast"])
@given(cuts=CUTS)
@settings(max_examples=5, deadline=None)
@torch.inference_mode()
def test_streams_do_not_depend_on_cuts(precision, direction, cuts):
    """However a stream is cut into frames, empty chunks included, every value is that of the whole stream."""
    for kind, changed in (
        ("seanet", SEANETS["mirrored and dilated"]),
        ("seanet", SEANETS["of windows in fours"]),
        ("seanet", SEANETS["of windows in twos"]),
        ("patch", PATCHES["speech's"]),
    ):
        spec = spec_with(kind, changed)
        network = getattr(build_engine(networks_of(spec), spec, precision).networks, direction)
        x = inputs_of(spec)[direction]
        unit = spec.hop_length if direction == "encoder" else 1
        whole = stream(network, x, [])
        torch.testing.assert_close(stream(network, x, cuts, unit), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 8, 300])
@pytest.mark.parametrize("kind", ["seanet", "mirrored", "patch"])
@torch.inference_mode()
def test_streams_of_any_length_equal_torchs(engine, kind, frames):
    """Streams that end before they can be mirrored, and streams of many blocks."""
    spec = tiny_spec(kind)
    networks = networks_of(spec)
    fast = build_engine(networks, spec, "exact").networks
    for direction, x in inputs_of(spec, frames, rows=2).items():
        expected = stream(getattr(networks, direction), x, [frames // 2], spec.hop_length if x.shape[1] == 1 else 1)
        y = stream(getattr(fast, direction), x, [frames // 2], spec.hop_length if x.shape[1] == 1 else 1)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("kind", ["seanet", "patch"])
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours(engine, kind, precision):
    """What a stream gets in a batch of any size is what it gets alone."""
    spec = tiny_spec(kind)
    networks = build_engine(networks_of(spec), spec, precision).networks
    for direction, x in inputs_of(spec, frames=5, rows=40).items():
        network = getattr(networks, direction)
        together, _ = network.step(x, network.initial_state(40))
        for row in (0, 17, 39):
            alone, _ = network.step(x[row : row + 1], network.initial_state(1))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuts", [[1], [3, 4, 20]])
@pytest.mark.parametrize("name", ["of windows in fours", "of windows in twos"])
@pytest.mark.parametrize("precision", ["exact", "fast"])
@torch.inference_mode()
def test_the_same_windows_are_multiplied_together_however_a_stream_is_cut(engine, cuts, name, precision):
    """Sets end where frames end: the very same sums, wherever a chunk begins and whatever else is in the batch."""
    spec = spec_with("seanet", SEANETS[name] | {"num_lstm_layers": 0})
    networks = build_engine(networks_of(spec), spec, precision).networks
    for direction, x in inputs_of(spec).items():
        network = getattr(networks, direction)
        unit = spec.hop_length if direction == "encoder" else 1
        whole = stream(network, x, [])
        assert torch.equal(stream(network, x, cuts, unit), whole)
        assert torch.equal(stream(network, x[1:2], cuts, unit), whole[1:2])


@pytest.mark.parametrize(
    ("kind", "name", "sets"),
    [
        ("seanet", "of windows in fours", [(4, 2), (4, 3), (4, 3)]),
        ("seanet", "of windows in twos", [(2, 2), (2, 3), (4, 3)]),
        ("segmented", "of windows in fours", [(4, 2), (4, 2), (4, 3), (4, 3)]),
    ],
)
def test_windows_are_multiplied_together(engine, kind, name, sets):
    """Of two strides and two residual units, as many as divide a frame's rows; one row a frame stays alone."""
    spec = spec_with(kind, SEANETS[name], tiny_spec(kind).channels)
    for network in networks_of(spec)[:2]:
        program = plan_seanet(network, spec, engine, fast=False)
        assert sorted((one.windows, one.units) for one in program.operations if one.windows) == sets


def test_bfloats_have_no_digits_for_mixtures_of_four(monkeypatch):
    monkeypatch.setenv("QUANTONE_ENGINE", "avx512_bf16")
    kernels = library.find_kernels()
    if kernels is None or kernels.name != "avx512_bf16":
        pytest.skip("no vectors of bfloats here, or no compiler")
    spec = spec_with("seanet", SEANETS["of windows in twos"])
    for network in networks_of(spec)[:2]:
        program = plan_seanet(network, spec, kernels, fast=True)
        assert sorted((one.windows, one.units) for one in program.operations if one.windows) == [(2, 2), (2, 3), (2, 3)]


@pytest.mark.parametrize("num_samples", [160, 159, 101, 24, 3, 1])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("num_filters", [4, 32])
@torch.inference_mode()
def test_whole_files_equal_torchs(kernels, num_samples, rows, num_filters):
    """Networks that look ahead, with their norms and both mirrors, for segments of any length."""
    spec = spec_with("segmented", {"num_filters": num_filters}, channels=2)
    codec = make_codec(spec)
    networks = Networks(codec.encoder, codec.decoder, codec.quantizer)
    fast = build_engine(networks, codec.spec, "exact").networks
    waveform = noise(rows, 2, num_samples)
    latents = networks.encoder(waveform)
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * float(latents.abs().max())}
    torch.testing.assert_close(fast.encoder(waveform), latents, **tolerance)
    torch.testing.assert_close(fast.decoder(latents), networks.decoder(latents), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_samples", [160, 159, 104, 24])
@torch.inference_mode()
def test_whole_files_without_norms_share_a_batch(kernels, num_samples):
    """Windows that do not come in whole sets, in several files of a batch."""
    spec = spec_with("segmented", {"num_filters": 32, "norm": "weight_norm"}, channels=2)
    plain = networks_of(spec)
    fast = build_engine(plain, spec, "exact").networks
    waveform = noise(5, 2, num_samples)
    latents = plain.encoder(waveform)
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * float(latents.abs().max())}
    torch.testing.assert_close(fast.encoder(waveform), latents, **tolerance)
    torch.testing.assert_close(fast.decoder(latents), plain.decoder(latents), rtol=1e-4, atol=1e-4)
    for row in range(5):
        torch.testing.assert_close(fast.encoder(waveform[row : row + 1]), latents[row : row + 1], **tolerance)


@torch.inference_mode()
def test_networks_that_look_ahead_do_not_stream(engine):
    """As with the torch modules, asking for a state says so."""
    codec = make_codec(tiny_spec("segmented"))
    networks = Networks(codec.encoder, codec.decoder, codec.quantizer)
    with pytest.raises(ValueError, match="cannot stream"):
        build_engine(networks, codec.spec, "exact").networks.encoder.initial_state(1)


@torch.inference_mode()
def test_a_mirrored_start_is_held_as_long_as_torch_holds_it(engine):
    """The first values come out after the same chunk, so that callers see the same stream."""
    spec = tiny_spec("mirrored")
    networks = networks_of(spec)
    fast = build_engine(networks, spec, "exact").networks
    for direction, x in inputs_of(spec, frames=9, rows=1).items():
        unit, lengths = x.shape[-1] // 9, []
        for network in (getattr(networks, direction), getattr(fast, direction)):
            state, came = network.initial_state(1), []
            for frame in range(9):
                y, state = network.step(x[..., frame * unit : (frame + 1) * unit], state)
                came.append(y.shape[-1])
            lengths.append(came)
        assert lengths[0] == lengths[1]
        assert isinstance(getattr(fast, direction).initial_state(1), StreamStart)


@pytest.fixture
def torch_threads():
    """Sets torch's threads; the tests after it have theirs again."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("patch", "speech's"),
        ("seanet", "SoundStream's"),
        ("seanet", "EnCodec's"),
        ("seanet", "mirrored and dilated"),
        ("seanet", "of windows in fours"),
    ],
)
@torch.inference_mode()
def test_a_long_stream_is_shared_out_among_threads(engine, torch_threads, kind, name, precision, threads):
    """Each computes a stretch, and what that one hears of the stretch before: the very same values and states."""
    spec = spec_with(kind, (SEANETS if kind == "seanet" else PATCHES)[name])
    networks = build_engine(networks_of(spec), spec, precision).networks
    for direction, x in inputs_of(spec, frames=700, rows=3).items():
        network, unit = getattr(networks, direction), x.shape[-1] // 700
        _, state = network.step(x[..., : 40 * unit], network.initial_state(3))
        for rows in (slice(0, 1), slice(0, 3)):
            torch_threads(1)
            expected, expected_state = network.step(x[rows, :, 40 * unit :], state[rows])
            torch_threads(threads)
            y, next_state = network.step(x[rows, :, 40 * unit :], state[rows])
            assert torch.equal(y, expected)
            assert torch.equal(next_state, expected_state)
        program = network._program
        for frames, most in ((660, threads), (3, 1)):  # what is too short is not worth it
            shared = [
                len(stage.pieces(1, frames * stage.frame_rows))
                for stage in program.programs_for(1, frames * program.frame_rows)
            ]
            assert max(shared) == most


@torch.inference_mode()
def test_streams_with_memory_are_not_cut(engine, torch_threads):
    """What an LSTM remembers comes from everything before: what comes before and after it is cut, and it is not."""
    torch_threads(3)
    spec = spec_with("seanet", SEANETS["EnCodec's"])
    for network in build_engine(networks_of(spec), spec, "exact").networks[:2]:
        program = network._program
        assert len(program.pieces(1, 10_000 * program.frame_rows)) == 1
        assert len(program.pieces(2, 10_000 * program.frame_rows)) == 2
        stages = program.programs_for(1, 10_000 * program.frame_rows)
        assert [len(stage.pieces(1, 10_000 * stage.frame_rows)) for stage in stages] == [3, 1, 3]
        assert program.programs_for(3, 10_000 * program.frame_rows) == (program,)


@torch.inference_mode()
def test_no_streams_keep_no_thread_busy(engine, torch_threads):
    """A batch of none has no values."""
    torch_threads(3)
    patch = spec_with("patch", PATCHES["speech's"])
    decoder = build_engine(networks_of(patch), patch, "exact").networks.decoder
    y, _ = decoder.step(torch.zeros(0, patch.latent_dim, 700), decoder.initial_state(0))
    assert y.shape[0] == 0


def test_layers_without_an_operation_stay_in_torch(engine):
    """A network of windows in more parts than the kernels take runs as it did."""
    wide = SeanetConfig(num_filters=4, strides=(2, 4), residual_kernel_size=40, dilation_base=2, num_residual_layers=2)
    spec = dataclasses.replace(tiny_spec("seanet"), network=wide)
    networks = networks_of(spec)
    built = build_engine(networks, spec, "exact")
    assert built.networks is networks
    assert built.name == "torch"


def test_planners_refuse_what_is_not_theirs(engine):
    """A transposed convolution that reaches farther than one stride, and rows wider than any codec's."""
    spec = tiny_spec("seanet")
    decoder = seeded(SeanetDecoder, spec)
    next(layer for layer in decoder.modules() if type(layer).__name__ == "ConvTranspose1d").overlap += 1
    with pytest.raises(UnsupportedNetworkError, match="reaches"):
        plan_seanet(decoder, spec, engine, fast=False)
    wide = dataclasses.replace(tiny_spec("patch"), network=PatchConfig(patch_width=20000, width=8, overlap=4))
    encoder = build_networks(wide).encoder
    with pytest.raises(UnsupportedNetworkError, match="wide"):
        plan_patch(encoder, wide, engine, fast=False)


def test_dac_runs_in_torch(engine):
    """There are no operations for Snake."""
    spec = tiny_spec("dac")
    networks = Networks(*seeded_networks(spec))
    assert build_engine(networks, spec, "exact").networks is networks


def test_engines_are_made_of_engine_networks(engine):
    """No test of equality above compares torch with itself."""
    for kind in ("seanet", "mirrored", "segmented", "patch"):
        spec = tiny_spec(kind)
        built = build_engine(Networks(*seeded_networks(spec)), spec, "exact").networks
        assert isinstance(built.encoder, EngineNetwork)
        assert isinstance(built.decoder, EngineNetwork)
    assert isinstance(build_networks(tiny_spec("seanet")).encoder, SeanetEncoder)
