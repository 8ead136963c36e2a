"""States as one matrix: nothing of a state is lost, and streams stack and split as they do in torch."""

import copy
import pickle

import pytest
import torch

from tests.conftest import make_codec, tiny_spec
from tests.tokenizer.streaming import noise
from tokenizer.engine.cuda.packed_state import packed
from tokenizer.stream_state import DecodeState, batch_size, select_streams, split_state, stack_states
from tokenizer.streaming_layer import StreamStart


def some_state(rows):
    """Tuples, a start, three types and tensors of no width."""
    values = noise(rows, 40)
    return (
        (),
        StreamStart(values[:, :6].unflatten(1, (2, 3)).bfloat16()),
        (values[:, 6:10].half(), (values[:, 10:12], values[:, :0].unflatten(1, (4, 0)).bfloat16())),
        values[:, 12:30].unflatten(1, (3, 6)).bfloat16().transpose(1, 2),
    )


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))


def test_a_state_comes_back_as_it_was():
    state = some_state(3)
    values, layout = packed(state)
    assert values.shape == (3, 6 + 4 + 2 + 18)
    assert values.dtype == torch.float32
    assert same(layout.unpacked(values), state)


@pytest.mark.parametrize("kind", ["seanet", "mirrored", "patch", "dac"])
def test_states_of_every_family_come_back(kind):
    codec = make_codec(tiny_spec(kind))
    _, state = codec.encoder.step(noise(2, 1, 400), codec.encoder.initial_state(2))
    values, layout = packed(state)
    assert same(layout.unpacked(values), state)


def test_rows_are_streams():
    """A row of the matrix is one stream's state."""
    state = some_state(4)
    values, layout = packed(state)
    assert same(layout.unpacked(values[1:2]), _row(state, 1))


def _row(state, row):
    if isinstance(state, torch.Tensor):
        return state[row : row + 1]
    parts = [_row(part, row) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def test_layouts_are_equal_where_states_have_the_same_form():
    layout = packed(some_state(1)).layout
    others = [packed(some_state(3)).layout, copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))]  # noqa: S301
    assert all(other == layout and hash(other) == hash(layout) for other in others)
    _, start, *rest = some_state(1)
    for changed in (((), tuple(start), *rest), ((), start.held.float(), *rest), ((), start)):
        assert packed(changed).layout != layout


def test_streams_stack_split_and_change_places():
    states = [DecodeState(packed(some_state(rows)), 0) for rows in (1, 2)]
    together = stack_states(states)
    assert batch_size(together) == 3
    assert torch.equal(together.network.values[1:], states[1].network.values)
    alone = split_state(together)
    assert torch.equal(alone[2].network.values, states[1].network.values[1:])
    turned = select_streams(together, [2, 0])
    assert torch.equal(turned.network.values, together.network.values[[2, 0]])
    assert turned.network.layout == together.network.layout


def test_streams_of_another_form_do_not_stack():
    started = DecodeState(packed((noise(1, 2, 3),)), 0)
    fresh = DecodeState(packed((StreamStart(noise(1, 2, 3)),)), 0)
    with pytest.raises(ValueError, match="cannot share"):
        stack_states([started, fresh])
