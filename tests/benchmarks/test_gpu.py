"""The GPU benchmark, on the CPU with a tiny codec: what it computes, what it says, and that it knows where it is."""

import time

import pytest
import torch

from benchmarks.gpu import (
    GpuBench,
    Speed,
    StepLatency,
    _median_s,
    main,
    make_codec,
    measure_speeds,
    measure_steps,
    networks_in,
    peak_flops,
    summary,
)
from pipelines.benchmarking.operation_count import codec_work, total_macs
from tests.conftest import make_codec as make_tiny
from tests.conftest import tiny_spec

SETTINGS = GpuBench(
    device="cpu",
    seconds=0.02,
    batch_sizes=(1, 2),
    rounds=1,
    warm_ups=1,
    peak_size=64,
    streams=(1, 2, 4),
    chunk_frames=(1, 3),
)


@pytest.fixture(scope="module", params=["mirrored", "patch"])
def codec(request):
    return make_tiny(tiny_spec(request.param))


def test_without_a_gpu_nothing_is_measured_and_the_exit_code_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_with_a_gpu_everything_is_measured(tmp_path):
    assert main(["--batch", "1", "--seconds", "1", "--rounds", "1", "--json", str(tmp_path / "gpu.json")]) == 0


def test_float32_gives_the_codes_and_samples_of_the_codec(codec):
    waveform = torch.randn(2, 1, 400, generator=torch.Generator().manual_seed(0)) * 0.3
    encode, decode = networks_in(codec, "fp32")
    expected = codec.encode(waveform)
    with torch.inference_mode():
        assert torch.equal(encode(waveform), expected.codes)
        assert torch.allclose(decode(expected.codes), codec.decode(expected), atol=1e-5)


def test_bfloat16_leaves_the_codec_as_it_is(codec):
    waveform = torch.randn(1, 1, 400, generator=torch.Generator().manual_seed(0)) * 0.3
    before = codec.encode(waveform)
    encode, decode = networks_in(codec, "bf16")
    with torch.inference_mode():
        codes = encode(waveform)
        assert codes.shape == before.codes.shape
        assert decode(codes).dtype == torch.float32
    assert torch.equal(codec.encode(waveform).codes, before.codes)


def test_fast_is_the_engine_with_all_codebooks(codec):
    waveform = torch.randn(2, 1, 400, generator=torch.Generator().manual_seed(0)) * 0.3
    encode, decode = networks_in(codec, "fast")
    fast = codec.with_precision("fast")
    expected = fast.encode(waveform)
    assert torch.equal(encode(waveform), expected.codes)
    assert torch.equal(decode(expected.codes), fast.decode(expected))


def test_warm_ups_are_not_measured():
    """The first calls are slow where kernels are compiled and graphs recorded."""
    calls = []

    def call():
        calls.append(None)
        time.sleep(0.05 if len(calls) <= 3 else 0.0)

    assert _median_s(call, GpuBench(device="cpu", rounds=3, warm_ups=3)) < 0.04
    assert len(calls) == 6


def test_every_direction_precision_and_batch_has_a_speed(codec):
    speeds = list(measure_speeds(codec, SETTINGS))
    assert [(row.precision, row.batch_size, row.direction) for row in speeds] == [
        (precision, batch, direction)
        for precision in ("fp32", "tf32", "bf16", "fast")
        for batch in (1, 2)
        for direction in ("encode", "decode")
    ]
    work = 2 * total_macs(codec_work(codec.spec, "encode", 4))
    first, second = speeds[0], speeds[2]
    assert first.share_of_peak / first.x_real_time == pytest.approx(second.share_of_peak / second.x_real_time)
    assert work / (first.share_of_peak / first.x_real_time) > 1e6  # the peak that the shares are of


def test_what_a_device_cannot_do_ends_one_precision(codec, monkeypatch, capsys):
    """A call of many minutes gives what it can, and says what it could not."""

    def networks(codec, precision):
        def refuse(_):
            raise RuntimeError("not implemented for 'BFloat16'\nmore")

        return (refuse, refuse) if precision == "bf16" else networks_in(codec, precision)

    monkeypatch.setattr("benchmarks.gpu.networks_in", networks)
    speeds = list(measure_speeds(codec, SETTINGS))
    assert {row.precision for row in speeds} == {"fp32", "tf32", "fast"}
    assert capsys.readouterr().err == "bf16 ends before batch 1: not implemented for 'BFloat16'\n"


def test_precisions_are_put_back(codec):
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    list(measure_speeds(codec, GpuBench(device="cpu", seconds=0.01, batch_sizes=(1,), rounds=1, peak_size=8)))
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == flags


def test_steps_end_with_the_first_number_of_streams_that_is_too_slow(codec):
    rows = list(measure_steps(codec, SETTINGS))
    assert list(dict.fromkeys((row.precision, row.chunk_frames) for row in rows)) == [
        ("fp32", 1),
        ("fp32", 3),
        ("fast", 1),
        ("fast", 3),
    ]
    for precision, frames in dict.fromkeys((row.precision, row.chunk_frames) for row in rows):
        own = [row for row in rows if (row.precision, row.chunk_frames) == (precision, frames)]
        assert [row.streams for row in own] == [1, 2, 4][: len(own)]
        assert all(row.real_time for row in own[:-1])
        assert all(row.p50_ms <= row.p99_ms for row in own)


def test_the_summary_has_the_best_of_each_and_the_goal():
    speeds = [
        Speed("encode", "fp32", 1, 100.0, 0.1),
        Speed("encode", "bf16", 8, 10_000.0, 0.25),
        Speed("decode", "bf16", 8, 9_000.0, 0.2),
        Speed("encode", "fast", 8, 12_000.0, 0.3),
    ]
    steps = [
        StepLatency("fp32", 1, 1, 2.0, 3.0, True),
        StepLatency("fp32", 1, 2, 4.0, 5.0, True),
        StepLatency("fp32", 1, 4, 20.0, 30.0, False),
        StepLatency("fast", 1, 1, 0.5, 0.6, True),
    ]
    said = summary(speeds, steps).splitlines()
    assert said[0] == "encode: 12,000x real time, fast, batch 8, 30.0% of the peak"
    assert said[2] == "goal: 20,000x to encode in bf16; 60% of it"
    assert said[3] == "fp32, 1 frame(s) a step: 2.00 ms alone, 2 streams in real time"
    assert said[4] == "fast, 1 frame(s) a step: 0.50 ms alone, 1 streams in real time"


def test_a_preset_gets_weights_and_a_codec_of_whole_files_is_refused():
    codec = make_codec("encodec_24khz")
    assert codec.quantizer.codebooks.std() > 0.5
    with pytest.raises(ValueError, match="no streams"):
        make_codec("encodec_48khz")


def test_the_peak_is_a_positive_rate():
    assert peak_flops("bf16", SETTINGS) > 0
