"""Recurrent weights in fewer bytes: how near they are to the floats, for any number of streams."""

import dataclasses

import pytest
import torch

from tests.conftest import tiny_spec
from tests.tokenizer.engine.test_networks import inputs_of, networks_of
from tests.tokenizer.streaming import stream
from tokenizer.engine import build_engine
from tokenizer.engine.seanet_program import plan_seanet

LANES = 16
PANEL = 4 * LANES


@pytest.fixture
def weights():
    """Rows of very different sizes; one of zeros, and one whose largest is the last float below a power of two."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2 * PANEL, 20, generator=generator)
    values *= 10.0 ** torch.randint(-6, 4, (2 * PANEL, 1), generator=generator)
    values[5] = 0
    values[7] = 1 - 2.0**-24
    values[PANEL - 1] = -values[7]
    return values


@pytest.fixture
def packed(kernels, weights, request):
    """As the kernels read them."""
    compact = kernels.pack_compact(weights, in_bytes=request.param == "bytes")
    if request.param == "bytes":
        assert (compact is not None) == (kernels.name in ("avx512_vnni", "avx512_bf16"))
    else:
        assert (compact is not None) == (kernels.name != "avx2")
    if compact is None:
        pytest.skip("not on this instruction set")
    return compact


@pytest.mark.parametrize("packed", ["fixed"], indirect=True)
def test_fixed_weights_have_24_bits_of_their_rows_largest(packed, weights):
    """Four vectors in three: the fourth one's bytes are the lowest of the others, and part of their numbers."""
    columns, depth = weights.shape
    parts = packed[columns:].view(torch.int32).view(columns // PANEL, depth, 3, LANES).to(torch.int64)
    bytes_left = parts & 0xFF
    fourth = bytes_left[:, :, 0] << 24 | bytes_left[:, :, 1] << 16 | bytes_left[:, :, 2] << 8
    fourth -= (fourth >= 1 << 31).to(torch.int64) << 32
    numbers = torch.cat([parts, fourth[:, :, None]], dim=2)  # [panels, depth, 4, lanes]
    values = numbers.permute(0, 2, 3, 1).reshape(columns, depth).double() * packed[:columns, None].double()
    largest = weights.abs().amax(dim=1, keepdim=True).double()
    assert ((values - weights.double()).abs() <= largest * 2.0**-23).all()
    assert (values[5] == 0).all()


@pytest.mark.parametrize("packed", ["bytes"], indirect=True)
def test_weights_of_bytes_are_within_half_a_step(packed, weights):
    """A step is a 127th of the row's largest weight."""
    columns, depth = weights.shape
    numbers = packed[2 * columns :].view(torch.int8).view(columns // PANEL, depth // 4, PANEL, 4)
    numbers = numbers.permute(0, 2, 1, 3).reshape(columns, depth).float()
    step = weights.abs().amax(dim=1, keepdim=True) / 127
    assert ((numbers * step - weights).abs() <= 0.501 * step).all()
    torch.testing.assert_close(packed[:columns] * 127 * 128, step[:, 0])
    torch.testing.assert_close(packed[columns : 2 * columns], -numbers.sum(dim=1) * 128 / 127 * step[:, 0])


def spec_of_panels(num_filters=8):
    """Recurrent weights that fill whole panels, and with 128 filters are summed in more than one part."""
    spec = tiny_spec("seanet")
    return dataclasses.replace(spec, network=dataclasses.replace(spec.network, num_filters=num_filters))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@torch.inference_mode()
def test_exact_networks_of_any_number_of_streams_equal_torchs(kernels, rows):
    """Few streams read compact weights, many read floats."""
    spec = spec_of_panels()
    networks = networks_of(spec)
    engine = build_engine(networks, spec, "exact").networks
    for direction, x in inputs_of(spec, rows=rows).items():
        expected = stream(getattr(networks, direction), x, [])
        y = stream(getattr(engine, direction), x, [7], x.shape[-1] // 23)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("rows", [1, 4])
@torch.inference_mode()
def test_fast_networks_have_recurrent_weights_in_bytes(kernels, rows):
    """Wherever they are multiplied. Eight bits leave errors 30 dB below a network's values."""
    spec = spec_of_panels()
    networks = networks_of(spec)
    engine = build_engine(networks, spec, "fast").networks
    program = plan_seanet(networks.encoder, spec, kernels, fast=True)
    in_bytes = [operation.recurrent_bytes for operation in program.operations if operation.layers]
    assert in_bytes == [int(kernels.name in ("avx512_vnni", "avx512_bf16"))]
    for direction, x in inputs_of(spec, rows=rows).items():
        expected = stream(getattr(networks, direction), x, [])
        y = stream(getattr(engine, direction), x, [7], x.shape[-1] // 23)
        assert float((y - expected).square().sum() / expected.square().sum()) < 1e-3


@pytest.mark.parametrize("rows", [2, 3, 4, 7])
@pytest.mark.parametrize("num_filters", [8, 128])
@pytest.mark.parametrize("precision", ["exact", "fast"])
@torch.inference_mode()
def test_streams_are_the_same_alone_and_together(engine, precision, num_filters, rows):
    """Few streams read compact weights and many read floats, which are the same; bytes are multiplied exactly."""
    spec = spec_of_panels(num_filters)
    engine = build_engine(networks_of(spec), spec, precision).networks
    for direction, x in inputs_of(spec, rows=rows).items():
        network = getattr(engine, direction)
        together = stream(network, x, [])
        for row in range(rows):
            alone = stream(network, x[row : row + 1], [5], x.shape[-1] // 23)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=0)
