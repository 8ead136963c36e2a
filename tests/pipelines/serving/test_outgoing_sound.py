"""What was sent and may not have arrived: from every place that a listener can name, the rest comes again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serving.outgoing_sound import OutgoingSound

UTTERANCES = [[3, 1, 4], [], [2]]  # samples of each message, two bytes each


def filled(kept_bytes=1000):
    """All utterances with their ends, nothing sent."""
    out = OutgoingSound(2, kept_bytes)
    for utterance, messages in enumerate(UTTERANCES):
        first = 0
        for samples in messages:
            out.add_samples(utterance, first, pcm(utterance, first, samples))
            first += samples
        out.add_close(utterance, first, f"end {utterance}")
    return out


def pcm(utterance, first, samples):
    """Bytes that say which samples they are."""
    return bytes(16 * utterance + first + index for index in range(samples) for _ in range(2))


def rest(out):
    """Everything still to be sent: samples as numbers, ends as text."""
    heard = []
    while (packet := out.take()) is not None:
        heard += [packet.data] if isinstance(packet.data, str) else list(packet.data[::2])
    return heard


def positions():
    """Every place that a listener of these utterances can be at, and what it has not heard."""
    everything = rest(filled())
    heard = 0
    for utterance, messages in enumerate(UTTERANCES):
        for samples in range(sum(messages) + 1):
            yield utterance, samples, everything[heard + samples :]
        heard += sum(messages) + 1
    yield len(UTTERANCES), 0, []


@pytest.mark.parametrize(("utterance", "samples", "unheard"), list(positions()))
@pytest.mark.parametrize("sent", range(9))
def test_from_every_place_the_rest_comes(utterance, samples, unheard, sent):
    """However much was sent before; a place that was never reached is refused and changes nothing."""
    out = filled()
    packets = [out.take() for _ in range(sent)]
    places = [(0, 0)]
    for packet in packets:
        if packet is not None:
            is_end = isinstance(packet.data, str)
            place = (
                (packet.utterance + 1, 0) if is_end else (packet.utterance, packet.first_sample + len(packet.data) // 2)
            )
            places.append(place)
    if (utterance, samples) <= places[-1]:
        assert out.rewind(utterance, samples)
        assert out.rewind(utterance, samples)
        assert rest(out) == unheard
    else:
        before = out.nbytes
        assert not out.rewind(utterance, samples)
        assert out.nbytes == before


@given(st.integers(0, 9), st.integers(0, 40), st.integers(0, 8))
def test_no_claim_breaks_it(utterance, samples, sent):
    """Places that do not exist are refused; whatever comes after a true one is part of the sound."""
    out, everything = filled(), rest(filled())
    for _ in range(sent):
        out.take()
    known = {(place[0], place[1]) for place in positions()}
    if out.rewind(utterance, samples):
        assert (utterance, samples) in known
        remaining = rest(out)
        assert everything[len(everything) - len(remaining) :] == remaining


def test_memory_is_bounded_by_what_is_kept():
    """Sent samples beyond the limit are forgotten, the oldest first; who has missed them is refused."""
    out = OutgoingSound(2, kept_bytes=20)
    for first in range(0, 100, 5):
        out.add_samples(0, first, bytes(10))
        out.take()
        assert out.nbytes <= 20
    assert not out.rewind(0, 89)
    assert out.rewind(0, 90)
    assert len(b"".join(packet.data for packet in iter(out.take, None))) == 20


def test_after_a_reset_nothing_before_it_comes():
    """Neither what waited nor what was sent."""
    out = filled()
    out.take()
    out.forget_all(7)
    assert out.nbytes == 0
    out.add_close(6, 0, "reset")
    assert rest(out) == ["reset"]
    assert not out.rewind(0, 0)
    assert out.rewind(7, 0)
