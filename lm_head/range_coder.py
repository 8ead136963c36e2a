"""Codes and their frequencies to bytes and back: constriction's range coder, at the only place that calls it.

Frequencies go in as float32, which holds integers up to 2 ** 24 exactly. "Not perfect" is constriction's name for
rounding each sum of frequencies once instead of searching for the best; golden files in the tests would notice another
rule.
"""

from __future__ import annotations

import constriction
import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import BitstreamError

WORD_BYTES = 4  # of the range coder; little-endian in payloads
_FAMILY = constriction.stream.model.Categorical(perfect=False)

Frequencies = NDArray[np.float32]  # integers of 1 or more that add up to 2 ** 24 at most


class PayloadWriter:
    """Codes, a stretch at a time, to the bytes of one block."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def write(self, codes: NDArray[np.int32], frequencies: Frequencies) -> None:
        """Append codes [n] with the frequencies [n, V] that each of them met."""
        if codes.size:
            self._encoder.encode(codes, _FAMILY, frequencies)

    def payload(self) -> bytes:
        """All that was written."""
        words: bytes = self._encoder.get_compressed().astype("<u4").tobytes()
        return words


class PayloadReader:
    """The codes of one block, which are written again on the way: only what a `PayloadWriter` writes is read.

    Raises:
        BitstreamError: not a whole number of words.
    """

    def __init__(self, payload: bytes) -> None:
        if len(payload) % WORD_BYTES:
            raise BitstreamError(f"a block of {len(payload)} bytes: the range coder writes words of {WORD_BYTES}")
        self._payload, self._again = payload, PayloadWriter()
        self._decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))

    def read(self, frequencies: Frequencies) -> NDArray[np.int32]:
        """The next codes [n] by their frequencies [n, V]. Raises BitstreamError for bits that no code has."""
        try:
            codes: NDArray[np.int32] = self._decoder.decode(_FAMILY, frequencies)
        except AssertionError as error:  # constriction's word for it
            raise BitstreamError("a block holds bits that no codes would give") from error
        self._again.write(codes, frequencies)
        return codes

    def finish(self) -> None:
        """Raise BitstreamError unless the payload is that of the codes that it gave."""
        if self._again.payload() != self._payload:
            raise BitstreamError("a block has other bytes than its codes would give")
