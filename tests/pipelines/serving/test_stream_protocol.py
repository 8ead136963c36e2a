"""The messages of a stream: what is read is what was written, and nothing else is taken."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serving import stream_protocol as protocol
from pipelines.serving.stream_protocol import StreamRefused, StreamResume, StreamStart, StreamStarted

STARTED = StreamStarted(
    codec="tiny",
    sample_rate=24000,
    channels=1,
    hop_length=8,
    frame_rate=3000.0,
    num_codebooks=4,
    codebook_size=16,
    pcm="f32le",
    stream="1a2b",
    resume_token="t",  # noqa: S106 - made up
)


@given(
    st.builds(
        StreamStart,
        codec=st.none() | st.text(max_size=20),
        num_codebooks=st.none() | st.integers(0, 99),
        pcm=st.sampled_from(["s16le", "f32le"]),
        token=st.none() | st.text(max_size=20),
    )
    | st.builds(
        StreamResume, resume=st.text(max_size=40), utterance=st.integers(0, 9), received_samples=st.integers(0, 2**40)
    )
)
def test_first_messages_survive_the_way(message):
    """What a client says is what the server reads."""
    assert protocol.parse_first(message.to_json()) == message


def test_the_shortest_first_message_asks_for_everything_usual():
    """The only codec, all levels, 16 bits."""
    assert protocol.parse_first("{}") == StreamStart(pcm="s16le")
    assert protocol.parse_first('{"type": "start", "codec": null}') == StreamStart()


@given(
    st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=9).map(json.dumps)
)
def test_nothing_else_is_a_first_message(text):
    """Whatever comes is taken or refused with a type and one sentence; there is no third way."""
    refusals = []
    try:
        protocol.parse_first(text)
    except StreamRefused as refused:
        refusals.append(refused)
    assert all(refused.kind in ("invalid_message", "too_large") and len(str(refused)) < 300 for refused in refusals)


def test_errors_name_the_field_and_what_it_may_hold():
    """One sentence is enough to mend the message."""
    with pytest.raises(StreamRefused, match="unknown field 'levels': a new stream takes codec, num_codebooks"):
        protocol.parse_first('{"levels": 4}')
    with pytest.raises(StreamRefused, match="pcm must be one of s16le, f32le"):
        protocol.parse_first('{"pcm": "alaw"}')
    with pytest.raises(StreamRefused, match="received_samples must be a whole number"):
        protocol.parse_first('{"resume": "t", "received_samples": "many"}')


@given(st.integers(1, 32), st.integers(0, 50), st.sampled_from([2, 16, 1024, 65536]), st.integers(0, 2**32 - 1))
def test_codes_survive_the_way(num_codebooks, num_frames, codebook_size, seed):
    """[K, T] in, [K, T] out, for every number of levels and every codebook."""
    codes = np.random.default_rng(seed).integers(0, codebook_size, (num_codebooks, num_frames))
    read = protocol.parse_codes(protocol.codes_message(codes), num_codebooks, codebook_size)
    np.testing.assert_array_equal(read, codes)


def test_codes_travel_frame_by_frame():
    """Little-endian uint16, all levels of the first frame first."""
    assert protocol.codes_message(np.array([[1, 2], [3, 258]])) == b"\x01\x00\x03\x00\x02\x00\x02\x01"


def test_the_largest_message_is_taken_and_a_larger_one_is_not():
    """The limit is a number of bytes that stands in the error."""
    largest = bytes(protocol.MAX_MESSAGE_BYTES)
    assert protocol.parse_codes(largest, 4, 16).shape == (4, len(largest) // 8)
    with pytest.raises(StreamRefused, match=f"at most {len(largest)} bytes") as refused:
        protocol.parse_codes(largest + bytes(8), 4, 16)
    assert refused.value.close_code == 1009


@pytest.mark.parametrize("channels", [1, 2])
def test_samples_survive_the_way(channels):
    """float32 to the bit; int16 rounded, and clipped where they are too loud. Channels alternate."""
    waveform = np.linspace(-1.2, 1.2, 12, dtype=np.float32).reshape(channels, -1)
    in_full = protocol.parse_pcm(protocol.pcm_message(waveform, "f32le"), channels, "f32le")
    np.testing.assert_array_equal(in_full, waveform)
    rounded = protocol.parse_pcm(protocol.pcm_message(waveform, "s16le"), channels, "s16le")
    np.testing.assert_allclose(rounded / 32768, np.clip(waveform, -1, 32767 / 32768), atol=0.5001 / 32768)
    first = np.frombuffer(protocol.pcm_message(waveform, "f32le"), "<f4")[:channels]
    np.testing.assert_array_equal(first, waveform[:, 0])


def test_part_of_a_sample_of_all_channels_is_refused():
    """A client does not guess where a channel is missing."""
    with pytest.raises(ValueError, match="3 samples are not a multiple of 2 channels"):
        protocol.parse_pcm(bytes(12), 2, "f32le")


def test_the_servers_first_message_survives_newer_fields():
    """A client of today reads what a server of tomorrow adds, and says what an answer lacks."""
    message = json.loads(STARTED.to_json())
    assert message["type"] == "started"
    assert StreamStarted.from_message({**message, "weather": "fine"}) == STARTED
    del message["sample_rate"]
    with pytest.raises(ValueError, match="lacks sample_rate"):
        StreamStarted.from_message(message)


def test_every_error_has_a_closing_code_that_exists():
    """Those of RFC 6455 and of the IANA registry, and none of the reserved ones."""
    assert set(protocol.CLOSE_CODES) == set(protocol.ErrorKind.__args__)
    assert set(protocol.CLOSE_CODES.values()) <= {1003, 1007, 1008, 1009, 1011, 1012, 1013}


def test_an_error_is_one_object():
    """A type, a sentence, and where it helps the seconds to wait."""
    error = StreamRefused("overloaded", "no slot is free", retry_after_s=2.5)
    expected = {"type": "overloaded", "message": "no slot is free", "retry_after_s": 2.5}
    assert json.loads(error.to_json()) == {"type": "error", "error": expected}


def test_both_ends_can_speak_without_torch_or_a_web_framework():
    """Clients load the protocol alone."""
    code = "import pipelines.serving.stream_protocol, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "ray", "fastapi", "starlette", "pydantic"}
