"""States of many streams: stacked, split and reset by row."""

import pytest
import torch

from tests.conftest import make_codec, tiny_spec
from tokenizer.stream_state import batch_size, reset_streams, select_streams, split_state, stack_states


@pytest.fixture(params=["seanet", "mirrored", "patch", "dac"])
def codec(request):
    """Every family that streams."""
    return make_codec(tiny_spec(request.param))


def encode_all(codec, chunks, state):
    """Codes of chunks, one after another, and the state after them."""
    pieces = []
    for chunk in chunks:
        codes, state = codec.encode_step(chunk, state)
        pieces.append(codes)
    return torch.cat(pieces, dim=-1), state


def test_streams_join_and_leave_a_batch(codec, waveform):
    """Two streams run alone, then side by side, then alone again: each as if it had been alone all the time."""
    first, second = waveform[None, :, :2400], waveform[None, :, 9000:11400]
    expected = [encode_all(codec, stream.split(800, -1), codec.encode_state())[0] for stream in (first, second)]
    begun = [codec.encode_step(stream[..., :800], codec.encode_state()) for stream in (first, second)]
    together, state = codec.encode_step(
        torch.cat([first, second])[..., 800:1600], stack_states([state for _, state in begun])
    )
    assert batch_size(state) == 2
    ended = [
        codec.encode_step(stream[..., 1600:], alone)[0]
        for stream, alone in zip((first, second), split_state(state), strict=True)
    ]
    for row in range(2):
        pieces = [begun[row][0], together[row : row + 1], ended[row]]
        assert torch.equal(torch.cat(pieces, dim=-1), expected[row])


def test_decoding_streams_join_and_leave_a_batch(codec, waveform):
    """The same for streams of codes."""
    codes = [codec.encode(part).codes for part in (waveform[:, :2400], waveform[:, 9000:11400])]
    begun = [codec.decode_step(one[..., :100], codec.decode_state()) for one in codes]
    together, state = codec.decode_step(torch.cat(codes)[..., 100:200], stack_states([state for _, state in begun]))
    for row, alone in enumerate(split_state(state)):
        rest, ended = codec.decode_step(codes[row][..., 200:], alone)
        pieces = [begun[row][0], together[row : row + 1], rest, codec.decode_flush(ended)[0]]
        whole, state = codec.decode_step(codes[row], codec.decode_state())
        expected = torch.cat([whole, codec.decode_flush(state)[0]], dim=-1)
        torch.testing.assert_close(torch.cat(pieces, dim=-1), expected, atol=1e-5, rtol=0)


def test_a_row_starts_anew_while_the_others_go_on(waveform):
    """Where nothing is held back at the start, one stream of a batch can be exchanged."""
    codec = make_codec(tiny_spec("patch"))
    parts = torch.stack([waveform[:, :1600], waveform[:, 9000:10600]])
    _, state = codec.encode_step(parts, codec.encode_state(2))
    state = reset_streams(state, [1], codec.encode_state())
    codes, _ = codec.encode_step(parts, state)
    assert torch.equal(codes[1:], codec.encode(parts[1]).codes)
    assert torch.equal(codes[:1], codec.encode(torch.cat([parts[0], parts[0]], dim=-1)).codes[..., 200:])
    decoding = codec.decode_step(codes, codec.decode_state(2))[1]
    samples, _ = codec.decode_step(codes, reset_streams(decoding, [0], codec.decode_state()))
    torch.testing.assert_close(samples[:1], codec.decode_step(codes[:1], codec.decode_state())[0], atol=1e-5, rtol=0)


def test_streams_at_different_points_are_not_mixed(waveform):
    """Inside a frame, or at a mirrored start: the error says what can be stacked."""
    codec = make_codec(tiny_spec("mirrored"))
    _, begun = codec.encode_step(waveform[None, :, :800], codec.encode_state())
    with pytest.raises(ValueError, match="streams at their start"):
        stack_states([begun, codec.encode_state()])
    _, inside = codec.encode_step(waveform[None, :, :3], begun)
    with pytest.raises(ValueError, match="whole frames"):
        stack_states([begun, inside])
    with pytest.raises(ValueError, match="no states"):
        stack_states([])
    both = stack_states([begun, begun])
    with pytest.raises(ValueError, match="cannot share a batch"):
        reset_streams(both, [0], codec.encode_state())


def test_selecting_keeps_the_order_asked_for(codec):
    """Rows can be repeated and permuted, and a state that was cut out keeps no memory of the others."""
    state = codec.encode_step(torch.randn(3, 1, 800), codec.encode_state(3))[1]
    swapped = select_streams(state, [2, 0])
    assert batch_size(swapped) == 2
    back = stack_states([split_state(state)[2], split_state(state)[0]])
    torch.testing.assert_close(swapped.network, back.network)
    assert swapped.pending.untyped_storage().nbytes() == swapped.pending.numel() * 4
