"""Graphs by shape, with a recorder that needs no GPU: results are those of the function, whatever was replayed."""

import threading
import warnings

import pytest
import torch

from tests.tokenizer.engine.cuda.replayer import Replayer
from tests.tokenizer.streaming import noise
from tokenizer.engine.cuda.graph_cache import GraphCache, row_bucket


def doubled(inputs):
    """Two results, one of another type, and what depends on the shapes alone."""
    x, past = inputs
    return [2 * x + past.sum(dim=1, keepdim=True), past > 0], tuple(x.shape[1:])


def inputs_of(rows, seed=0, width=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator), torch.randn(rows, 5, generator=generator)]


def warmed(rows=3, **kwargs):
    """A cache with a graph for so many rows."""
    recorder = Replayer()
    cache = GraphCache(recorder, calls_before=0, **kwargs)
    cache.run("doubled", doubled, inputs_of(rows, seed=100))
    assert recorder.recorded == 1
    return cache, recorder


def equal(result, expected):
    return result[1] == expected[1] and all(map(torch.equal, result[0], expected[0]))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7])
def test_a_replay_gives_what_the_function_gives(rows):
    cache, recorder = warmed(rows)
    for seed in range(3):
        inputs = inputs_of(rows, seed)
        assert equal(cache.run("doubled", doubled, inputs), doubled(inputs))
    assert (recorder.recorded, recorder.replayed) == (1, 4)  # one of them for the check


def test_results_are_the_callers_own():
    """What one call gave stays as it is when the next call replays the same graph."""
    cache, _ = warmed(3)
    inputs = inputs_of(3, 1)
    first = cache.run("doubled", doubled, inputs)
    cache.run("doubled", doubled, inputs_of(3, 2))
    assert equal(first, doubled(inputs))
    first[0][0].fill_(7.0)
    assert equal(cache.run("doubled", doubled, inputs), doubled(inputs))


def test_inputs_stay_as_they_are():
    cache, _ = warmed(3)
    inputs = inputs_of(3, 1)
    copies = [tensor.clone() for tensor in inputs]
    cache.run("doubled", doubled, inputs)
    cache.run("doubled", doubled, inputs_of(2, 2))
    assert all(map(torch.equal, inputs, copies))


def test_rows_are_filled_up_with_zeros_and_left_out_again():
    """Batches of 5 and 6 rows share a graph; what stood in a row before is not computed with again."""
    seen = []

    def function(inputs):
        seen.append(inputs[0].clone())
        return [inputs[0] + 1], None

    recorder = Replayer()
    cache = GraphCache(recorder, calls_before=0)
    cache.run("f", function, [noise(6, 2)])
    x = noise(5, 2)
    y, _ = cache.run("f", function, [x])
    assert recorder.recorded == 1
    assert torch.equal(y[0], x + 1)
    assert torch.equal(seen[-1], torch.cat([x, torch.zeros(1, 2)]))


def test_buckets_hold_their_rows_and_waste_at_most_half():
    buckets = [row_bucket(rows) for rows in range(1, 2000)]
    assert buckets[:9] == [1, 2, 3, 4, 6, 6, 8, 8, 12]
    assert all(rows <= bucket <= 1.5 * rows for rows, bucket in enumerate(buckets, start=1))
    assert buckets == sorted(buckets)
    assert len(set(buckets)) < 25


def test_a_shape_is_recorded_when_it_came_often_enough():
    """The odd last chunk of a file is not worth a graph."""
    recorder = Replayer()
    cache = GraphCache(recorder, calls_before=2)
    for call in range(4):
        inputs = inputs_of(2, call)
        assert equal(cache.run("doubled", doubled, inputs), doubled(inputs))
        assert recorder.recorded == (0, 0, 1, 1)[call]
    for width in range(4, 40):
        inputs = inputs_of(2, width=width)
        assert equal(cache.run("doubled", doubled, inputs), doubled(inputs))
    assert (recorder.recorded, len(cache)) == (1, 1)


def test_names_shapes_and_types_tell_graphs_apart():
    cache, recorder = warmed(2)
    inputs = inputs_of(2)
    cases = [
        ("other", inputs),
        ("doubled", inputs_of(2, width=4)),
        ("doubled", [inputs[0].double(), inputs[1]]),
        ("doubled", inputs_of(9)),
    ]
    for number, (name, given) in enumerate(cases, start=2):
        assert equal(cache.run(name, doubled, given), doubled(given))
        assert recorder.recorded == number


def test_the_graph_that_was_not_used_for_longest_goes_first():
    cache, recorder = warmed(1, capacity=2)
    cache.run("doubled", doubled, inputs_of(2))
    cache.run("doubled", doubled, inputs_of(1))  # used again
    cache.run("doubled", doubled, inputs_of(3))
    assert (len(cache), recorder.recorded, recorder.settled) == (2, 3, 1)
    cache.run("doubled", doubled, inputs_of(1))
    assert recorder.recorded == 3
    cache.run("doubled", doubled, inputs_of(2))
    assert (len(cache), recorder.recorded) == (2, 4)


def test_more_shapes_than_places_are_not_recorded_over_and_over():
    """A graph that went has to earn its place again."""
    recorder = Replayer()
    cache = GraphCache(recorder, capacity=1, calls_before=2)
    for call in range(30):
        cache.run("doubled", doubled, inputs_of(1 + call % 2))
    assert recorder.recorded <= 12


def test_a_recording_of_silence_is_checked_too():
    """What does not read its inputs is found out by streams that start with zeros."""
    cache = GraphCache(Replayer(forgets_inputs=True), calls_before=0)
    with pytest.warns(RuntimeWarning, match="other values"):
        (y, _), _ = cache.run("doubled", doubled, [torch.zeros(2, 3), torch.zeros(2, 5)])
    assert not y.any()


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Replayer(RuntimeError("operation not permitted when stream is capturing\nmore")), "not permitted"),
        (Replayer(torch.OutOfMemoryError("no memory")), "no memory"),
        (Replayer(forgets_inputs=True), "other values than torch"),
    ],
    ids=["refused", "memory", "wrong"],
)
def test_what_cannot_be_recorded_runs_and_says_so_once(recorder, reason):
    cache = GraphCache(recorder, calls_before=0)
    inputs = inputs_of(3)
    with pytest.warns(RuntimeWarning, match=rf"graphs are off.*{reason}") as told:
        assert equal(cache.run("doubled", doubled, inputs), doubled(inputs))
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (3, 4):
            inputs = inputs_of(rows, seed=rows)
            assert equal(cache.run("doubled", doubled, inputs), doubled(inputs))
    assert not cache.works
    assert len(cache) == 0


def test_values_that_are_no_numbers_are_never_replayed():
    """NaN agrees with nothing."""
    cache = GraphCache(Replayer(), calls_before=0)
    with pytest.warns(RuntimeWarning, match="other values"):
        cache.run("doubled", doubled, [torch.full((1, 3), torch.nan), torch.zeros(1, 5)])


def test_an_error_of_the_function_is_the_callers():
    """It is no failure of a graph."""
    cache, _ = warmed(2)

    def broken(inputs):
        raise torch.OutOfMemoryError("too large a batch")

    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        cache.run("broken", broken, inputs_of(2))
    assert cache.works


def test_threads_share_graphs():
    """Each gets the results of its own inputs."""
    cache, _ = warmed(3)
    wrong = []

    def worker(offset):
        for seed in range(offset, offset + 50):
            inputs = inputs_of(3, seed)
            if not equal(cache.run("doubled", doubled, inputs), doubled(inputs)):
                wrong.append(seed)

    threads = [threading.Thread(target=worker, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_graphs_work_in_and_out_of_inference_mode():
    """Tensors of a graph that was recorded in it can be written to outside."""
    recorder = Replayer()
    cache = GraphCache(recorder, calls_before=0)
    with torch.inference_mode():
        cache.run("doubled", doubled, inputs_of(3))
    inputs = inputs_of(3, 1)
    with torch.inference_mode():
        assert equal(cache.run("doubled", doubled, inputs), doubled(inputs))
    assert recorder.replayed == 2
