"""States of many streams in batches: each stream goes on with its own, whoever it was batched with."""

import random

import numpy as np
import pytest
import torch

from pipelines.decoding.decode_steps import StreamStates
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.engines import close, offline, random_codes


@pytest.fixture(autouse=True)
def _inference():
    """As on the model thread."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


def rows_in_memory(states):
    """Rows of all batches that are kept for somebody."""
    return sum(group.leaves[0].shape[0] for group in set(states._places.values()))


def test_any_streams_can_share_a_step_in_any_order(codec):
    """Steps of random streams, random lengths, some dropped and begun anew, some parked: each hears itself."""
    chance, states = random.Random(0), StreamStates(codec)  # noqa: S311 - traffic, no secret
    codes = {key: random_codes(200, seed=key) for key in range(12)}
    at, heard = dict.fromkeys(codes, 0), {key: [] for key in codes}
    for _ in range(300):
        keys = chance.sample(sorted(codes), chance.randint(1, 12))
        frames = chance.choice([1, 1, 2, 5])
        keys = [key for key in keys if at[key] + frames <= 200]
        if not keys:
            continue
        samples, *_ = states.step({key: codes[key][:, at[key] : at[key] + frames] for key in keys})
        for key in keys:
            heard[key].append(samples[key])
            at[key] += frames
        if chance.random() < 0.1:
            states.drop([keys[0]])
            at[keys[0]], heard[keys[0]] = 0, []
        if chance.random() < 0.2 and at[keys[-1]]:
            states.resume(keys[-1], states.park(keys[-1]))
    for key, blocks in heard.items():
        expected = offline(codec, codes[key])[:, : 8 * at[key]]
        assert close(np.concatenate([np.zeros((1, 0), np.float32), *blocks], axis=1), expected)


def test_streams_of_one_phase_flush_together():
    """What the networks hold back at the end of each stream is its own, and its state is gone."""
    codec = make_codec(tiny_spec("dac"))
    states, codes = StreamStates(codec), [random_codes(9, seed=seed) for seed in range(3)]
    heard, _, owed = states.step(dict(enumerate(codes)))
    assert owed > 0
    rest = states.flush([2, 0, 1])
    for key, one in enumerate(codes):
        assert close(np.concatenate([heard[key], rest[key]], axis=1), offline(codec, one))
    assert states._places == {}


@pytest.mark.parametrize(("kind", "count"), [("patch", 1), ("seanet", 2), ("mirrored", 8), ("dac", 12)])
def test_phases_tell_which_streams_may_share_a_step(kind, count):
    """All can where networks hold nothing back, others once they are past their start; chunking does not matter."""
    codec = make_codec(tiny_spec(kind))
    states, phases = StreamStates(codec), {0: StreamStates(codec).start_phase}
    for frame in range(1, 12):
        _, phases[frame], _ = states.step({1: random_codes(1)})
    assert len(set(phases.values())) == count  # of 12 points: the tiny DAC looks further ahead than that
    for frames, phase in phases.items():
        _, arrived, _ = StreamStates(codec).step({1: random_codes(frames)}) if frames else (None, phase, None)
        assert arrived == phase, f"after {frames} frames at once"


def test_few_streams_left_behind_do_not_keep_a_large_batch_in_memory(codec):
    """However streams come apart, what is kept is a few times what is needed."""
    states = StreamStates(codec)
    for count in range(32, 0, -1):  # each time one stays behind
        states.step({key: random_codes(1) for key in range(count)})
        assert rows_in_memory(states) <= 4 * 32
    states.drop(range(1, 32))
    states.step({0: random_codes(1)})
    assert rows_in_memory(states) == 1


def test_samples_keep_nothing_of_the_neighbours(codec):
    """A block that is read late holds its own memory, not that of the whole step."""
    samples, *_ = StreamStates(codec).step({key: random_codes(1) for key in range(4)})
    assert all(block.base is None for block in samples.values())


def test_a_parked_state_shares_no_memory_with_its_neighbours(codec):
    """It is as small as one stream, and the batch that it left can go."""
    states = StreamStates(codec)
    assert states.park(7) is None
    states.step({key: random_codes(3) for key in range(16)})
    parked = states.park(3)
    sizes = [leaf.untyped_storage().nbytes() for leaf in parked.state.network]
    assert sum(sizes) == parked.nbytes
    assert 3 not in states._places
