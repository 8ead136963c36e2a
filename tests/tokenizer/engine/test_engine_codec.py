"""A codec with a precision is the same codec: its laws hold, and exact codes are those of the torch modules."""

import copy
import pickle

import pytest
import torch

from tests.conftest import make_codec, speech_like, tiny_spec
from tests.tokenizer.streaming import noise
from tokenizer import Encoded, load_codec
from tokenizer.stream_state import select_streams, split_state, stack_states

KINDS = ["seanet", "mirrored", "segmented", "patch"]


@pytest.fixture(params=KINDS)
def codec(request, engine):
    """A tiny codec of each kind that the engine runs, in torch."""
    return make_codec(tiny_spec(request.param))


@pytest.fixture(params=["seanet", "mirrored", "patch"])
def streaming_codec(request, engine):
    """Those that stream, with the engine."""
    return make_codec(tiny_spec(request.param)).with_precision("exact")


@pytest.mark.parametrize("num_samples", [1, 77, 160, 3001])
def test_exact_codes_are_the_plain_ones(codec, num_samples):
    """Encoding and decoding of any length, from one sample on."""
    waveform = 0.3 * noise(2, codec.spec.channels, num_samples)
    exact = codec.with_precision("exact")
    assert exact.computed_by != "torch"
    expected, encoded = codec.encode(waveform), exact.encode(waveform)
    assert torch.equal(encoded.codes, expected.codes)
    torch.testing.assert_close(exact.decode(expected), codec.decode(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_batches_of_different_lengths_have_the_codes_of_each_alone(codec, precision):
    """Neighbours and padding change nothing."""
    engine = codec.with_precision(precision)
    waveforms = [0.3 * noise(codec.spec.channels, length) for length in (5, 300, 161, 64)]
    for waveform, encoded in zip(waveforms, engine.encode_batch(waveforms), strict=True):
        assert torch.equal(encoded.codes, engine.encode(waveform).codes)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(codec, threads):
    """Rows are shared out among threads; more threads than rows are no mistake."""
    exact = codec.with_precision("exact")
    waveform = 0.3 * noise(2, codec.spec.channels, 900)
    expected = exact.encode(waveform)
    sound = exact.decode(expected)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(exact.encode(waveform).codes, expected.codes)
        torch.testing.assert_close(exact.decode(expected), sound, rtol=0, atol=1e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("chunks", [[8], [3, 50, 1], [400]], ids=str)
def test_streams_equal_whole_files(streaming_codec, chunks):
    """Codes and sound of a stream in chunks of any length are those of the file."""
    waveform = 0.3 * noise(2, 1, 333)
    whole = streaming_codec.encode(waveform)
    state, pieces, position = streaming_codec.encode_state(2), [], 0
    while position < 333:
        length = chunks[len(pieces) % len(chunks)]
        codes, state = streaming_codec.encode_step(waveform[..., position : position + length], state)
        pieces.append(codes)
        position += length
    pieces.append(streaming_codec.encode_flush(state)[0])
    assert torch.equal(torch.cat(pieces, dim=-1), whole.codes)
    torch.testing.assert_close(
        _decoded(streaming_codec, whole.codes)[..., :333], streaming_codec.decode(whole), rtol=0, atol=1e-5
    )


def test_states_stack_and_split(streaming_codec):
    """Streams that joined a batch, changed places and left it go on as if they had been alone."""
    codes = torch.randint(0, 16, (3, 4, 40), generator=torch.Generator().manual_seed(3))
    alone = [_decoded(streaming_codec, codes[row : row + 1]) for row in range(3)]
    states = [streaming_codec.decode_state() for _ in range(3)]
    heads = [[], [], []]
    for row, state in enumerate(states):
        y, states[row] = streaming_codec.decode_step(codes[row : row + 1, :, :10], state)
        heads[row].append(y)
    order = [2, 0, 1]
    y, stacked = streaming_codec.decode_step(codes[order, :, 10:20], stack_states([states[row] for row in order]))
    for position, row in enumerate(order):
        heads[row].append(y[position : position + 1])
    y, stacked = streaming_codec.decode_step(codes[[0, 2], :, 20:30], select_streams(stacked, [1, 0]))
    for position, row in enumerate([0, 2]):
        heads[row].append(y[position : position + 1])
    y, first = streaming_codec.decode_step(codes[:1, :, 30:], split_state(stacked)[0])
    heads[0] += [y, streaming_codec.decode_flush(first)[0]]
    torch.testing.assert_close(torch.cat(heads[0], dim=-1), alone[0], rtol=0, atol=1e-5)
    for row in (1, 2):
        known = torch.cat(heads[row], dim=-1)
        torch.testing.assert_close(known, alone[row][..., : known.shape[-1]], rtol=0, atol=1e-5)


def test_a_precision_is_another_view_of_the_same_weights(codec):
    """Identity, card and default stay; the codec that was asked is not changed."""
    exact = codec.with_precision("exact")
    assert (codec.precision, exact.precision) == ("plain", "exact")
    assert exact.sha256 == codec.sha256
    assert codec.computed_by == "torch"
    assert next(exact.parameters()) is next(codec.parameters())
    assert exact.with_precision("plain").computed_by == "torch"
    with pytest.raises(ValueError, match="'half' is not one of plain, exact, fast"):
        codec.with_precision("half")


def pickled(codec):
    """As Ray sends it."""
    return pickle.loads(pickle.dumps(codec))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("travel", [copy.deepcopy, pickled])
def test_codecs_travel_without_their_engine(codec, travel):
    """Compiled kernels point into memory: where the codec arrives, they are made anew."""
    exact = codec.with_precision("exact")
    waveform = 0.3 * noise(1, codec.spec.channels, 160)
    codes = exact.encode(waveform).codes
    arrived = travel(exact)
    assert arrived.precision == "exact"
    assert torch.equal(arrived.encode(waveform).codes, codes)


def test_a_codec_that_the_engine_cannot_run_runs_in_torch():
    """A precision is a wish: DAC's codes are those of torch."""
    codec = make_codec(tiny_spec("dac"))
    exact = codec.with_precision("exact")
    waveform = 0.3 * noise(1, 1, 99)
    assert exact.computed_by == "torch"
    assert torch.equal(exact.encode(waveform).codes, codec.encode(waveform).codes)


@pytest.mark.parametrize("level", [1, 4])
def test_fewer_levels_are_the_first_ones(codec, level):
    """As in torch, levels past those asked for are not computed."""
    exact = codec.with_precision("exact")
    kbps = codec.spec.level_kbps * level
    waveform = 0.3 * noise(1, codec.spec.channels, 400)
    assert torch.equal(exact.encode(waveform, bandwidth_kbps=kbps).codes, exact.encode(waveform).codes[:, :level])


def test_the_bundled_codec_has_its_codes(engine):
    """With trained weights, all of the first level and 99.9 % of all codes; its sound is 90 dB above the difference."""
    codec = load_codec("speech_24khz")
    waveform = torch.from_numpy(speech_like(3.0))[None]
    encoded = codec.encode(waveform)
    exact = codec.with_precision("exact")
    codes = exact.encode(waveform).codes
    assert torch.equal(codes[:, 0], encoded.codes[:, 0])
    assert (codes == encoded.codes).float().mean() >= 0.999
    assert _snr_db(codec.decode(encoded), exact.decode(encoded)) > 90


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_stream_of_the_bundled_codec_has_the_bits_of_the_file(engine, precision):
    """A row's sums are the same with any number of other rows: no cut and no neighbour moves a code or a sample."""
    codec = load_codec("speech_24khz").with_precision(precision)
    waveform = torch.from_numpy(speech_like(2.0))[None]
    whole = codec.encode(waveform)
    sound = codec.decode(whole)
    frames, at, state, pieces = whole.codes.shape[-1], 0, codec.decode_state(), []
    for length in (1, 2, 7, 1, 30, 200):
        piece, state = codec.decode_step(whole.codes[..., at : at + length], state)
        pieces.append(piece)
        at = min(at + length, frames)
    pieces.append(codec.decode_flush(state)[0])
    assert at == frames
    assert torch.equal(torch.cat(pieces, dim=-1)[..., : sound.shape[-1]], sound)
    neighbours = [waveform[:, 100:9000], waveform, waveform[:, :700]]
    assert torch.equal(codec.encode_batch(neighbours)[1].codes, whole.codes)
    together = Encoded(whole.codes.expand(5, -1, -1), None, whole.num_samples)
    assert torch.equal(codec.decode(together), sound.expand(5, -1, -1))


def test_the_bundled_codec_in_bfloat(engine):
    """Fast keeps nearly all codes of the first level, and its sound is 35 dB above the difference."""
    codec = load_codec("speech_24khz")
    waveform = torch.from_numpy(speech_like(3.0))[None]
    encoded = codec.encode(waveform)
    fast = codec.with_precision("fast")
    assert (fast.encode(waveform).codes[:, 0] == encoded.codes[:, 0]).float().mean() > 0.9
    assert _snr_db(codec.decode(encoded), fast.decode(encoded)) > 35


def test_silence_has_codes(codec):
    """Rows of zeros, where norms divide by nothing but their epsilon."""
    exact = codec.with_precision("exact")
    waveform = torch.zeros(1, codec.spec.channels, 320)
    encoded = exact.encode(waveform)
    assert torch.equal(encoded.codes, codec.encode(waveform).codes)
    assert bool(torch.isfinite(exact.decode(encoded)).all())


def test_nothing_to_decode_is_nothing(codec):
    """No frames, no samples."""
    exact = codec.with_precision("exact")
    empty = Encoded(
        torch.zeros(1, 4, 0, dtype=torch.int64), codec.encode(torch.zeros(1, codec.spec.channels, 8)).scales, 0
    )
    if codec.spec.segment is None:
        assert exact.decode(empty).shape == (1, codec.spec.channels, 0)
    if codec.streamable:
        assert exact.decode_step(empty.codes, exact.decode_state())[0].shape == (1, codec.spec.channels, 0)


def _decoded(codec, codes):
    state = codec.decode_state(len(codes))
    y, state = codec.decode_step(codes, state)
    return torch.cat([y, codec.decode_flush(state)[0]], dim=-1)


def _snr_db(expected, y):
    return float(10 * torch.log10(expected.square().sum() / (expected - y).square().sum()))
