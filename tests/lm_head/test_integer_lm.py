"""The integer language model: one answer, however it is evaluated."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lm_head.activation_grid import Slot
from lm_head.integer_lm import IntegerLM
from lm_head.integer_product import FixedFactor, eight_bits_are_exact
from lm_head.integer_weights import IntegerWeights, dequantize, quantize
from lm_head.known_answer import known_answer, require_known_answer
from lm_head.lm_training import calibrated_steps
from lm_head.token_lm import LMConfig, TokenLM
from tokenizer import CheckpointError

CONFIG = LMConfig(
    num_codebooks=4, codebook_size=64, dim=48, num_layers=2, num_heads=4, hidden_dim=96, context_frames=20
)
ROOT = Path(__file__).parents[2]


def small_lm(config=CONFIG, seed=0):
    """Random weights, sharp enough that the distributions are far from flat."""
    torch.manual_seed(seed)
    lm = TokenLM(config).eval()
    with torch.no_grad():
        lm.head_weight.mul_(5)
        for parameter in lm.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return lm.requires_grad_(requires_grad=False)


def some_codes(batch, frames, levels=4, size=64):
    return torch.randint(0, size, (batch, levels, frames), generator=torch.Generator().manual_seed(1))


def shift(codes):
    """What the model is given to predict these codes."""
    return functional.pad(codes[..., :-1] + 1, (1, 0))


def evaluate(lm, codes, lengths):
    """[B, T, K, V] in stretches of some lengths."""
    state = lm.begin(len(codes), max(lengths))
    return torch.cat([lm.step(part, state) for part in torch.split(shift(codes), lengths, dim=-1)], dim=1)


@pytest.fixture(scope="module")
def float_lm():
    return small_lm()


@pytest.fixture(scope="module")
def integer_lm(float_lm):
    return IntegerLM(quantize(float_lm, calibrated_steps(float_lm, some_codes(8, 60))))


@pytest.mark.parametrize("lengths", [[1] * 350, [7] * 50, [1, 100, 3, 246], [349, 1]], ids=lambda value: str(value[:4]))
def test_step_by_step_and_in_stretches_is_at_once_bit_for_bit(integer_lm, lengths):
    """Far beyond the context, over the places where the buffer of keys slides."""
    codes = some_codes(2, 350)
    assert torch.equal(evaluate(integer_lm, codes, lengths), evaluate(integer_lm, codes, [350]))


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_a_stream_does_not_notice_its_neighbours(integer_lm, batch):
    codes = some_codes(batch, 40)
    together = evaluate(integer_lm, codes, [40])
    assert all(torch.equal(together[row], evaluate(integer_lm, codes[row : row + 1], [40])[0]) for row in range(batch))


def test_fewer_levels_are_predicted_from_fewer_levels(integer_lm):
    """The same model serves every bandwidth, and stepwise is at once for each."""
    codes = some_codes(1, 30)[:, :2]
    found = evaluate(integer_lm, codes, [30])
    assert found.shape == (1, 30, 2, 64)
    assert torch.equal(found, evaluate(integer_lm, codes, [1] * 30))


def test_frequencies_are_positive_integers_with_sums_that_float32_holds(integer_lm):
    frequencies = evaluate(integer_lm, some_codes(4, 60), [60])
    assert torch.equal(frequencies, frequencies.round())
    assert frequencies.min() >= 1
    assert frequencies.double().sum(dim=-1).max() <= 2**24


def test_the_integer_form_predicts_as_the_floating_point_form(float_lm, integer_lm):
    """Cost of coding what the model itself says: within half a percent of its entropy."""
    codes = some_codes(8, 60)
    expected = float_lm(codes).softmax(dim=-1)
    frequencies = evaluate(integer_lm, codes, [60]).double()
    found = frequencies / frequencies.sum(dim=-1, keepdim=True)
    entropy = -(expected * expected.log2()).sum(dim=-1).mean()
    cost = -(expected * found.log2()).sum(dim=-1).mean()
    assert entropy < 5.5  # of 6 bits: there is something to predict
    assert cost / entropy - 1 < 0.005


def test_threads_and_instruction_sets_give_one_hash():
    """The same answer from processes that compute with other vector units and thread counts."""
    script = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[2]));"
        "from tests.lm_head.test_integer_lm import integer_weights, evaluate, some_codes, IntegerLM; import hashlib;"
        "lm = IntegerLM(integer_weights());"
        "found = evaluate(lm, some_codes(3, 70), [70]).numpy().tobytes();"
        "print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(found).hexdigest())"
    )
    found = {}
    for capability, threads in (("default", 1), ("avx2", 2), ("avx512", 1)):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-c", script, capability, str(threads)]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        name, digest = ran.stdout.split()
        found[name] = digest
    here = evaluate(IntegerLM(integer_weights()), some_codes(3, 70), [70])
    assert set(found.values()) == {hashlib.sha256(here.numpy().tobytes()).hexdigest()}
    assert len(found) > 1, f"only {set(found)}: nothing was compared"


@pytest.mark.gpu
def test_a_gpu_gives_the_same_hash(integer_lm):
    codes = some_codes(3, 70).cuda()
    on_gpu = evaluate(IntegerLM(integer_weights(), "cuda"), codes, [70])
    assert torch.equal(on_gpu.cpu(), evaluate(integer_lm, codes.cpu(), [70]))


def integer_weights() -> IntegerWeights:
    """For other processes and frozen bytes: drawn as integers, since torch's normal numbers depend on the processor."""
    rng = np.random.default_rng(5)

    def drawn(name, tensor):
        if tensor.dtype == torch.int8:
            high = 2 if name == "shifts" else 128
            return torch.from_numpy(rng.integers(-high + 1 if high > 2 else 0, high, tensor.shape).astype(np.int8))
        low, high, scale = (1, 2, 16) if name == "steps" else (-8, 9, 64)
        if name.endswith(("gain", "embedding_step")):
            low, high, scale = 48, 80, 64
        elif name.endswith(".steps"):
            low, high, scale = 40, 90, 16384
        return torch.from_numpy(np.asarray(rng.integers(low, high, tensor.shape) / scale, np.float32))

    shapes = quantize(TokenLM(CONFIG), torch.ones(CONFIG.num_layers + 1, len(Slot))).to_tensors()
    return IntegerWeights.from_tensors(CONFIG, {name: drawn(name, shapes[name]) for name in sorted(shapes)})


def test_dequantized_weights_are_quantized_to_themselves(float_lm):
    """The floating point form of an integer model loses nothing of it."""
    weights = quantize(float_lm, calibrated_steps(float_lm, some_codes(8, 60)))
    again = quantize(dequantize(weights), weights.steps)
    assert torch.equal(again.heads.values, weights.heads.values)
    assert torch.equal(again.embeddings, weights.embeddings)
    for name, matrix in weights.matrices.items():
        assert torch.equal(again.matrices[name].values, matrix.values), name


def test_the_known_answer_tells_models_apart(integer_lm):
    answer = known_answer(integer_lm)
    require_known_answer(integer_lm, answer)
    other = small_lm(seed=1)
    with pytest.raises(CheckpointError, match="known answer"):
        require_known_answer(IntegerLM(quantize(other, calibrated_steps(other, some_codes(8, 60)))), answer)


def test_a_machine_that_rounds_otherwise_is_refused(integer_lm, monkeypatch):
    """One unit in one product is enough, and a difference between one call and steps is noticed without an answer."""
    answer, exact = known_answer(integer_lm), FixedFactor.product

    def sloppy(self, x, rows=None):
        result = exact(self, x, rows)
        if len(x) > 1:
            result[..., 0] += 1
        return result

    monkeypatch.setattr(FixedFactor, "product", sloppy)
    with pytest.raises(CheckpointError):
        require_known_answer(integer_lm, answer)


def test_products_in_8_bits_and_in_floating_point_give_one_answer(monkeypatch):
    """A processor that overflows in 8 bits takes the other way, and reads the same streams."""
    with monkeypatch.context() as patched:
        patched.setattr("lm_head.integer_product.eight_bits_are_exact", lambda: False)
        in_float32 = IntegerLM(integer_weights())
    codes, here = some_codes(3, 40), IntegerLM(integer_weights())
    assert torch.equal(evaluate(in_float32, codes, [40]), evaluate(here, codes, [40]))
    assert in_float32.identity == here.identity


def test_a_processor_that_overflows_in_8_bits_is_found_out(monkeypatch):
    """As without VNNI, where two neighbouring products are added in 16 bits."""

    def saturating(x, factors):
        shifted, weights = x.int() + 128, factors.t().int()  # oneDNN multiplies unsigned by signed bytes
        pairs = (shifted[:, None, ::2] * weights[None, :, ::2]) + (shifted[:, None, 1::2] * weights[None, :, 1::2])
        return pairs.clamp(-(2**15), 2**15 - 1).sum(dim=-1) - 128 * weights.sum(dim=-1)

    monkeypatch.setattr("lm_head.integer_product.eight_bit_product", saturating)
    assert not eight_bits_are_exact.__wrapped__()


@pytest.mark.parametrize("change", [{"layout": "delay"}, {"text": True}], ids=str)
def test_models_without_an_integer_form_are_refused(change):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(CheckpointError, match="integer form"):
        IntegerLM(quantize(TokenLM(config), torch.ones(3, 8)))
