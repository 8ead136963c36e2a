"""Small entropy coders and codes for tests of containers: the coder is real, its model a table."""

import hashlib

import constriction
import numpy as np

from lm_head.compression import CodecIdentity
from tokenizer import BitstreamError

CODEC = CodecIdentity(hashlib.sha256(b"tiny codec").hexdigest(), 16, 24000, 320)
_PROBABILITIES = np.array([*(2.0**-code for code in range(1, 16)), 2.0**-15])  # exact: no rounding to freeze


class TableCoder:
    """Range coding with one table for all 16 codes of all levels: code 0 costs a bit, the next one two, and so on."""

    identity = hashlib.sha256(b"table coder").hexdigest()
    num_codebooks, codebook_size, max_frames = 8, 16, 4096

    def __init__(self):
        self.model = constriction.stream.model.Categorical(_PROBABILITIES, perfect=False)
        self.encoded, self.decoded = [], []  # how many blocks each call got

    def encode(self, blocks):
        self.encoded.append(len(blocks))
        return [self._encode(block) for block in blocks]

    def decode(self, payloads, num_codebooks, num_frames):
        self.decoded.append(len(payloads))
        return [self._decode(*block, num_codebooks) for block in zip(payloads, num_frames, strict=True)]

    def _encode(self, block):
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(block.T.astype(np.int32).reshape(-1), self.model)
        return encoder.get_compressed().astype("<u4").tobytes()

    def _decode(self, payload, num_frames, num_codebooks):
        if len(payload) % 4:
            raise BitstreamError(f"{len(payload)} bytes are no whole number of words")
        decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        codes = decoder.decode(self.model, num_frames * num_codebooks)
        if not decoder.maybe_exhausted():
            raise BitstreamError("bytes behind the last code")
        return codes.reshape(num_frames, num_codebooks).T.astype(np.uint16)


def predictable_codes(num_codebooks, num_frames, seed=0):
    """[K, T] codes that the table fits: two bits each."""
    drawn = np.random.default_rng(seed).geometric(0.5, size=(num_codebooks, num_frames)) - 1
    return np.minimum(drawn, 15).astype(np.uint16)


def uniform_codes(num_codebooks, num_frames, seed=0):
    """[K, T] codes that nothing predicts: four bits each."""
    return np.random.default_rng(seed).integers(0, 16, size=(num_codebooks, num_frames)).astype(np.uint16)


def counted_codes(num_codebooks, num_frames):
    """[K, T] codes by a formula, for files that are frozen: 0 mostly, at times up to 15."""
    frame, level = np.arange(num_frames), np.arange(num_codebooks)[:, None]
    return (((7 * frame + 5 * level) % 11 == 0) * ((3 * frame + level) % 16)).astype(np.uint16)
