"""Products of 16-bit integers: near those of floats whatever the sizes, within 32 bits, and the same in any company."""

import dataclasses

import pytest
import torch

from tests.conftest import speech_like, tiny_spec
from tests.tokenizer.engine.test_networks import networks_of
from tests.tokenizer.streaming import noise, stream
from tokenizer import load_codec
from tokenizer.engine import build_engine, library
from tokenizer.engine.integer_weights import MOST_INTEGER, integer_weights, part_lengths, whole_strides
from tokenizer.engine.program import Window
from tokenizer.engine.program_builder import ProgramBuilder
from tokenizer.engine.seanet_program import plan_seanet
from tokenizer.engine.structures import Kind


@pytest.fixture
def integers(monkeypatch):
    """Kernels that multiply integers."""
    monkeypatch.setenv("QUANTONE_ENGINE", "avx512_vnni")
    found = library.find_kernels()
    if found is None or found.name != "avx512_vnni":
        pytest.skip("no products of integers here, or no compiler")
    return found


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product_of(kernels, x, weights, bias=None, taps=1, stride=1):
    """Windows of `taps` rows of x [B, rows, width] times weights [columns, taps * width]."""
    builder = ProgramBuilder(kernels, fast=True, even=True, whole_files=False, rows_per_frame=stride)
    source, output = builder.buffer(x.shape[2]), builder.buffer(weights.shape[0], narrow=False)
    builder.buffers[source].left = taps - stride
    builder.matrix([Window(source, stride - taps, taps * x.shape[2])], weights, bias, output=output, stride=stride)
    program = builder.build(output)
    assert program.operations[0].column_scales, "multiplied as integers"
    y, _ = program.run(x.contiguous(), torch.zeros(x.shape[0], program.state_size))
    return y


@pytest.mark.parametrize(("width", "columns"), [(64, 8), (80, 64), (512, 72), (528, 16), (1536, 130)])
@pytest.mark.parametrize(("streams", "rows"), [(1, 1), (1, 700), (9, 1), (3, 50)])
def test_products_are_near_those_of_floats(integers, width, columns, streams, rows):
    """Each within a few thousandths of what its row and column could give at most, however large other ones are."""
    x = random(streams, rows, width) * 10.0 ** random(streams, rows, 1, seed=1).mul(3).clamp(-9, 9)
    weights = random(columns, width, seed=2) * 10.0 ** random(columns, 1, seed=3).mul(3).clamp(-9, 9)
    bias = random(columns, seed=4)
    expected = x.double() @ weights.double().T + bias
    error = (product_of(integers, x, weights, bias) - expected).abs()
    assert (error <= 2e-3 * x.norm(dim=2, keepdim=True) * weights.norm(dim=1) + 1e-6).all()


@pytest.mark.parametrize("taps", [2, 7])
def test_rows_of_a_window_have_scales_of_their_own(integers, taps):
    """A quiet row beside a loud one, and the zeros before a stream, keep their digits."""
    x = random(2, 40, 64)
    x[:, ::3] *= 1e-4
    weights = random(48, taps * 64, seed=1)
    weights[:, : (taps - 1) * 64] *= 1e-4
    windows = torch.nn.functional.pad(x, (0, 0, taps - 1, 0)).unfold(1, taps, 1).transpose(2, 3).flatten(2)
    expected = windows.double() @ weights.double().T
    error = (product_of(integers, x, weights, taps=taps) - expected).square().mean().sqrt()
    assert error < 2e-4 * expected.square().mean().sqrt()


@pytest.mark.parametrize(("taps", "stride"), [(4, 2), (10, 5), (16, 8), (5, 2)])
@pytest.mark.parametrize("streams", [1, 3])
def test_windows_with_strides_are_near_those_of_floats(integers, taps, stride, streams):
    """Also where a window is no whole number of strides."""
    x, weights = random(streams, 20 * stride, 32), random(48, taps * 32, seed=1)
    windows = torch.nn.functional.pad(x, (0, 0, taps - stride, 0)).unfold(1, taps, stride).transpose(2, 3).flatten(2)
    expected = windows.double() @ weights.double().T
    error = (product_of(integers, x, weights, taps=taps, stride=stride) - expected).square().mean().sqrt()
    assert error < 3e-4 * expected.square().mean().sqrt()


def test_the_rows_of_a_stride_make_one_part():
    """If all segments come in whole strides."""
    assert part_lengths(whole_strides([(32, 128)], 2)) == [64, 64]
    assert part_lengths(whole_strides([(128, 1280)], 5)) == [256, 256, 128] * 2
    assert whole_strides([(64, 320), (64, 64)], 2) == [(64, 320), (64, 64)]


@torch.inference_mode()
def test_an_lstm_reads_its_input_in_integers(integers):
    """In each layer; that they are near those of floats, the test of networks says."""
    spec = tiny_spec("mirrored")
    spec = dataclasses.replace(spec, network=dataclasses.replace(spec.network, num_filters=64))
    program = plan_seanet(networks_of(spec).encoder, spec, integers, fast=True)
    lstm = next(operation for operation in program.operations if operation.kind == Kind.LSTM)
    assert lstm.layers > 0
    assert all(lstm.layer_scales[layer] for layer in range(lstm.layers))


@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_leaves_32_bits(integers, sign):
    """The worst case: all values and all weights as large as they get."""
    x, weights = torch.full((1, 5, 512), 3.0), torch.full((16, 512), 0.7 * sign)
    torch.testing.assert_close(
        product_of(integers, x, weights), torch.full((1, 5, 16), 512 * 2.1 * sign), rtol=1e-3, atol=0
    )


def test_zeros_stay_zeros(integers):
    """Silence, and columns without weights."""
    weights = random(32, 64)
    weights[3] = 0
    x = random(1, 6, 64)
    x[0, 2] = 0
    y = product_of(integers, x, weights)
    assert (y[0, 2] == 0).all()
    assert (y[0, :, 3] == 0).all()


def test_weights_are_within_half_a_step():
    """And as many digits are used as the sums of a part leave."""
    lengths = part_lengths([(608, 608), (496, 992)])
    assert lengths == [256, 256, 96, 256, 240, 256, 240]
    weights = random(40, sum(lengths))
    weights[7] = 1.0
    packed = integer_weights(weights, lengths)
    values = packed.words.view(torch.int16).double()
    assert ((values * packed.scales.double()[:, None] - weights).abs() <= 0.501 * packed.scales[:, None]).all()
    sums = torch.stack([part.abs().sum(dim=1) for part in values.split(lengths, dim=1)]).amax(dim=0) * MOST_INTEGER
    assert (sums < 2**31).all()
    assert (sums > 0.98 * 2**31).all(), "all columns here are bound by their sums"


@pytest.mark.parametrize(
    "segments",
    [[(16, 96)], [(72, 72)], [(64, 96)], [(64, 64)] * 5, [(64, 64 * 129)]],
    ids=["narrow rows", "odd rows", "parts of rows", "segments", "parts"],
)
def test_what_does_not_fit_is_left_to_floats(segments):
    """Too little to gain, or more than the kernels have room for."""
    assert part_lengths(segments) is None


@pytest.mark.parametrize(
    ("kind", "changed"),
    [("mirrored", {"num_filters": 64}), ("patch", {"width": 64, "hidden_width": 96, "patch_width": 160})],
    ids=["mirrored", "patch"],
)
@torch.inference_mode()
def test_networks_are_near_and_their_streams_have_the_bits_of_the_whole(integers, kind, changed):
    """However a stream is cut, and whatever is computed beside it."""
    spec = tiny_spec(kind)
    spec = dataclasses.replace(spec, network=dataclasses.replace(spec.network, **changed), latent_dim=64)
    networks = networks_of(spec)
    engine = build_engine(networks, spec, "fast")
    assert engine.name == "avx512_vnni, int16"
    for direction, x in {"encoder": 0.5 * noise(5, 1, 37 * spec.hop_length), "decoder": noise(5, 64, 37)}.items():
        expected = stream(getattr(networks, direction), x, [])
        network = getattr(engine.networks, direction)
        whole = stream(network, x, [])
        assert float((whole - expected).square().sum() / expected.square().sum()) < 1e-4
        cut = stream(network, x[2:3], [3, 4, 20], spec.hop_length if direction == "encoder" else 1)
        assert torch.equal(cut, whole[2:3])


def test_the_bundled_codec_in_integers(integers):
    """All codes of the first level, nearly all of the others, and sound that is 50 dB above the difference."""
    codec = load_codec("speech_24khz")
    fast = codec.with_precision("fast")
    waveform = torch.from_numpy(speech_like(3.0))[None]
    encoded = codec.encode(waveform)
    same = fast.encode(waveform).codes == encoded.codes
    assert same[:, 0].float().mean() >= 0.99
    assert same.float().mean() >= 0.95
    sound = codec.decode(encoded)
    error = fast.decode(encoded) - sound
    assert error.square().sum() < 1e-5 * sound.square().sum()
