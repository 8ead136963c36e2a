"""Underruns: counted where a listener ran out although the service had the codes."""

from pipelines.serving.playout_clock import PlayoutClock


def clock():
    """A frame is a tenth of a second."""
    return PlayoutClock(sample_rate=1000, hop_length=100)


def test_a_stream_that_keeps_ahead_has_none():
    """Sound that is sent before the sound before it was played is never late."""
    played = clock()
    for frame in range(20):
        now = 0.1 * frame
        played.took(1, now)
        assert not played.sent(100, now + (0.04 if frame else 0.05))
    assert played.samples == 2000
    assert (played.first_codes_at, played.first_sound_at) == (0.0, 0.05)


def test_codes_that_were_there_in_time_and_sound_that_was_not_are_one():
    """The listener waits from then on, so one stall is one underrun, not one per packet after it."""
    played = clock()
    played.took(10, 0.0)
    late = [played.sent(100, now) for now in (0.05, 0.14, 0.60, 0.65, 0.75, 0.85)]
    assert late == [False, False, True, False, False, False]


def test_waiting_for_the_model_is_none_of_the_services():
    """Codes that come after the listener ran out are late themselves."""
    played = clock()
    played.took(1, 0.0)
    assert not played.sent(100, 0.01)
    played.took(1, 5.0)
    assert not played.sent(100, 5.01)
    played.took(1, 5.05)
    assert played.sent(100, 5.30)


def test_the_first_packet_is_never_late():
    """Nobody listens before it; how long it took is another figure."""
    played = clock()
    played.took(1, 0.0)
    assert not played.sent(100, 9.0)


def test_sound_whose_codes_are_not_known_is_not_counted():
    """After a resume the codes came on another connection, which was lost for as long."""
    played = clock()
    assert not played.sent(100, 1.0)
    assert not played.sent(100, 9.0)
