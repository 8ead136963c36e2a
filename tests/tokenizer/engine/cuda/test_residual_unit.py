"""Residual units as one kernel, run by Triton's interpreter on a CPU: what torch gives, state by state."""

import dataclasses
import importlib.util
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.conftest import make_codec, tiny_spec
from tests.tokenizer.engine.cuda.conftest import on_engine
from tests.tokenizer.engine.cuda.replayer import Replayer
from tests.tokenizer.streaming import CUTS, noise, seeded, stream
from tokenizer.convolution import Conv1d
from tokenizer.engine.cuda import residual_unit
from tokenizer.engine.cuda.bfloat_network import _converted
from tokenizer.engine.cuda.residual_unit import FusedUnit, checked, fused
from tokenizer.streaming_layer import Chain, Residual

ROOM = residual_unit.__file__.replace("residual_unit", "residual_kernel")


@pytest.fixture(scope="module")
def kernel():
    """A room of the kernel of its own, whose functions are interpreted."""
    pytest.importorskip("triton")
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.spec_from_file_location("interpreted_kernel", ROOM)
    room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
    yield room.run_unit
    patch.undo()


def make_unit(width=32, narrow=16, taps=3, dilation=1, *, shortcut=True, pad_mode="constant", causal=True):
    """A residual unit in float32."""
    settings = {"pad_mode": pad_mode, "causal": causal}
    first = seeded(Conv1d, width, narrow, taps, dilation=dilation, **settings)
    block = Chain(nn.ELU(), first, nn.ELU(), seeded(Conv1d, narrow, width, 1, **settings))
    return Residual(width, block, seeded(Conv1d, width, width, 1, **settings) if shortcut else None)


def in_bfloat(unit, kernel=None):
    return _converted(unit, kernel)


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))


UNITS = [
    {},
    {"pad_mode": "reflect"},
    {"shortcut": False, "narrow": 32, "taps": 7, "dilation": 9},
    {"width": 64, "narrow": 32, "dilation": 2, "pad_mode": "reflect"},
    {"width": 16},
]


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_the_kernel_gives_what_torch_gives(kernel, unit):
    """The interpreter cuts off digits that a bfloat16 has no place for: half of all values differ in the last one."""
    plain = in_bfloat(make_unit(**unit))
    layer = in_bfloat(make_unit(**unit), kernel)
    assert isinstance(layer, FusedUnit)
    x = noise(3, plain.width, 300).bfloat16()
    state, expected_state = layer.initial_state(3), plain.initial_state(3)
    for chunk in x.split([100, 137, 63], dim=2):
        y, state = layer.step(chunk, state)
        expected, expected_state = plain.step(chunk, expected_state)
        assert y.shape == expected.shape
        error = (y.float() - expected.float()).abs()
        assert error.norm() < 0.01 * expected.float().norm()
        assert error.max() < 0.05 * expected.float().abs().max()  # no sample is another's
        assert same(state, expected_state)  # torch computes states, kernel or not


@given(cuts=CUTS)
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("unit", [{"pad_mode": "reflect"}, {"dilation": 3}], ids=str)
def test_chunks_of_any_length_are_streams(kernel, unit, cuts):
    """Those that are too short for the kernel go through torch, at the start and later."""
    plain, layer = in_bfloat(make_unit(**unit)), in_bfloat(make_unit(**unit), kernel)
    x = noise(1, plain.width, 40).bfloat16()
    y, expected = stream(layer, x, cuts), stream(plain, x, cuts)
    assert y.shape == expected.shape
    assert (y - expected).float().norm() < 0.01 * expected.float().norm()


@pytest.mark.parametrize(
    "unit",
    [{"causal": False}, {"width": 128}, {"narrow": 8}, {"width": 48}],
    ids=["looks ahead", "wide", "narrow", "no power of two"],
)
def test_other_units_stay_in_torch(unit):
    plain = in_bfloat(make_unit(**unit))
    assert fused(plain, lambda *_: None) is plain


def test_what_lies_before_a_chunk_reaches_into_it(kernel):
    """A past that is not the one of silence is heard in the first samples, and in no others."""
    layer = in_bfloat(make_unit(), kernel)
    x = noise(1, 32, 50).bfloat16()
    (first, past, *rest), waiting = layer.initial_state(1)
    y, _ = layer.step(x, ((first, past, *rest), waiting))
    z, _ = layer.step(x, ((first, past + 1, *rest), waiting))
    assert bool((y != z)[..., :2].any())
    assert torch.equal(y[..., 2:], z[..., 2:])


def test_a_kernel_that_is_right_passes_its_check(kernel):
    assert checked(in_bfloat(make_unit(pad_mode="reflect"), kernel)) == ""


def zeros(x, past, weights, **_):
    return torch.zeros_like(x)


def late(x, past, weights, *, dilation, shortcut):
    """Right, but for the samples after the first block of 128."""
    y = by_torch(x, past, weights, dilation=dilation, shortcut=shortcut)
    y[:, 128:] = y[:, :-128].clone()
    return y


def raises(*_, **__):
    raise OSError("no C compiler found\nset CC")


def by_torch(x, past, weights, *, dilation, shortcut):
    """The kernel's arithmetic in torch: what `weights` mean, apart from how a unit is made of layers."""
    taps, taps_bias, point, point_bias, beside, beside_bias = (tensor.float() for tensor in weights)
    known = torch.cat([past.float(), nn.functional.elu(x.float())], dim=1)
    hidden = taps_bias + sum(
        known[:, tap * dilation : tap * dilation + x.shape[1]] @ matrix for tap, matrix in enumerate(taps)
    )
    y = nn.functional.elu(hidden) @ point + point_bias
    return (y + (x.float() @ beside + beside_bias if shortcut else x.float())).bfloat16()


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_units_are_handed_over_to_kernels_whole(unit):
    """Without triton too: weights, pasts and mirrors are those that a kernel needs."""
    assert checked(in_bfloat(make_unit(**unit), by_torch)) == ""


@pytest.mark.parametrize(("wrong", "reason"), [(zeros, "100.0%"), (late, "differ"), (raises, "no C compiler found$")])
def test_a_wrong_kernel_does_not_pass(wrong, reason):
    """Its units stay in torch, with one warning; the codec says so."""
    spec = tiny_spec("mirrored")
    spec = dataclasses.replace(spec, network=dataclasses.replace(spec.network, num_filters=32))
    codec = make_codec(spec)
    waveform = 0.3 * noise(2, 1, 400)
    with pytest.warns(RuntimeWarning, match=f"Triton kernel is off.*{reason}") as told:
        fast = on_engine(codec, Replayer(), wrong)
    assert len(told) == 1
    assert fast.computed_by == "cuda, bfloat16, graphs"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = on_engine(codec, Replayer(), by_torch)
    assert right.computed_by == "cuda, bfloat16, graphs, triton"
    codes = right.encode(waveform).codes
    assert (fast.encode(waveform).codes[:, 0] == codes[:, 0]).float().mean() > 0.9


def test_without_triton_nothing_is_fused_and_nothing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizer.engine.cuda.residual_kernel", None)
    assert residual_unit.find_kernel() is None


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_cards_that_are_not_here(capability, tmp_path, monkeypatch):
    """Ampere and Hopper, by Triton's own assembler: products are the matrix units', memory is read 16 bytes wide."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    spec = importlib.util.spec_from_file_location("compiled_kernel", ROOM)
    room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
    constants = {"WIDTH": 32, "NARROW": 16, "TAPS": 3, "DILATION": 1, "SHORTCUT": True, "BLOCK": room.BLOCK_SAMPLES}
    constants["FACTOR"] = triton.language.bfloat16
    types = {"num_samples": "i32"} | dict.fromkeys(constants, "constexpr")
    names = room._unit.arg_names
    pointers = {name: "*fp32" if name.endswith("bias_at") else "*bf16" for name in names if name.endswith("_at")}
    signature = {name: (types | pointers)[name] for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}  # as torch's tensors are
    source = ASTSource(fn=room._unit, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 0
    assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"]
    assert "ld.global.v4.b32" in compiled.asm["ptx"]
