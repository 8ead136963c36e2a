"""The .qtn container: its bytes are frozen, every damage is found, and nothing that is declared is believed."""

import contextlib
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_head.compression import compress
from lm_head.decompression import decompress, open_qtn
from lm_head.qtn import Block, QtnHeader, block_crc, read_qtn, write_qtn
from tests.lm_head.small_coders import CODEC, TableCoder, counted_codes, predictable_codes, uniform_codes
from tokenizer import BitstreamError, Encoded

GOLDEN = Path(__file__).parent / "golden"
PAGE = Path(__file__).parents[2] / "docs" / "qtn.md"
SCALES = (0.25, 1.5)


def golden_input(name):
    """What a golden file was made of: codes with all that belongs to them, and the coder."""
    codes = counted_codes(3, 40)
    scales = torch.tensor([SCALES]) if name == "scales" else None
    encoded = Encoded(torch.from_numpy(codes.astype(np.int64))[None], scales, 40 * 320 - 7)
    return encoded, TableCoder() if name == "coded" else None


def sealed(fields):
    """A header with the CRC that belongs to it."""
    return fields + struct.pack("<I", zlib.crc32(fields))


def header_bytes(*, flags=0x03, num_codebooks=4, counts=b"\x10\x20\x40"):
    """A header of codes of 4 bits, in blocks of 16 frames, 32 of them, 64 samples."""
    return sealed(b"QTN\x01" + bytes([flags]) + bytes.fromhex(CODEC.prefix) + bytes([num_codebooks]) + counts)


def damage(data):
    """Every stream that differs in one bit, every one that is cut off, and some that go on."""
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)
    for end in range(len(data)):
        yield data[:end]
    yield from (data + tail for tail in (b"\0", b"\0\0\0\0", b"\xff", data[-1:], data))


@pytest.mark.parametrize("name", ["packed", "coded", "scales"])
def test_bytes_are_frozen(name):
    """What this version writes, it writes forever; what it wrote, it reads forever."""
    encoded, lm = golden_input(name)
    frozen = (GOLDEN / f"{name}.qtn").read_bytes()
    assert compress(encoded, CODEC, lm, frames_per_block=16) == frozen
    restored = decompress(frozen, lm)
    assert torch.equal(restored.codes, encoded.codes)
    assert restored.num_samples == encoded.num_samples
    assert restored.scales is None if encoded.scales is None else torch.equal(restored.scales, encoded.scales)


@pytest.mark.parametrize("name", ["packed", "scales"])
def test_the_page_is_enough_to_write_a_reader(name):
    """The reader printed in docs/qtn.md, which uses nothing of ours, reads the frozen files."""
    printed = re.search(r"```python\n(import struct.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    room = {}
    exec(printed, room)  # noqa: S102 - our own page
    stream = room["read_packed"]((GOLDEN / f"{name}.qtn").read_bytes())
    assert stream["codes"] == counted_codes(3, 40).tolist()
    assert stream["num_samples"] == 40 * 320 - 7
    assert stream["scales"] == (list(SCALES) if name == "scales" else None)


def test_a_short_clip_pays_little_for_the_container():
    """Five seconds at four levels: 28 bytes around packed codes, 33 around coded ones."""
    codes = predictable_codes(4, 375)
    assert len(compress(codes, CODEC)) == 23 + 1 + 4 + 375 * 4 * 4 // 8
    header, blocks = read_qtn(compress(codes, CODEC, TableCoder()))
    assert len(header.to_bytes()) == 27
    assert len(write_qtn(header, blocks)) == 27 + 2 + 4 + len(blocks[0].payload)


@pytest.mark.parametrize("lm", [None, TableCoder()], ids=["packed", "coded"])
def test_no_damage_goes_unnoticed(lm):
    """Each flipped bit, each cut and each byte too many of 2 kB is an error, or changes nothing at all."""
    codes = predictable_codes(4, 950 if lm is None else 1900)
    data = compress(codes, CODEC, lm, frames_per_block=700)
    assert 1800 < len(data) < 2200
    intact, harmless = decompress(data, lm), 0
    for damaged in damage(data):
        try:
            restored = decompress(damaged, lm)
        except BitstreamError:
            continue
        harmless += 1
        assert torch.equal(restored.codes, intact.codes)
        assert restored.num_samples == intact.num_samples
    assert harmless <= (0 if lm is None else 3)  # what the range coder writes behind the last code of each block


def test_padding_is_zero():
    """A packed block has no bits to hide something in: those behind the last code must be 0."""
    codes = uniform_codes(3, 3)  # 36 bits
    data = bytearray(compress(codes, CODEC))
    data[-1] |= 0x80
    with pytest.raises(BitstreamError, match="block 0"):
        decompress(bytes(data))


def test_blocks_belong_to_their_place_and_stream():
    """Equal blocks differ in their CRC from place to place and from stream to stream, so none can be moved."""
    codes = np.tile(uniform_codes(2, 16), 2)
    header, blocks = read_qtn(compress(codes, CODEC, frames_per_block=16))
    assert blocks[0].payload == blocks[1].payload
    other, others = read_qtn(
        compress(Encoded(torch.from_numpy(codes.astype(np.int64))[None], None, 9), CODEC, None, 16)
    )
    for wrong in (blocks[::-1], [others[0], blocks[1]]):
        with pytest.raises(BitstreamError, match=r"block 0 .* CRC"):
            decompress(write_qtn(header, wrong))
    assert decompress(write_qtn(other, others)).num_samples == 9


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut off"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "does not begin with QTN"),
        (b"QTN\x02" + header_bytes()[4:], "version 2"),
        (header_bytes(flags=0x43) + bytes(10), "unknown flags"),
        (header_bytes(flags=0x83) + bytes(10), "unknown flags"),
        (header_bytes(num_codebooks=0) + bytes(10), "num_codebooks"),
        (header_bytes(counts=b"\x00\x20\x40") + bytes(10), "frames_per_block"),
        (header_bytes(counts=b"\x81\x20\x20\x40") + bytes(10), "frames_per_block"),
        (header_bytes(counts=b"\x10" + b"\x80" * 8 + b"\x10\x40"), "more than 8 bytes"),
        (header_bytes(counts=b"\x10\xff\xff\xff\xff\xff\xff\xff\x0f\x40"), "do not fit into 0 bytes"),
        (header_bytes(counts=b"\x10\x20\x81\x80\x80\x01"), "num_samples"),
        (header_bytes(counts=b"\x10\xa0\x00\x40") + bytes(10), "more bytes than it needs"),
        (header_bytes(flags=0x23, counts=b"\x10\x20\x40\xff\xff\xff\xff\xff\xff\x0f"), "cut off"),
        (header_bytes(flags=0x23, counts=b"\x10\x20\x40\x01" + struct.pack("<f", -1.0)), "scales"),
        (header_bytes(flags=0x23, counts=b"\x10\x20\x40\x01" + struct.pack("<f", float("nan"))), "scales"),
        (header_bytes() + b"\x05\0\0\0\0" + bytes(100), "names no model"),
        (header_bytes() + b"\x22\0\0\0\0" + bytes(100), "block 0 is 33 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_declared_is_not_believed(data, said):
    """Headers with a right CRC and wrong content are refused, before anything is allocated for what they claim."""
    with pytest.raises(BitstreamError, match=said):
        open_qtn(data)


@given(st.integers(0, 63), st.integers(0, 255), st.lists(st.integers(0, 127), min_size=3, max_size=3), st.binary())
def test_whatever_follows_a_sound_header_is_read_or_refused(flags, num_codebooks, counts, content):
    """Arbitrary bytes never end in another error than the one that callers expect."""
    model = bytes.fromhex(TableCoder.identity[:8]) if flags & 0x10 else b""
    scales = b"\0" if flags & 0x20 else b""
    fields = bytes.fromhex(CODEC.prefix) + model + bytes([num_codebooks, *counts]) + scales
    with contextlib.suppress(BitstreamError):
        assert decompress(sealed(b"QTN\x01" + bytes([flags]) + fields) + content, TableCoder()).codes.numel() == 0


def test_a_header_is_small_whatever_it_claims():
    """2**52 frames in a stream of 30 bytes fail at once; they would be 36 petabytes."""
    claim = QtnHeader(
        codec=CODEC.prefix,
        model=None,
        num_codebooks=4,
        codebook_size=16,
        frames_per_block=4096,
        num_frames=2**52,
        num_samples=2**52,
    )
    with pytest.raises(BitstreamError, match="blocks do not fit"):
        open_qtn(claim.to_bytes())


def test_what_the_format_cannot_hold_is_refused_when_writing():
    """A header checks itself, whoever builds it."""
    fields = {"codec": CODEC.prefix, "model": None, "num_codebooks": 1, "codebook_size": 1024}
    counts = {"frames_per_block": 750, "num_frames": 10, "num_samples": 3200}
    QtnHeader(**fields, **counts)
    wrong = {"codebook_size": 1000, "num_codebooks": 256, "codec": "12", "model": "XYZ", "frames_per_block": 4097}
    for name, value in {**wrong, "num_samples": 10 * 65536 + 1, "scales": (0.0,)}.items():
        with pytest.raises(ValueError, match=name):
            QtnHeader(**{**fields, **counts, name: value})


def test_structures_survive_bytes():
    """Header and blocks come back as they were, with and without a model and scales."""
    for model, scales in ((None, None), ("0123abcd", None), ("0123abcd", (0.5, 3.0)), (None, ())):
        header = QtnHeader(
            codec="00112233aabb",
            model=model,
            num_codebooks=2,
            codebook_size=1024,
            frames_per_block=10,
            num_frames=15,
            num_samples=4711,
            scales=scales,
        )
        codes = uniform_codes(2, 10)
        crc = block_crc(header.crc(), 0, codes)
        blocks = [Block(bytes(25), False, crc), Block(b"abc" if model else bytes(13), model is not None, 7)]
        assert read_qtn(write_qtn(header, blocks)) == (header, blocks)
