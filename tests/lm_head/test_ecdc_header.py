"""The header of an original EnCodec file: written by strangers, and believed only as far as the file goes."""

import io
import json
import struct

import pytest

from lm_head.ecdc_header import ECDC_SPECS, EcdcHeader, parse_ecdc_header
from tests.tokenizer.reference_models import import_encodec
from tokenizer import BitstreamError

GOOD = {"m": "encodec_24khz", "al": 3200, "nc": 2, "lm": False}
NUM_CODE_BYTES = 25  # 10 frames of 2 codes of 10 bits


def with_text(text, version=0, magic=b"ECDC"):
    return struct.pack("!4sBI", magic, version, len(text)) + text + bytes(NUM_CODE_BYTES)


def with_values(**changes):
    return with_text(json.dumps(GOOD | changes).encode())


@pytest.mark.parametrize("name", ECDC_SPECS)
@pytest.mark.parametrize("uses_lm", [False, True])
def test_headers_are_those_of_the_package(name, uses_lm):
    """The same bytes, and each reads the other's."""
    import_encodec()
    from encodec.binary import read_ecdc_header, write_ecdc_header

    header, stream = EcdcHeader(name, 12345, 4, uses_lm), io.BytesIO()
    write_ecdc_header(stream, {"m": name, "al": 12345, "nc": 4, "lm": uses_lm})
    assert header.to_bytes() == stream.getvalue()
    assert parse_ecdc_header(stream.getvalue() + bytes(12345)) == (header, len(stream.getvalue()))
    assert read_ecdc_header(io.BytesIO(header.to_bytes())) == {"m": name, "al": 12345, "nc": 4, "lm": uses_lm}


def test_unknown_keys_are_passed_over():
    """As by the original."""
    header, end = parse_ecdc_header(with_values(comment="hello"))
    assert header == EcdcHeader("encodec_24khz", 3200, 2, uses_lm=False)
    assert end == len(with_values(comment="hello")) - NUM_CODE_BYTES


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an .ecdc file, or cut off: 0 bytes"),
        (b"RIFF\0\0\0\0WAVEfmt ", "starts with b'RIFF'"),
        (with_text(b"{}", magic=b"ecdc"), "starts with b'ecdc'"),
        (with_text(json.dumps(GOOD).encode(), version=1), "version 1 is not known"),
        (struct.pack("!4sBI", b"ECDC", 0, 2**32 - 1) + b"{}", "4294967295 bytes of header"),
        (struct.pack("!4sBI", b"ECDC", 0, 3) + b"{}", "3 bytes of header in a file of 11"),
        (with_text(b" " * 2**16 + b"{}"), "65538 bytes of header"),
        (with_text(b""), "damaged header"),
        (with_text(b"\xff\xfe"), "damaged header"),
        (with_text(b"[" * 50000), "damaged header"),
        (with_text(b'{"al": ' + b"9" * 5000 + b"}"), "damaged header"),
        (with_text(b"[1, 2]"), "no JSON object"),
        (with_text(b"{}"), "right types"),
        (with_values(m=None), "right types"),
        (with_values(m="speech_24khz"), "codes of 'speech_24khz'; known are encodec_24khz, encodec_48khz"),
        (with_values(m="x" * 10**4), "codes of 'xxx"),
        (with_values(al="3200"), "right types"),
        (with_values(al=3200.0), "right types"),
        (with_values(al=True), "right types"),
        (with_values(al=0), "0 samples"),
        (with_values(al=-1), "-1 samples"),
        (with_values(nc=0), "0 levels; encodec_24khz has 1 to 32"),
        (with_values(nc=33), "33 levels"),
        (with_values(nc=17, m="encodec_48khz"), "17 levels; encodec_48khz has 1 to 16"),
        (with_values(nc=[2]), "right types"),
        (with_values(lm=0), "right types"),
        (with_values(lm=None), "right types"),
    ],
    ids=range(27),
)
def test_damaged_headers_are_refused(data, reason):
    """Other kinds of files, other versions, no JSON, other types, other ranges: an error that says which."""
    with pytest.raises(BitstreamError, match=reason):
        parse_ecdc_header(data)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 3200),
        ({"nc": 1}, 2 * 3200),
        ({"m": "encodec_48khz"}, 8 * 320),  # the scale takes 4 bytes
        ({"lm": True}, None),
        ({"lm": True, "m": "encodec_48khz"}, None),
    ],
    ids=str,
)
def test_no_more_samples_are_believed_than_the_bytes_can_hold(changes, most):
    """Packed codes have a size; predicted ones at least some bits per ten thousand. Absurd claims fail at once."""
    if most is not None:
        assert parse_ecdc_header(with_values(al=most, **changes))[0].num_samples == most
        with pytest.raises(BitstreamError, match="take at least"):
            parse_ecdc_header(with_values(al=most + 1, **changes))
    for claim in (10**9, 10**18, 10**300):
        with pytest.raises(BitstreamError, match="take at least"):
            parse_ecdc_header(with_values(al=claim, **changes))
