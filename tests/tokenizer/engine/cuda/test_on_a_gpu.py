"""The same on a CUDA device: graphs are captured, kernels are compiled, and nothing of it shows in the results."""

import threading
import warnings

import pytest
import torch

from tests.conftest import make_codec, speech_like, tiny_spec
from tests.tokenizer.streaming import noise
from tokenizer import Codec, load_codec
from tokenizer.engine.cuda import residual_unit
from tokenizer.engine.cuda.device import CudaRecorder
from tokenizer.engine.cuda.graph_cache import GraphCache
from tokenizer.presets import PRESETS
from tokenizer.stream_state import split_state, stack_states

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("error")]  # a part that fails its check is a failed test


def wide_codec():
    """EnCodec's layers and widths, with random weights: every kernel is in it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Codec(PRESETS["encodec_24khz"]).eval().requires_grad_(requires_grad=False)
        codec.quantizer.set_codebooks(torch.randn_like(codec.quantizer.codebooks))
    return codec.to("cuda")


STREAMABLE = ["encodec", "seanet", "mirrored", "patch"]


@pytest.fixture(scope="module", params=[*STREAMABLE, "segmented"])
def plain(request):
    codec = wide_codec() if request.param == "encodec" else make_codec(tiny_spec(request.param))
    return codec.to("cuda")


@pytest.fixture
def eager(plain):
    codec = plain.with_precision("fast")
    assert codec.computed_by.startswith("cuda, bfloat16")
    codec._engine.graphs.works = False
    return codec


@pytest.fixture
def graphed(plain):
    codec = plain.with_precision("fast")
    assert "graphs" in codec.computed_by
    codec._engine.graphs._calls_before = 0
    return codec


def test_everything_that_is_installed_is_used():
    name = wide_codec().with_precision("fast").computed_by
    assert name == "cuda, bfloat16, graphs" + (", triton" if residual_unit.find_kernel() else "")


@pytest.mark.parametrize("rows", [1, 4])  # no rows are added, so that libraries choose the same algorithms
def test_graphs_give_exactly_what_torch_gives(plain, eager, graphed, rows):
    waveform = 0.3 * noise(rows, plain.spec.channels, 16 * plain.spec.hop_length + 3)
    expected = eager.encode(waveform)
    for _ in range(3):
        assert torch.equal(graphed.encode(waveform).codes, expected.codes)
        assert torch.equal(graphed.decode(expected), eager.decode(expected))
    assert len(graphed._engine.graphs) > 0
    assert "graphs" in graphed.computed_by


@pytest.mark.parametrize("plain", STREAMABLE, indirect=True)
def test_streams_of_graphs_are_those_of_torch(plain, eager, graphed):
    """Step by step, with rows that are added and taken away again."""
    codes = torch.randint(0, 16, (5, 4, 24), generator=torch.Generator().manual_seed(1)).cuda()
    sound = []
    for codec in (eager, graphed):
        state, pieces = codec.decode_state(5), []
        for chunk in codes.split(4, dim=2):
            y, state = codec.decode_step(chunk, state)
            pieces.append(y)
        y, _ = codec.decode_step(codes[:2, :, :4], stack_states(split_state(state)[1:3]))
        sound.append(torch.cat([*(piece[1:3] for piece in pieces), y], dim=-1))
    assert (sound[1] - sound[0]).norm() < 0.02 * sound[0].norm()


def test_bfloat16_keeps_the_sound(plain, graphed):
    waveform = 0.3 * noise(2, plain.spec.channels, 40 * plain.spec.hop_length)
    encoded = plain.encode(waveform)
    expected, y = plain.decode(encoded), graphed.decode(encoded)
    assert (y - expected).norm() < 0.03 * expected.norm()  # 30 dB


def test_plain_and_exact_stay_float32_in_torch(plain):
    waveform = 0.3 * noise(2, plain.spec.channels, 20 * plain.spec.hop_length)
    exact = plain.with_precision("exact")
    assert exact.computed_by == "torch"
    assert torch.equal(exact.encode(waveform).codes, plain.encode(waveform).codes)


def test_many_frames_have_the_codes_of_float32():
    """Through the search in bfloat16 parts, with latents of the trained encoder."""
    codec = load_codec("speech_24khz").to("cuda")
    fast = codec.with_precision("fast")
    assert fast.computed_by.startswith("cuda")
    with torch.inference_mode():
        latents = codec.encoder(torch.from_numpy(speech_like(30.0))[None, None].cuda())
        codes = fast._engine.networks.quantizer.encode(latents, 16)
        assert (codes == codec.quantizer.encode(latents, 16)).float().mean() > 0.9999


def test_a_capture_that_fails_leaves_torch():
    """Waiting for the device cannot be captured."""
    cache = GraphCache(CudaRecorder(torch.device("cuda", 0)), calls_before=0)

    def waits(inputs):
        torch.cuda.synchronize()
        return [inputs[0] + 1], None

    x = noise(2, 3).cuda()
    with pytest.warns(RuntimeWarning, match="graphs are off"):
        (y,), _ = cache.run("waits", waits, [x])
    assert torch.equal(y, x + 1)
    assert not cache.works
    assert torch.equal(cache.run("waits", waits, [x])[0][0], x + 1)
    assert torch.equal(x * 2, x + x)  # the device goes on


def test_threads_on_streams_of_their_own_share_graphs():
    cache = GraphCache(CudaRecorder(torch.device("cuda", 0)), calls_before=0)

    def scaled(inputs):
        return [(inputs[0] @ inputs[0].transpose(1, 2)).sum(dim=2)], None

    wrong = []

    def worker(seed):
        with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
            x = torch.randn(8, 200, 200, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
            expected = scaled([x])[0][0]
            for _ in range(100):
                y = cache.run("scaled", scaled, [x])[0][0]
                if not torch.allclose(y, expected, rtol=1e-3, atol=1e-2):
                    wrong.append(seed)

    threads = [threading.Thread(target=worker, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.works


def test_more_shapes_than_graphs():
    """Memory of graphs that go is given back."""
    cache = GraphCache(CudaRecorder(torch.device("cuda", 0)), capacity=2, calls_before=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width in range(1, 12):
            x = noise(2, width).cuda()
            assert torch.equal(cache.run("twice", lambda inputs: ([2 * inputs[0]], None), [x])[0][0], 2 * x)
    assert len(cache) == 2
