"""What is kept of lost streams: the right ones, for the right time, within bounds."""

from dataclasses import dataclass

from pipelines.serving.parked_streams import ParkedStreams


@dataclass
class Parked:
    name: str
    nbytes: int = 10


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def store(**bounds):
    clock = Clock()
    return ParkedStreams(10.0, clock=clock, **bounds), clock


def test_a_parked_stream_is_found_until_it_is_dropped():
    """By its token, and by no other; looking does not take it away."""
    parked, _ = store()
    stream = Parked("a")
    assert parked.park("a", stream)
    assert parked.find("a") is parked.find("a") is stream
    assert parked.find("b") is None
    parked.drop("a")
    parked.drop("a")
    assert parked.find("a") is None
    assert (len(parked), parked.nbytes) == (0, 0)


def test_a_stream_stays_for_the_window():
    """To its last moment and no longer, each by its own clock."""
    parked, clock = store()
    parked.park("a", Parked("a"))
    clock.now += 6
    parked.park("b", Parked("b"))
    clock.now += 3.9
    assert parked.find("a") is not None
    clock.now += 0.1
    assert parked.find("a") is None
    assert parked.find("b") is not None
    clock.now += 6
    parked.tidy()
    assert len(parked) == 0


def test_who_comes_again_stays_anew():
    """Parking under the same token replaces what was there and begins the window again."""
    parked, clock = store(max_streams=2)
    parked.park("a", Parked("old"))
    parked.park("b", Parked("b"))
    clock.now += 5
    parked.park("a", Parked("new"))
    clock.now += 5
    assert parked.find("a") == Parked("new")
    assert parked.find("b") is None


def test_the_first_one_gives_way_where_there_are_too_many():
    """New losses are more likely to come back than old ones."""
    parked, _ = store(max_streams=3)
    for name in "abcde":
        assert parked.park(name, Parked(name))
    assert [parked.find(name) is not None for name in "abcde"] == [False, False, True, True, True]


def test_the_first_ones_give_way_where_they_are_too_large():
    """Bytes are counted together; one that is larger than all of the room is not kept, and drives nobody out."""
    parked, _ = store(max_bytes=100)
    parked.park("a", Parked("a", 60))
    parked.park("b", Parked("b", 30))
    assert parked.park("c", Parked("c", 50))
    assert (parked.find("a"), parked.nbytes) == (None, 80)
    assert not parked.park("d", Parked("d", 101))
    assert (len(parked), parked.nbytes) == (2, 80)


def test_bytes_that_become_known_later_count():
    """A network state is handed out by the model thread after the stream was parked."""
    parked, _ = store(max_bytes=100)
    late = Parked("a", 0)
    parked.park("a", late)
    parked.park("b", Parked("b", 60))
    late.nbytes = 70
    parked.tidy()
    assert parked.find("a") is None
    assert parked.find("b") is not None


def test_without_a_window_nothing_is_kept():
    """Zero seconds switch resuming off."""
    parked = ParkedStreams(0.0)
    assert not parked.park("a", Parked("a"))
    assert parked.find("a") is None
