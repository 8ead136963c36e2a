"""Requests that nobody can answer: each gets a typed error at once, and the next good one is still right."""

import gzip
import io
import json
import time

import msgpack
import numpy as np
import pytest

from tests.conftest import make_codec, tiny_spec
from tests.pipelines.service_calls import DECODE, ENCODE, assert_serves_right, error_of, service_of

MAX_FRAMES = 1500  # half a second
AT_ONCE_S = 0.05


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("seanet"))


@pytest.fixture(scope="module")
def client(codec):
    with service_of(codec, max_audio_s=0.5, max_body_bytes=2**20) as running:
        assert_serves_right(running, codec)
        yield running


def codes_json(codes, **options):
    return "application/json", json.dumps({"codes": codes, **options}).encode()


def text(body):
    return "application/json", body.encode()


def packed(content):
    return "application/msgpack", content if isinstance(content, bytes) else msgpack.packb(content)


def npy(codes, allow_pickle=False):
    stream = io.BytesIO()
    np.save(stream, codes, allow_pickle=allow_pickle)
    return "application/x-npy", stream.getvalue()


def npy_header(header):
    return "application/x-npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode()


def whole(frames=4, levels=4, value=1):
    return [[value] * frames for _ in range(levels)]


BAD_CODES = {
    "a code of -1": codes_json(whole(value=-1)),
    "a code of V": codes_json(whole(value=16)),
    "a code of 65535": codes_json(whole(value=65535)),
    "a code beyond 64 bits": codes_json(whole(value=2**70)),
    "too many levels": codes_json(whole(levels=5)),
    "no levels": codes_json([]),
    "ragged": codes_json([[1, 2], [1]]),
    "no frames": codes_json([[], []]),
    "one number": codes_json(3),
    "one list": codes_json([1, 2]),
    "three dimensions": codes_json([whole()]),
    "floats": codes_json(whole(value=1.5)),
    "whole floats": codes_json(whole(value=1.0)),
    "truth values": codes_json(whole(value=True)),
    "texts": codes_json(whole(value="1")),
    "nulls": codes_json(whole(value=None)),
    "a file of the machine": codes_json("file:///etc/passwd"),
    "an address": codes_json("http://169.254.169.254/latest/meta-data"),
    "npy of floats": npy(np.ones((4, 4), np.float32)),
    "npy of NaN": npy(np.full((4, 4), np.nan)),
    "npy of truth values": npy(np.ones((4, 4), bool)),
    "npy of complex numbers": npy(np.ones((4, 4), complex)),
    "npy of dates": npy(np.zeros((4, 4), "datetime64[s]")),
    "npy of three bytes": npy_header("{'descr': '<i3', 'fortran_order': False, 'shape': (1, 1), }\n"),
    "npy in one dimension": npy(np.ones(4, np.int64)),
    "npy in three dimensions": npy(np.ones((1, 4, 4), np.int64)),
    "npy with large uint64": npy(np.full((4, 4), 2**64 - 1, np.uint64)),
    "npy of pickles": npy(np.array([[{"a": 1}]], dtype=object), allow_pickle=True),
    "msgpack of floats": packed({"codes": whole(value=0.5)}),
    "msgpack of nil": packed({"codes": whole(value=None)}),
    "msgpack of odd bytes": packed({"codes": [b"123"]}),
    "msgpack in three dimensions": packed({"codes": [whole()]}),
    "msgpack with extensions": packed({"codes": [[msgpack.ExtType(5, b"12")]]}),
    "msgpack with timestamps": packed({"codes": [[msgpack.Timestamp(1)]]}),
    "bandwidth beyond the codes": codes_json(whole(levels=1), bandwidth_kbps=24),
    "too few samples": codes_json(whole(), num_samples=24),
    "too many samples": codes_json(whole(), num_samples=33),
}
BAD_OPTIONS = {
    "no codes": text('{"num_samples": 8}'),
    "an unknown option": codes_json(whole(), voice="alloy"),
    "an unknown format": codes_json(whole(), response_format="../wav"),
    "an unknown bandwidth": codes_json(whole(), bandwidth_kbps=7),
    "a bandwidth as text": codes_json(whole(), bandwidth_kbps="24"),
    "no bandwidth at all": codes_json(whole(), bandwidth_kbps=1e-300),
    "no samples": codes_json(whole(), num_samples=0),
    "half samples": codes_json(whole(), num_samples=31.5),
    "an object as option": codes_json(whole(), codec={"a": 1}),
    "a deadline before the request": codes_json(whole(), deadline_s=-1),
    "scales of text": codes_json(whole(), scales=["a"]),
}
NOT_READ = {
    "empty": text(""),
    "half an object": text('{"codes": [[1, 2], [1'),
    "an unclosed list": text('{"codes": [[1,'),
    "two objects": text('{"codes": [[1]]} {}'),
    "a key twice": text('{"codes": [[1]], "codes": [[2]]}'),
    "a list": text("[[1]]"),
    "NaN": text('{"codes": [[NaN]]}'),
    "infinity as option": text('{"num_samples": Infinity, "codes": [[1]]}'),
    "a number of 10,000 digits": text(f'{{"codes": [[{"1" * 10000}]]}}'),
    "many keys": text(json.dumps({f"k{key}": 1 for key in range(100)})),
    "no UTF-8": ("application/json", b'{"codes": [[1]], "codec": "\xff"}'),
    "msgpack with a timestamp": packed({"num_samples": msgpack.Timestamp(1), "codes": whole()}),
    "msgpack with an extension": packed({"codec": msgpack.ExtType(5, b""), "codes": whole()}),
    "msgpack of 4 GiB of levels": packed(b"\x81\xa5codes\x91\xc6\xff\xff\xff\xff"),
    "msgpack of 4 GiB of text": packed(b"\x81\xdb\xff\xff\xff\xff"),
    "msgpack of 4 GiB of keys": packed(b"\xdf\xff\xff\xff\xff"),
    "msgpack with nested options": packed(b"\x81\xa1a" + b"\x91" * 5000),
    "msgpack with an object as option": packed({"codec": {"a": 1}, "codes": whole()}),
    "msgpack with more behind it": packed(msgpack.packb({"codes": whole()}) + b"\0"),
    "msgpack that is a number": packed(b"\x01"),
    "npy cut short": (npy(np.ones((4, 4), np.int64))[0], npy(np.ones((4, 4), np.int64))[1][:-1]),
    "npy too long": (npy(np.ones((4, 4), np.int64))[0], npy(np.ones((4, 4), np.int64))[1] + b"\0"),
    "npy with code in its header": npy_header("__import__('os').system('true')"),
    "npy with a deep header": npy_header("(" * 900),
    "npy with a header of 64 KiB": npy_header(" " * 65535),
    "a zip": ("application/x-npy", b"PK\x03\x04" + bytes(60)),
    "arrow of nothing": ("application/vnd.apache.arrow.stream", b""),
    "arrow of noise": ("application/vnd.apache.arrow.stream", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(64)),
    "arrow cut short": ("application/vnd.apache.arrow.file", b"ARROW1\0\0"),
}
DEEP = {
    "JSON 10,000 deep": (text(f'{{"codes": {"[" * 10000}{"]" * 10000}}}'), (422, "invalid_codes")),
    "JSON 10,000 deep in an option": (text(f'{{"codec": {"[" * 10000}{"]" * 10000}}}'), (422, "invalid_codes")),
    "objects 10,000 deep": (text('{"codec": ' * 10000), (422, "invalid_argument")),
    "msgpack 10,000 deep": (packed(b"\x81\xa5codes" + b"\x91" * 10000), (422, "invalid_codes")),
    "msgpack lists of 4 GiB in each other": (
        packed(b"\x81\xa5codes" + b"\xdd\xff\xff\xff\xff" * 1000),
        (422, "invalid_codes"),
    ),
    "a level of 4 GiB of frames": (packed(b"\x81\xa5codes\x91\xdd\xff\xff\xff\xff"), (413, "too_large")),
    "one frame too many": (codes_json(whole(MAX_FRAMES + 1)), (413, "too_large")),
    "one frame too many of npy": (npy(np.ones((1, MAX_FRAMES + 1), np.uint8)), (413, "too_large")),
    "npy that says it is huge": (
        npy_header("{'descr': '<u2', 'fortran_order': False, 'shape': (4, 99999999999999), }\n"),
        (413, "too_large"),
    ),
    "a body that is too large": (text(" " * (2**20 + 1)), (413, "too_large")),
    "an unknown codec": (codes_json(whole(), codec="../../etc/passwd"), (404, "unknown_codec")),
    "a codec by its path": (codes_json(whole(), codec="/etc/passwd"), (404, "unknown_codec")),
    "a codec by its address": (codes_json(whole(), codec="http://169.254.169.254/"), (404, "unknown_codec")),
    "text": (("text/plain", b"{}"), (415, "unsupported_media_type")),
    "a pickle": (("application/octet-stream", b"\x80\x04."), (415, "unsupported_media_type")),
    "no content type": (("", b"{}"), (415, "unsupported_media_type")),
}
CASES = (
    {name: (request, (422, "invalid_codes")) for name, request in BAD_CODES.items()}
    | {name: (request, (422, "invalid_argument")) for name, request in BAD_OPTIONS.items()}
    | {name: (request, (400, "bad_request")) for name, request in NOT_READ.items()}
    | DEEP
)


@pytest.mark.parametrize("case", CASES)
def test_a_bad_request_to_decode_gets_its_error_at_once(client, codec, case):
    """4xx in under 50 ms, typed, without a trace; the next good request is still right."""
    (content_type, body), expected = CASES[case]
    headers = {"Content-Type": content_type} if content_type else {}
    assert asked_twice(client, lambda: client.post(DECODE, content=body, headers=headers)) == expected
    assert_serves_right(client, codec)


def asked_twice(client, ask):
    """The error, which came at once in one of two tries: the machine may have been busy in the other."""
    took_s = []
    for _ in range(2):
        begin = time.perf_counter()
        answer = ask()
        took_s.append(time.perf_counter() - begin)
    assert min(took_s) < AT_ONCE_S, took_s
    return error_of(answer)


def test_one_frame_and_the_most_frames_are_fine(client, codec):
    """The limits are what is allowed, and not one less."""
    for frames in (1, MAX_FRAMES):
        content_type, body = codes_json(whole(frames))
        answer = client.post(DECODE, content=body, headers={"Content-Type": content_type})
        assert answer.headers["x-num-samples"] == str(8 * frames)


@pytest.mark.parametrize("size", [2**20 + 1, 2**27])
def test_a_gzip_bomb_stops_at_the_limit(client, codec, size):
    """What counts is the size after inflating, and no more than that is inflated."""
    body = bomb(size)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert asked_twice(client, lambda: client.post(DECODE, content=body, headers=headers)) == (413, "too_large")
    assert_serves_right(client, codec)


def bomb(size):
    """Spaces, deflated."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as file:
        piece = b" " * 2**20
        for start in range(0, size, len(piece)):
            file.write(piece[: size - start])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(b"{}")[:-4], 400),
        ("br", b"x", 415),
        ("gzip, gzip", b"x", 415),
    ],
)
def test_other_encodings_and_damaged_ones_are_refused(client, encoding, body, status):
    """Nothing is guessed."""
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    assert error_of(client.post(DECODE, content=body, headers=headers))[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/v1/audio/decode/../../../etc/passwd",
        "/v1/%00",
        "/file:///etc/passwd",
        "/http://169.254.169.254/",
        "/v1/codecs/../../pyproject.toml",
    ],
)
def test_no_path_of_a_request_is_a_path_of_the_machine(client, path):
    """They are routes, or nothing."""
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert error_of(answer) == (404, "not_found")


def test_no_file_and_no_address_is_opened_by_any_of_these(client, monkeypatch):
    """Whatever a request names stays a name."""
    import builtins
    import socket

    def refuse(*arguments, **_):
        raise AssertionError(f"opened {arguments[:1]}")

    names = [
        "/etc/passwd",
        "../../etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
        "s3://bucket/key",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        patch.setattr(io, "open", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        answers = [
            client.post(path, content=body, headers={"Content-Type": content_type})
            for name in names
            for path, content_type, body in (
                (DECODE, *codes_json(whole(), codec=name)),
                (DECODE, *codes_json(name)),
                (f"{DECODE}?codec={name}", *codes_json(whole())),
                (f"{ENCODE}?codec={name}", "audio/wav", b"RIFF"),
                (ENCODE, "audio/x-mpegurl", f"#EXTM3U\n{name}\n".encode()),
                (ENCODE, "application/octet-stream", name.encode()),
            )
        ]
    assert {answer.status_code for answer in answers} <= {404, 422}
