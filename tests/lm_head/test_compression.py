"""Codes to .qtn streams and back: nothing is lost, the smaller form wins, many streams share their passes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_head.block_coder import LOCKSTEP_BLOCKS
from lm_head.compression import CodecIdentity, compress, compress_many
from lm_head.decompression import decompress, decompress_many, open_qtn
from lm_head.qtn import read_qtn, write_qtn
from tests.conftest import make_codec, tiny_spec
from tests.lm_head.small_coders import CODEC, TableCoder, predictable_codes, uniform_codes
from tokenizer import BitstreamError, CodesError, Encoded


class OtherCoder(TableCoder):
    """The same coder under another name."""

    identity = "f" * 64


class BrokenCoder(TableCoder):
    """A coder that takes no damage well."""

    def decode(self, *arguments):  # noqa: ARG002 - it never looks at them
        raise ZeroDivisionError


class WrongShapeCoder(TableCoder):
    """A coder that loses a frame."""

    def _decode(self, payload, num_frames, num_codebooks):
        return super()._decode(payload, num_frames, num_codebooks)[:, 1:]


def restored(data, lm=None, **options):
    """[K, T] codes of a stream."""
    return decompress(data, lm, **options).codes[0].numpy()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 90), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(0, 9))
def test_codes_come_back_as_they_were(num_codebooks, num_frames, frames_per_block, predictable, coded, seed):
    """Any number of levels and frames, none included, in blocks of any length, packed or coded."""
    codes = (predictable_codes if predictable else uniform_codes)(num_codebooks, num_frames, seed)
    lm = TableCoder() if coded else None
    data = compress(codes, CODEC, lm, frames_per_block)
    np.testing.assert_array_equal(restored(data, lm), codes)
    reader = open_qtn(data, lm)
    assert (reader.header.num_frames, reader.header.num_samples) == (num_frames, 320 * num_frames)
    blocks = [reader.block(index) for index in reversed(range(reader.header.num_blocks))]
    np.testing.assert_array_equal(np.concatenate([codes[:, :0], *blocks[::-1]], axis=1), codes)


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_size_of_codebook_is_packed_in_its_bits(bits):
    """Codebooks of 2 to 65536 entries: the payload has as many bits as the codes."""
    identity = dataclasses.replace(CODEC, codebook_size=2**bits)
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 101))
    data = compress(codes, identity)
    assert open_qtn(data).header.packed_bytes == -(-303 * bits // 8)
    np.testing.assert_array_equal(restored(data), codes)


def test_all_that_was_encoded_comes_back():
    """Codes as the codec's decode takes them, with scales and the length to the sample."""
    codec = make_codec(tiny_spec("segmented"))
    encoded = codec.encode(torch.randn(2, 1001, generator=torch.Generator().manual_seed(0)) * 0.1)
    again = decompress(compress(encoded, codec), codec=codec)
    assert torch.equal(again.codes, encoded.codes)
    assert torch.equal(again.scales, encoded.scales)
    assert torch.equal(codec.decode(again), codec.decode(encoded))


def test_blocks_are_about_ten_seconds():
    """750 frames at 75 per second, 125 at 12.5; fewer where the coder takes fewer."""
    codes = uniform_codes(1, 2000)
    assert open_qtn(compress(codes, CODEC)).header.frames_per_block == 750
    slow = CodecIdentity(CODEC.sha256, 16, 24000, 1920)
    assert open_qtn(compress(codes, slow)).header.frames_per_block == 125
    short = TableCoder()
    short.max_frames = 500
    assert open_qtn(compress(codes, CODEC, short)).header.frames_per_block == 500


def test_each_block_takes_its_smaller_form():
    """Blocks that the coder would make larger are packed, beside others that it makes smaller."""
    codes = np.concatenate([predictable_codes(4, 60), uniform_codes(4, 60), predictable_codes(4, 30)], axis=1)
    lm = TableCoder()
    data = compress(codes, CODEC, lm, frames_per_block=60)
    header, blocks = read_qtn(data)
    assert [block.coded for block in blocks] == [True, False, True]
    assert header.model == lm.identity[:8]
    np.testing.assert_array_equal(open_qtn(data).block(1), codes[:, 60:120])  # needs no coder
    assert compress(codes[:, 60:120], CODEC, lm) == compress(codes[:, 60:120], CODEC)  # nor does this whole stream


def test_one_block_is_decoded_without_the_others():
    """Random access costs one block, and damage elsewhere does not matter to it."""
    codes, lm = predictable_codes(2, 300), TableCoder()
    header, blocks = read_qtn(compress(codes, CODEC, lm, frames_per_block=100))
    reader = open_qtn(write_qtn(header, [blocks[0]._replace(crc=0), *blocks[1:]]), lm)
    np.testing.assert_array_equal(reader.block(1), codes[:, 100:200])
    assert lm.decoded == [1]
    with pytest.raises(BitstreamError, match="block 0"):
        reader.block(0)
    for missing in (-1, 3):
        with pytest.raises(IndexError):
            reader.block(missing)


def test_many_streams_share_their_passes():
    """Blocks of all streams with as many levels go through the coder together, and each stream is as it is alone."""
    items = [predictable_codes(levels, 50 + index, index) for index, levels in enumerate((2, 4, 2, 2, 4))]
    lm = TableCoder()
    streams = compress_many(items, CODEC, lm, frames_per_block=40)
    assert sorted(lm.encoded) == [4, 6]
    assert streams == [compress(item, CODEC, TableCoder(), 40) for item in items]
    for encoded, item in zip(decompress_many(streams, lm), items, strict=True):
        np.testing.assert_array_equal(encoded.codes[0], item)
    assert sorted(lm.decoded) == [4, 6]
    assert compress_many([], CODEC, lm) == decompress_many([], lm) == []


def test_a_long_stream_is_decoded_in_bounded_groups():
    """No pass gets more blocks than go in lockstep, however long a stream is."""
    lm = TableCoder()
    codes = predictable_codes(1, 1600)
    np.testing.assert_array_equal(restored(compress(codes, CODEC, lm, frames_per_block=10), lm), codes)
    assert max(lm.encoded) <= LOCKSTEP_BLOCKS
    assert max(lm.decoded) <= LOCKSTEP_BLOCKS


def test_a_damaged_stream_is_named():
    """One damaged stream among many is an error that says which, and which of its blocks."""
    lm = TableCoder()
    streams = compress_many([predictable_codes(2, 100, seed) for seed in range(3)], CODEC, lm, 50)
    header, blocks = read_qtn(streams[1])
    cut = [blocks[0], blocks[1]._replace(payload=blocks[1].payload[:-4])]
    for damaged in (write_qtn(header, cut), write_qtn(header, [blocks[0], blocks[1]._replace(crc=1)])):
        with pytest.raises(BitstreamError, match=r"stream 1.*block 1"):
            decompress_many([streams[0], damaged, streams[2]], lm)
    with pytest.raises(BitstreamError, match=r"stream 2.*cut off"):
        decompress_many([streams[0], streams[1], streams[2][:9]], lm)


@pytest.mark.parametrize(
    ("lm", "said"),
    [
        (None, "coded by model {0}, and no entropy model"),
        (OtherCoder(), "coded by model {0}, the one at hand is ffffffff"),
        (BrokenCoder(), "block 0 is damaged: ZeroDivisionError"),
        (WrongShapeCoder(), "block 0 is damaged: not as many codes"),
    ],
    ids=["none", "another", "one that fails", "one that loses a frame"],
)
def test_coders_that_cannot_read_a_stream(lm, said):
    """A missing or another coder is named with the one that it takes; whatever a coder raises is damage."""
    data = compress(predictable_codes(2, 100), CODEC, TableCoder())
    with pytest.raises(BitstreamError, match=said.format(TableCoder.identity[:8])):
        decompress(data, lm)


def test_a_stream_of_another_codec_is_refused():
    """Codes mean nothing to another codec: both are named."""
    data = compress(uniform_codes(1, 5), CODEC)
    other = CodecIdentity("ab" * 32, 16, 24000, 320)
    np.testing.assert_array_equal(restored(data, codec=CODEC), uniform_codes(1, 5))
    with pytest.raises(BitstreamError, match=f"{CODEC.sha256[:12]}, the one at hand is abababababab"):
        decompress(data, codec=other)


def test_blocks_that_a_coder_cannot_have_written_are_not_given_to_it():
    """A header with the coder's name and sizes that it does not have is refused before the coder sees it."""
    header, blocks = read_qtn(compress(predictable_codes(2, 100), CODEC, TableCoder()))
    for name, value in {"num_codebooks": 9, "codebook_size": 32}.items():
        lm = TableCoder()
        with pytest.raises(BitstreamError, match="no blocks of this size"):
            decompress(write_qtn(dataclasses.replace(header, **{name: value}), blocks), lm)
        assert lm.decoded == []


def test_the_card_of_a_dataset_identifies_its_codec():
    """What a dataset keeps of its codec is enough to compress its rows: the codec itself gives the same bytes."""
    codec = make_codec(tiny_spec())
    codes = uniform_codes(4, 33)
    data = compress(codes, CodecIdentity.from_card(codec.card()))
    assert data == compress(codes, codec) == compress(torch.from_numpy(codes.astype(np.int64)), codec)
    assert decompress(data, codec=codec).num_samples == 33 * 8


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((1, 2, 3), np.int64),
        np.zeros((0, 3), np.int64),
        np.zeros((2, 3)),
        np.array([[16]]),
        np.array([[-1]]),
        np.zeros((256, 1), np.int64),
        Encoded(torch.zeros(2, 1, 3, dtype=torch.int64), None, 9),
        Encoded(torch.zeros(1, 1, 3, dtype=torch.int64), None, -1),
        Encoded(torch.zeros(1, 1, 3, dtype=torch.int64), None, 10**9),
        Encoded(torch.zeros(1, 1, 3, dtype=torch.int64), torch.tensor([[0.0]]), 9),
    ],
    ids=["batch", "no levels", "floats", "too large", "negative", "levels", "two", "length", "too long", "scales"],
)
def test_codes_are_checked(codes):
    """What is not the codes of one waveform is refused at the door."""
    with pytest.raises(CodesError):
        compress(codes, CODEC)


def test_codes_must_fit_the_coder():
    """More levels, other codebooks, or longer blocks than the coder has: refused, not packed in silence."""
    with pytest.raises(CodesError, match="up to 8 of 16"):
        compress(uniform_codes(9, 5), CODEC, TableCoder())
    with pytest.raises(CodesError, match="up to 8 of 16"):
        compress(uniform_codes(1, 5), dataclasses.replace(CODEC, codebook_size=32), TableCoder())
    for frames in (0, 4097):
        with pytest.raises(ValueError, match="frames_per_block"):
            compress(uniform_codes(1, 5), CODEC, TableCoder(), frames)
