"""Readers of bodies: they give the codes that were written, or an error of ours, and take little memory for either."""

import gzip
import io
import json
import random
import tracemalloc

import msgpack
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.decoding.decode_errors import Overloaded
from pipelines.serving.arrow_codes import read_arrow_codes, write_arrow_codes
from pipelines.serving.codes_body import CodesLimits
from pipelines.serving.held_bytes import HeldBytes
from pipelines.serving.json_codes import read_json_codes, write_json_codes
from pipelines.serving.msgpack_codes import read_msgpack_codes, write_msgpack_codes
from pipelines.serving.multipart_file import file_of_form
from pipelines.serving.npy_codes import read_npy_codes, write_npy_codes
from tokenizer import QuantoneError

LIMITS = CodesLimits(max_levels=8, max_frames=1000)
FIELDS = {"num_samples": 37, "codec": "tiny"}
FORMATS = {
    "json": (read_json_codes, lambda codes: write_json_codes(codes, FIELDS)),
    "msgpack": (read_msgpack_codes, lambda codes: write_msgpack_codes(codes, FIELDS)),
    "msgpack lists": (read_msgpack_codes, lambda codes: msgpack.packb({"codes": codes.tolist(), **FIELDS})),
    "npy": (read_npy_codes, write_npy_codes),
    "arrow": (read_arrow_codes, lambda codes: write_arrow_codes(codes, FIELDS)),
}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(2, 65536), st.integers(0, 9))
def test_what_was_written_is_read(name, levels, frames, codebook_size, seed):
    """All codes of all sizes, with the options beside them."""
    read, write = FORMATS[name]
    codes = np.random.default_rng(seed).integers(0, codebook_size, (levels, frames)).astype(np.uint16)
    body = read(write(codes), LIMITS)
    np.testing.assert_array_equal(body.codes, codes)
    if name != "npy":
        assert body.options["num_samples"] == 37


@pytest.mark.parametrize("name", FORMATS)
def test_bodies_that_were_cut_are_errors_wherever_they_were_cut(name):
    """Never fewer codes than were sent, and no error of anybody else."""
    read, write = FORMATS[name]
    body = write(np.arange(24, dtype=np.uint16).reshape(4, 6) * 99)
    needed = len(body) - 8 if name == "arrow" else len(body)  # an end mark that readers do without
    for end in range(needed):
        with pytest.raises(QuantoneError):
            read(body[:end], LIMITS)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bodies_are_read_or_refused(name):
    """Flipped, overwritten and cut bytes give codes within the limits, or an error of ours; nothing else."""
    read, write = FORMATS[name]
    body = write(np.arange(24, dtype=np.uint16).reshape(4, 6) * 99)
    rng, refused = random.Random(0), 0  # noqa: S311
    for _ in range(1500):
        damaged = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 4])):
            damaged[rng.randrange(len(damaged))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        try:
            codes = read(bytes(damaged), LIMITS).codes
            assert codes.ndim == 2
            assert codes.size <= 8000
        except QuantoneError:
            refused += 1
    assert refused > 100


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_by_every_reader(noise):
    """Whatever it is."""
    for read, _ in FORMATS.values():
        with pytest.raises(QuantoneError):
            read(noise, LIMITS)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(max_examples=50, deadline=None)
@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_and_any_msgpack_is_read_or_refused(value):
    """As the whole body, and as codes."""
    for content in (value, {"codes": value}, {"codec": value, "codes": [[1]]}):
        for read, write in ((read_json_codes, lambda c: json.dumps(c).encode()), (read_msgpack_codes, msgpack.packb)):
            try:
                body = write(content)
            except OverflowError:  # msgpack has no such integers
                continue
            try:
                assert read(body, LIMITS).codes.dtype.kind in "iu"
            except QuantoneError as error:
                assert str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (read_msgpack_codes, b"\x81\xa5codes\x98" + b"\xdc\x03\xe8" * 1020),
        (read_msgpack_codes, b"\x81\xa6scales" + b"\xdc\x0f\xff" * 1020),
        (read_json_codes, b'{"codes": [' + b"[" * 2**20 + b"]" * 2**20),
        (read_json_codes, b'{"codes": [[' + b"0," * 2**20),
        (
            read_npy_codes,
            b"\x93NUMPY\x01\0\x46\0{'descr': '<u2', 'fortran_order': False, 'shape': (8, 999), }          \n",
        ),
    ],
)
def test_a_body_cannot_make_its_reader_take_much_more_memory_than_it_has_bytes(read, body):
    """Lengths are checked before lists are made."""
    tracemalloc.start()
    try:
        with pytest.raises(QuantoneError):
            read(body, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("write", ["write_ipc", "write_ipc_stream"])
def test_compressed_arrow_is_refused_before_it_is_inflated(write, compression):
    """Its buffers say how large they will get, and pyarrow would believe them."""
    stream = io.BytesIO()
    getattr(pl.DataFrame({"codes_00": [[1, 2, 3]]}), write)(stream, compression=compression)
    with pytest.raises(QuantoneError, match="compress"):
        read_arrow_codes(stream.getvalue(), LIMITS)


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"codes_00": [[1], [2]]}, "one row"),
        ({"codes_00": [[1]], "codes_02": [[1]]}, "without gaps"),
        ({"codes_00": [[1.5]]}, "wrong type"),
        ({"codes_00": [[None, 1]]}, "nulls"),
        ({"codes_00": [1]}, "wrong type"),
        ({"codes": [[1]]}, "0 levels"),
        ({"codes_00": pl.Series([[]], dtype=pl.List(pl.UInt16))}, "no frames"),
    ],
)
def test_other_tables_are_told_what_is_wrong(columns, complaint):
    """One row, with lists of integers."""
    stream = io.BytesIO()
    pl.DataFrame(columns).write_ipc_stream(stream)
    with pytest.raises(QuantoneError, match=complaint):
        read_arrow_codes(stream.getvalue(), LIMITS)


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=40))
def test_the_file_of_a_form_comes_out_as_it_went_in(content, other):
    """Also where it holds line ends and dashes."""
    mark = "c0ffee-c0ffee"
    parts = ((b'form-data; name="other"; filename="file"', other), (b'form-data; filename="x"; name="file"', content))
    body = b"".join(
        b"--%b\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (mark.encode(), head, data) for head, data in parts
    )
    assert file_of_form(body + f"--{mark}--\r\n".encode(), f'multipart/form-data; boundary="{mark}"') == content


def test_all_requests_together_hold_no_more_than_the_limit():
    """What one gives back, another may take; what is refused is not counted."""
    held = HeldBytes(100)
    with held.share() as one:
        one.add(60)
        with held.share() as other:
            other.add(40)
            with pytest.raises(Overloaded):
                one.add(1)
            assert one.refused
            assert not other.refused
        one.add(40)
        assert held.held == 100
    assert held.held == 0
    one.add(1000)  # a thread that outlived its request
    assert held.held == 0


def test_a_gzip_of_many_members_is_inflated_in_order():
    """As tools write it that compress in parallel."""
    from pipelines.serving.request_body import _inflated
    from pipelines.serving.service_limits import Exchange

    pieces = [bytes([n]) * 1000 for n in range(5)]
    body = b"".join(map(gzip.compress, pieces))
    with HeldBytes(10**6).share() as held:
        exchange = Exchange(0.0, held, None)
        assert _inflated(body, max_bytes=5000, exchange=exchange) == b"".join(pieces)
        with pytest.raises(QuantoneError, match="more than 4999"):
            _inflated(body, max_bytes=4999, exchange=exchange)
        for end in (1, 10, 20, len(body) - 1):
            with pytest.raises(QuantoneError, match="gzip"):
                _inflated(body[:end], max_bytes=5000, exchange=exchange)
