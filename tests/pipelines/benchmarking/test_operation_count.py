"""Counted work is that of the networks, and limits follow from it and from the ceilings."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lm_head import LMConfig, TokenLM
from pipelines.benchmarking.machine_ceilings import Ceilings, measure_ceilings
from pipelines.benchmarking.operation_count import LayerWork, codec_work, lm_work, total_macs
from pipelines.benchmarking.speed_floor import ceilings_line, floor_s, layer_floor_s, limit, limit_table
from tests.conftest import make_codec, tiny_spec
from tokenizer.presets import PRESETS

CEILINGS = Ceilings(threads=1, fp32_flops=2e9, bf16_flops=8e9, int8_flops=16e9, memory_bytes=1e9, cache_bytes=4e9)


@pytest.mark.parametrize(
    ("name", "encode", "decode"),
    [("encodec_24khz", 1.490 + 0.157, 1.490), ("encodec_48khz", 3.34, 3.02)],
)
def test_encodec_has_the_published_number_of_multiplications(name, encode, decode):
    """In GMAC for a second of audio at 16 levels; counted by hand from the paper's sizes for 24 kHz."""
    spec = PRESETS[name]
    assert total_macs(codec_work(spec, "encode", 16)) == pytest.approx(encode * 1e9, rel=0.002)
    assert total_macs(codec_work(spec, "decode", 16)) == pytest.approx(decode * 1e9, rel=0.002)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_windows_multiplied_together_save_three_eighths_or_half(direction):
    """By hand for EnCodec at 24 kHz: kernels of two strides (2, 4, 5 and 8), and those of three taps."""
    strided = 98.304e6 + 196.608e6 + 196.608e6 + 157.2864e6
    residual = 36.864e6 + 73.728e6 + 73.728e6 + 58.9824e6
    saved = sum(layer.saved_macs for layer in codec_work(PRESETS["encodec_24khz"], direction, 16))
    assert saved == pytest.approx(strided * 3 / 8 + residual / 2)


@pytest.mark.parametrize("kind", ["seanet", "mirrored", "segmented", "patch", "dac"])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_the_count_is_that_of_torch(kind, direction):
    """Torch's own counter sees products and convolutions; it knows no LSTM and takes the taps for additions."""
    codec = make_codec(tiny_spec(kind))
    spec = codec.spec
    frames = 20
    samples, seconds = frames * spec.hop_length, frames / float(spec.frame_rate)
    network = codec.encoder if direction == "encode" else codec.decoder
    shape = (spec.channels, samples) if direction == "encode" else (spec.latent_dim, frames)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    if spec.segment is not None:  # what overlaps is computed twice
        seconds *= spec.segment.stride / spec.segment.length
    kept = [w for w in codec_work(spec, direction, 4) if not w.name.endswith((".taps", "lstm", "quantizer"))]
    lstm = sum(w.macs for w in codec_work(spec, direction, 4) if w.name.endswith("lstm")) * seconds
    assert counter.get_total_flops() in (
        pytest.approx(2 * total_macs(kept) * seconds),
        pytest.approx(2 * (total_macs(kept) * seconds + lstm)),
    )


def test_a_language_model_costs_its_weights_for_each_frame():
    """Every matrix but the embeddings once a frame, and attention over the frames that it has seen."""
    config = LMConfig(num_codebooks=4, codebook_size=16, dim=32, num_layers=2, num_heads=4, hidden_dim=64)
    lm = TokenLM(config)
    weights = sum(p.numel() for name, p in lm.named_parameters() if name.endswith("weight") and p.dim() > 1)
    for frames, seen in ((1, 1.0), (3, 2.0)):
        layers = lm_work(config, 4, frames, frame_rate=75.0)
        assert total_macs(layers) == pytest.approx(75 * (weights + config.num_layers * 2 * seen * config.dim))
        assert sum(layer.step_weights for layer in layers) == pytest.approx(75 * weights)


def test_a_layer_takes_the_longer_of_multiplying_and_reading():
    layer = LayerWork("lstm", macs=1e9, step_weights=2e9)
    assert layer_floor_s(layer, CEILINGS, "fp32") == pytest.approx(1.5)  # 6 GB of weights at 4 GB/s
    assert layer_floor_s(layer, CEILINGS, "half") == pytest.approx(0.5)  # 2 GB
    assert layer_floor_s(layer, CEILINGS, "fp32", batch_size=8) == pytest.approx(1.0)  # 2 GFLOP at 2 GFLOP/s
    assert layer_floor_s(replace(layer, saved_macs=0.75e9), CEILINGS, "fp32", batch_size=16) == pytest.approx(0.25)
    assert layer_floor_s(LayerWork("io", memory_bytes=3e9), CEILINGS, "fp32") == pytest.approx(3.0)


def test_a_search_is_in_bytes_in_any_precision():
    """What it finds is compared again in float32, so that exact codes need no more."""
    search = LayerWork("quantizer", macs=1e9, in_bytes=True)
    assert layer_floor_s(search, CEILINGS, "fp32") == layer_floor_s(search, CEILINGS, "half")
    assert layer_floor_s(search, CEILINGS, "half") == pytest.approx(2e9 / CEILINGS.int8_flops)
    assert layer_floor_s(search, CEILINGS, "half") < layer_floor_s(replace(search, in_bytes=False), CEILINGS, "fp32")
    for direction, names in (("encode", ["quantizer"]), ("decode", [])):
        assert [work.name for work in codec_work(tiny_spec("patch"), direction, 4) if work.in_bytes] == names


def test_layers_follow_one_another():
    layers = [LayerWork("a", macs=1e9), LayerWork("b", step_weights=1e9)]
    assert floor_s(layers, CEILINGS, "fp32") == pytest.approx(1.0 + 0.75)
    assert limit(layers, CEILINGS, "fp32") == pytest.approx(1 / 1.75)


def test_a_narrow_precision_that_is_slower_is_not_used():
    slow = replace(CEILINGS, bf16_flops=1e9, int8_flops=1e9)
    assert [slow.flops(precision) for precision in ("fp32", "half", "int8")] == [2e9] * 3


def test_integers_of_16_bits_go_at_half_the_rate_of_bytes():
    """Where bfloats are slow, "fast" multiplies those."""
    assert replace(CEILINGS, bf16_flops=1e9, int8_flops=6e9).flops("half") == 3e9


def test_ceilings_are_measured_and_the_better_of_two_counts():
    ceilings = measure_ceilings(1, seconds=0.005)
    assert min(ceilings.fp32_flops, ceilings.bf16_flops, ceilings.int8_flops) > 1e8
    assert min(ceilings.memory_bytes, ceilings.cache_bytes) > 1e7
    best = ceilings.at_best(replace(ceilings, fp32_flops=1e15, memory_bytes=1.0))
    assert (best.fp32_flops, best.memory_bytes) == (1e15, ceilings.memory_bytes)
    assert "1 thread(s)" in ceilings_line(best)


def test_the_table_ends_with_the_sum_and_the_limit():
    layers = [LayerWork("a", macs=1e9), LayerWork("b", macs=3e9, saved_macs=1e9)]
    table = limit_table(layers, CEILINGS)
    cells = [list(column.cells) for column in table.columns]
    assert cells[2] == ["1000.00", "2000.00", "3000.00", ""]
    assert cells[3] == ["33.3%", "66.7%", "100.0%", ""]
    assert cells[4][-2:] == ["3000.000", "0"]  # ms, and a quarter of real time
