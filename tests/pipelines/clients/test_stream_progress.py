"""Where a client stands: whatever is lost between it and whichever server, its sound is whole and in order."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clients.client_errors import ServiceUnreachable, StreamCut
from pipelines.clients.stream_progress import ServerSays, StreamProgress
from pipelines.serving.stream_protocol import StreamResume, StreamStart
from tokenizer import CodesError

HOP = 2


class Server:
    """Speaks the protocol; the sound of a code is its number, twice. It forgets a stream that it is told to forget."""

    def __init__(self):
        self.utterance = self.frames = self.spoken = 0
        self.out = []

    def begin(self, first):
        if isinstance(first, StreamResume):
            self.resend(first.utterance, first.received_samples)
        else:
            self.__init__()
        return self.started()

    def started(self):
        fields = {
            "codec": "x",
            "sample_rate": 2,
            "channels": 1,
            "num_codebooks": 1,
            "codebook_size": 1000,
            "pcm": "f32le",
        }
        place = {"utterance": self.utterance, "received_frames": self.frames, "resume_token": "t", "stream": "s"}
        return json.dumps({"type": "started", "hop_length": HOP, "frame_rate": 1.0, **fields, **place})

    def take(self, message):
        if message == b"":
            end = {
                "type": "end",
                "utterance": self.utterance,
                "num_samples": HOP * self.frames,
                "num_frames": self.frames,
            }
            self.out.append((self.utterance, HOP * self.frames, json.dumps(end)))
            self.utterance, self.frames = self.utterance + 1, 0
        elif isinstance(message, str):
            self.utterance, self.frames = self.utterance + 1, 0
            self.out = [(self.utterance - 1, 0, json.dumps({"type": "reset", "utterance": self.utterance}))]
            self.spoken = 0
        else:
            for code in np.frombuffer(message, "<u2"):
                self.out.append((self.utterance, HOP * self.frames, np.full(HOP, code, "<f4").tobytes()))
                self.frames += 1

    def say(self):
        if self.spoken == len(self.out):
            return None
        self.spoken += 1
        return self.out[self.spoken - 1][2]

    def resend(self, utterance, samples):
        def has_been_heard(number, first, data):
            whole = isinstance(data, bytes) and first + HOP <= samples
            return number < utterance or (number == utterance and whole)

        self.spoken = sum(has_been_heard(*entry) for entry in self.out)


def connected():
    progress, server = StreamProgress(StreamStart(pcm="f32le")), Server()
    progress.take_up(server.begin(progress.first_message()))
    return progress, server


def exchange(progress, server, up=10**9, down=10**9):
    """Messages both ways, at most so many; what is left is lost with the connection."""
    for _ in range(up):
        message = progress.next_message()
        if message is None:
            break
        server.take(message)
    for _ in range(down):
        message = server.say()
        if message is None:
            break
        progress.receive(message)


def heard(progress):
    """Utterances that have ended, each as its codes."""
    utterances, samples = [], []
    for piece in progress.sound:
        if piece is None:
            utterances.append([int(value) for value in samples[::HOP]])
            samples = []
        else:
            samples += piece[0].tolist()
    return utterances


def push(progress, *codes):
    progress.push(np.array([codes]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 999), max_size=6), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=8),
)
def test_cuts_change_nothing(utterances, cuts):
    """After any messages either way, with a server that kept the stream and with one that did not."""
    progress, server = connected()
    for codes in utterances:
        for code in codes:
            push(progress, code)
        progress.finish()
    for up, down, forgotten in cuts:
        exchange(progress, server, up, down)
        progress.resumable = not forgotten
        if not progress.empty:
            progress.take_up(server.begin(progress.first_message()))
    exchange(progress, server)
    assert heard(progress) == utterances
    assert progress.empty


def test_a_server_that_forgot_repeats_only_the_open_utterance():
    """What was heard to its end is not decoded again, and what is known of the open one is not heard again."""
    progress, server = connected()
    push(progress, 1, 2)
    progress.finish()
    push(progress, 3, 4, 5)
    exchange(progress, server, down=4)
    progress.resumable = False
    assert isinstance(progress.first_message(), StreamStart)
    progress.take_up(server.begin(StreamStart()))
    push(progress, 6)
    progress.finish()
    exchange(progress, server)
    assert server.frames == 0
    assert heard(progress) == [[1, 2], [3, 4, 5, 6]]


def test_after_a_reset_only_new_sound_is_heard():
    """Whatever the server still sends of the old, before it has heard of the reset."""
    progress, server = connected()
    push(progress, 1, 2, 3)
    exchange(progress, server, down=1)
    progress.reset()
    push(progress, 7)
    progress.finish()
    exchange(progress, server, up=0)
    assert not progress.sound
    exchange(progress, server)
    assert heard(progress) == [[7]]


@pytest.mark.parametrize("resets", [1, 2, 3])
@pytest.mark.parametrize("sent", [True, False])
def test_resets_may_come_together_and_be_lost(resets, sent):
    """A connection that ends between a reset and its confirmation leads to a new stream: the old one holds nothing."""
    progress, server = connected()
    push(progress, 1)
    progress.finish()
    push(progress, 2)
    exchange(progress, server, down=0)
    for _ in range(resets):
        progress.reset()
    if sent:
        exchange(progress, server, down=0)
        assert isinstance(progress.first_message(), StreamStart)
        progress.take_up(server.begin(StreamStart()))
    push(progress, 8)
    progress.finish()
    exchange(progress, server)
    assert heard(progress) == [[8]]


def test_codes_that_left_too_late_are_known_to_be_lost():
    """A server that ends an idle stream says how far it had come; what was sent after that has to be sent again."""
    progress, server = connected()
    push(progress, 1, 2)
    assert not progress.has_arrived((0, 2))
    exchange(progress, server)
    assert progress.has_arrived((0, 2))
    progress.finish()
    message = progress.next_message()
    assert message == b""
    assert not progress.has_arrived((0, 2))
    assert progress.has_arrived((1, 0))


def test_missing_samples_are_not_passed_over():
    """An end that counts more than came is a cut, never a shorter sound."""
    progress, _ = connected()
    push(progress, 1, 2)
    progress.finish()
    with pytest.raises(StreamCut, match="the utterance has 4") as cut:
        progress.receive('{"type": "end", "utterance": 0, "num_samples": 4, "num_frames": 2}')
    assert cut.value.received_samples == 0


def test_a_very_long_utterance_is_not_kept_whole():
    """Memory is bounded: its heard codes go after ten minutes, and only the server that has the stream can go on."""
    progress, server = connected()
    for _ in range(2000):
        push(progress, 1)
        exchange(progress, server)
    assert isinstance(progress.first_message(), StreamResume)
    progress.resumable = False
    with pytest.raises(StreamCut, match="too long to begin again"):
        progress.first_message()


@pytest.mark.parametrize("codes", [[[1000]], [[-1]], [[1], [2]], [1], [[0.5]], [["a"]]], ids=str)
def test_codes_are_checked_before_they_leave(codes):
    """The error comes where the codes are pushed, and the stream lives on."""
    progress, server = connected()
    with pytest.raises(CodesError):
        progress.push(codes)
    push(progress, 5)
    progress.finish()
    exchange(progress, server)
    assert heard(progress) == [[5]]


@pytest.mark.parametrize("answer", ["hello", b"\x00", "[]", '{"type": "started"}', '{"no": "type"}'])
def test_an_answer_of_something_else_is_said_to_be_that(answer):
    """As where the url belongs to another service."""
    with pytest.raises(ServiceUnreachable, match="does not speak this protocol"):
        StreamProgress(StreamStart()).take_up(answer)


def test_a_refusal_carries_its_type():
    """What the server says reaches whoever decides about another attempt."""
    with pytest.raises(ServerSays) as said:
        StreamProgress(StreamStart()).take_up('{"type": "error", "error": {"type": "overloaded", "retry_after_s": 2}}')
    assert (said.value.kind, said.value.retry_after_s) == ("overloaded", 2)
