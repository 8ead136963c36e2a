"""Codecs on the CUDA engine, on a CPU: graphs change nothing, and bfloat16 changes little."""

import warnings

import pytest
import torch

from tests.conftest import make_codec, speech_like, tiny_spec
from tests.tokenizer.engine.cuda.conftest import on_engine
from tests.tokenizer.engine.cuda.replayer import Replayer
from tests.tokenizer.streaming import noise
from tokenizer import load_codec
from tokenizer.engine import Engine, build_engine
from tokenizer.engine.cuda import build_cuda_engine
from tokenizer.networks import Networks
from tokenizer.stream_state import split_state, stack_states

STREAMING = pytest.mark.parametrize("plain", ["seanet", "mirrored", "patch"], indirect=True)
ALL = pytest.mark.parametrize("plain", ["seanet", "mirrored", "segmented", "patch"], indirect=True)


def sound(codec, rows, num_samples):
    return 0.3 * noise(rows, codec.spec.channels, num_samples)


def decoded(codec, codes, chunks):
    """Streams of codes in chunks of so many frames, to their end."""
    state, pieces, position = codec.decode_state(len(codes)), [], 0
    while position < codes.shape[-1]:
        length = chunks[len(pieces) % len(chunks)]
        y, state = codec.decode_step(codes[..., position : position + length], state)
        pieces.append(y)
        position += length
    return torch.cat([*pieces, codec.decode_flush(state)[0]], dim=-1)


def encoded(codec, waveform, chunks):
    state, pieces, position = codec.encode_state(len(waveform)), [], 0
    while position < waveform.shape[-1]:
        length = chunks[len(pieces) % len(chunks)]
        codes, state = codec.encode_step(waveform[..., position : position + length], state)
        pieces.append(codes)
        position += length
    return torch.cat([*pieces, codec.encode_flush(state)[0]], dim=-1)


def snr_db(expected, y):
    return float(10 * torch.log10(expected.square().sum() / (expected - y).square().sum()))


@ALL
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_graphs_give_exactly_what_torch_gives(plain, graphed, eager, rows):
    """Codes and samples of files; five rows are filled up to six."""
    waveform = sound(plain, rows, 1234)
    expected = eager.encode(waveform)
    for _ in range(2):
        assert torch.equal(graphed.encode(waveform).codes, expected.codes)
        assert torch.equal(graphed.decode(expected), eager.decode(expected))
    assert len(graphed._engine.graphs) >= 3
    assert graphed._engine.graphs.works


@STREAMING
@pytest.mark.parametrize("chunks", [[1], [3, 5, 1, 1, 1], [40]], ids=str)
def test_streams_of_graphs_are_exactly_those_of_torch(plain, graphed, eager, chunks):
    """States go in and come out, replay by replay."""
    waveform = sound(plain, 5, 333)
    samples = [8 * chunk + chunk % 3 for chunk in chunks]  # that do not end with frames
    codes = encoded(eager, waveform, samples)
    for _ in range(2):
        assert torch.equal(encoded(graphed, waveform, samples), codes)
        assert torch.equal(decoded(graphed, codes, chunks), decoded(eager, codes, chunks))


@STREAMING
def test_streams_that_take_turns_do_not_hear_each_other(plain, graphed, eager):
    """Two batches share every graph, and each goes on from its own state; so does a state that is used twice."""
    codes = [torch.randint(0, 16, (3, 4, 40), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    expected = [decoded(eager, each, [4]) for each in codes]
    states, pieces = [graphed.decode_state(3), graphed.decode_state(3)], [[], []]
    for position in range(0, 40, 4):
        for stream, each in enumerate(codes):
            chunk, before = each[..., position : position + 4], states[stream]
            y, states[stream] = graphed.decode_step(chunk, before)
            again, _ = graphed.decode_step(chunk, before)
            assert torch.equal(again, y)
            pieces[stream].append(y)
    for stream, whole in enumerate(expected):
        tail = graphed.decode_flush(states[stream])[0]
        assert torch.equal(torch.cat([*pieces[stream], tail], dim=-1), whole)


@STREAMING
def test_streams_join_and_leave_batches(plain, graphed):
    """As a service has it: where one stands in a batch, and beside whom, changes rounding at most."""
    codes = torch.randint(0, 16, (3, 4, 30), generator=torch.Generator().manual_seed(3))
    alone = [decoded(graphed, codes[row : row + 1], [10]) for row in range(3)]
    states = [graphed.decode_step(codes[row : row + 1, :, :10], graphed.decode_state())[1] for row in range(3)]
    y, together = graphed.decode_step(codes[[2, 0], :, 10:20], stack_states([states[2], states[0]]))
    z, _ = graphed.decode_step(codes[:1, :, 20:], split_state(together)[1])
    first = alone[0].shape[-1] - 80 - z.shape[-1] if plain.start_frames else 80
    assert snr_db(alone[0][..., first : first + y.shape[-1]], y[1:]) > 30
    assert snr_db(alone[2][..., first : first + y.shape[-1]], y[:1]) > 30
    assert snr_db(alone[0][..., first + 80 : first + 80 + z.shape[-1]], z) > 30


@STREAMING
@pytest.mark.parametrize("num_samples", [1, 8, 77, 160, 1001])
def test_streams_are_as_long_as_in_float32(plain, graphed, num_samples):
    """However short: mirrored starts, held samples and flushes are those of the plain codec."""
    waveform = sound(plain, 2, num_samples)
    for chunks in ([7], [8], [400]):
        assert encoded(graphed, waveform, chunks).shape == encoded(plain, waveform, chunks).shape
    expected = plain.encode(waveform)
    assert graphed.encode(waveform).codes.shape == expected.codes.shape
    assert graphed.decode(expected).shape == waveform.shape
    assert decoded(graphed, expected.codes, [3]).shape == decoded(plain, expected.codes, [3]).shape


@ALL
def test_bfloat16_keeps_the_sound_and_most_codes(plain, eager):
    waveform = sound(plain, 2, 4000)
    expected = plain.encode(waveform)
    assert (eager.encode(waveform).codes[:, 0] == expected.codes[:, 0]).float().mean() > 0.9
    assert snr_db(plain.decode(expected), eager.decode(expected)) > 30


def test_the_bundled_codec_in_bfloat16(without_triton):
    codec = load_codec("speech_24khz")
    waveform = torch.from_numpy(speech_like(3.0))[None]
    fast, expected = on_engine(codec, Replayer()), codec.encode(waveform)
    assert (fast.encode(waveform).codes[:, 0] == expected.codes[:, 0]).float().mean() > 0.98
    assert snr_db(codec.decode(expected), fast.decode(expected)) > 45


@ALL
def test_the_codec_it_was_made_from_stays_in_float32(plain, without_triton):
    waveform = sound(plain, 2, 800)
    before = plain.encode(waveform)
    samples = plain.decode(before)
    on_engine(plain, Replayer()).encode(waveform)
    assert {tensor.dtype for tensor in plain.state_dict().values()} == {torch.float32}
    assert torch.equal(plain.encode(waveform).codes, before.codes)
    assert torch.equal(plain.decode(before), samples)


@pytest.mark.parametrize("plain", ["mirrored"], indirect=True)
def test_its_name_says_what_it_runs_on(plain, graphed):
    assert graphed.computed_by == "cuda, bfloat16, graphs"
    failing = on_engine(plain, Replayer(RuntimeError("no capture")))
    with pytest.warns(RuntimeWarning, match="no capture"):
        codes = failing.encode(sound(plain, 2, 400)).codes
    assert failing.computed_by == "cuda, bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(failing.encode(sound(plain, 2, 400)).codes, codes)


@pytest.mark.parametrize("plain", ["patch"], indirect=True)
def test_long_chunks_are_no_graphs(plain, graphed, monkeypatch):
    """They keep a device busy as they are, and their graphs would keep its memory."""
    monkeypatch.setattr("tokenizer.engine.cuda.network.GRAPH_FRAMES", 20)
    graphed.decode(plain.encode(sound(plain, 2, 8 * 11)))
    assert len(graphed._engine.graphs) == 0
    graphed.decode(plain.encode(sound(plain, 2, 8 * 10)))
    assert len(graphed._engine.graphs) == 1


@pytest.mark.parametrize("part", ["encoder", "decoder", "search"])
@pytest.mark.parametrize("plain", ["seanet"], indirect=True)
def test_an_engine_that_is_wrong_is_not_used(plain, without_triton, monkeypatch, part):
    """Torch in float32 stays, with a warning that names what is wrong."""
    place = {
        "encoder": "bfloat_layers.SoundConvolution.forward",
        "decoder": "bfloat_layers.ProductUpsampling.step",
        "search": "quantizer.CudaQuantizer._probable",
    }[part]
    module, name, method = place.split(".")
    owner = getattr(__import__(f"tokenizer.engine.cuda.{module}", fromlist=[name]), name)
    real = getattr(owner, method)

    def wrong(self, *arguments):
        result = real(self, *arguments)
        if part == "encoder":
            return result.flip(1)
        return (result[0] + 1 if part == "decoder" else (result[0] + 1) % 16, result[1])

    monkeypatch.setattr(owner, method, wrong)
    networks = Networks(plain.encoder, plain.decoder, plain.quantizer)
    with pytest.warns(RuntimeWarning, match=f"computes in float32: the {part} is"):
        assert build_cuda_engine(networks, plain.spec, Replayer()) is None


@pytest.mark.parametrize("plain", ["seanet"], indirect=True)
def test_an_engine_that_raises_is_not_used(plain, without_triton, monkeypatch):
    def refuses(*_):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nat line 7")

    monkeypatch.setattr("tokenizer.engine.cuda.bfloat_layers.HalfLstm.step", refuses)
    networks = Networks(plain.encoder, plain.decoder, plain.quantizer)
    with pytest.warns(RuntimeWarning, match=r"CUDNN_STATUS_NOT_SUPPORTED$"):
        assert build_cuda_engine(networks, plain.spec, Replayer()) is None


def test_codecs_without_a_form_in_bfloat16_have_no_engine(without_triton):
    codec = make_codec(tiny_spec("dac"))
    networks = Networks(codec.encoder, codec.decoder, codec.quantizer)
    assert build_cuda_engine(networks, codec.spec, Replayer()) is None


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_other_devices_compute_in_torch(precision):
    """Neither the kernels of a CPU nor those of CUDA are for them."""
    codec = make_codec(tiny_spec("seanet")).to("meta")
    networks = Networks(codec.encoder, codec.decoder, codec.quantizer)
    assert build_engine(networks, codec.spec, precision) == Engine(networks, "torch")


def test_a_codec_that_moves_gets_another_engine():
    """What was built for one device does not run on another."""
    codec = make_codec(tiny_spec("seanet")).with_precision("fast")
    codec.encode(sound(codec, 1, 80))
    codec.to("meta")
    assert codec.computed_by == "torch"
