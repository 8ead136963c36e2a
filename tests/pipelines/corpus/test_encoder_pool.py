"""The pool of encoders: how many there are, and what becomes of those that die or are not needed."""

from collections import deque

import pytest

from pipelines.corpus import encoder_pool
from pipelines.corpus.encoder_pool import EncoderPool, count_encoders
from pipelines.progress import Progress


class Handle:
    """An actor that can be asked whether it is ready."""

    class ready:  # noqa: N801 - as on an actor's handle
        """A method with .remote()."""

        @staticmethod
        def remote():
            return object()


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose size a test sets; what is killed and asked for is written down."""
    room = encoder_pool.ray
    state = {"resources": {"CPU": 8.0, "GPU": 2.0}, "killed": deque(), "asked": deque()}
    monkeypatch.setattr(room, "cluster_resources", lambda: state["resources"])
    monkeypatch.setattr(room, "kill", state["killed"].append)

    def request(*, bundles):
        state["asked"].append(bundles)

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request)
    monkeypatch.setattr(encoder_pool, "RECOUNT_S", 0.0)
    return state


def pool_of(wanted, gpus=0.0):
    """A pool of such handles."""
    return EncoderPool(Handle, wanted, gpus, Progress("testing", shown=False))


@pytest.mark.parametrize(
    ("resources", "wanted", "gpus", "expected"),
    [
        ({"CPU": 2.0}, None, 0.0, 2),
        ({"CPU": 2.0}, 9, 0.0, 3),  # half a core stays for a reader
        ({"CPU": 1.0}, None, 0.0, 1),
        ({"CPU": 16.0, "GPU": 4.0}, None, 1.0, 4),
        ({"CPU": 16.0, "GPU": 4.0}, None, 0.5, 8),
        ({"CPU": 16.0, "GPU": 4.0}, 3, 1.0, 3),
        ({"CPU": 2.0, "GPU": 8.0}, None, 1.0, 3),
        ({"CPU": 4.0}, None, 1.0, 1),  # no GPU yet: one encoder waits for it
    ],
)
def test_as_many_as_the_cluster_holds_and_no_more_than_wanted(cluster, resources, wanted, gpus, expected):
    """And at least one."""
    cluster["resources"] = resources
    assert count_encoders(wanted, gpus) == expected


def test_a_cluster_that_grows_gets_more_encoders(cluster):
    """Unless so many are not wanted."""
    cluster["resources"] = {"CPU": 2.0}
    pool, bounded = pool_of(None), pool_of(3)
    assert (len(pool.start_missing()), len(bounded.start_missing())) == (2, 3)
    cluster["resources"] = {"CPU": 6.0}
    assert (len(pool.start_missing()), len(bounded.start_missing())) == (4, 0)
    assert (len(pool), len(bounded)) == (6, 3)


def test_what_is_wanted_beyond_the_cluster_is_asked_of_its_autoscaler_once(cluster):
    """And taken back at the end."""
    pool = pool_of(5, gpus=1.0)
    assert len(pool.start_missing()) == 2
    pool.start_missing()
    assert list(cluster["asked"]) == [[{"CPU": 1.0, "GPU": 1.0}] * 5]
    pool.end()
    assert cluster["asked"][-1] == []
    assert len(cluster["killed"]) == 2


def test_one_that_died_is_replaced(cluster):
    """It is killed to be sure, and never handed out again."""
    pool = pool_of(2)
    (dead, _), (alive, _) = pool.start_missing()
    pool.rest(dead)
    pool.rest(alive)
    assert pool.take() is dead
    pool.drop(dead)
    ((new, _),) = pool.start_missing()
    pool.rest(new)
    assert [pool.take(), pool.take(), pool.take()] == [alive, new, None]
    assert list(cluster["killed"]) == [dead]


def test_those_that_will_not_be_needed_are_let_go(cluster):
    """Idle ones only, and never the last: a bundle may come back."""
    pool = pool_of(4)
    handles = [handle for handle, _ in pool.start_missing()]
    for handle in handles:
        pool.rest(handle)
    busy = pool.take()
    pool.let_go(2)
    assert len(pool) == 2
    assert busy not in cluster["killed"]
    pool.let_go(0)
    assert len(pool) == 1
    assert pool.start_missing() == []


def test_busy_is_the_share_of_time_at_work(cluster, monkeypatch):
    """Of all encoders since the last time it was asked."""
    now = [100.0]
    monkeypatch.setattr("pipelines.corpus.encoder_pool.time.monotonic", lambda: now[0])
    pool = pool_of(2)
    for handle, _ in pool.start_missing():
        pool.rest(handle)
    pool.busy_share()
    pool.take()
    now[0] += 10.0
    assert pool.busy_share() == pytest.approx(0.5)
    now[0] += 10.0
    pool.rest(pool.take())
    assert pool.busy_share() == pytest.approx(0.5)
