"""Rows of parts, with what a test does not care about filled in."""

import numpy as np

from pipelines.datasets.audio_facts import AudioFacts
from pipelines.datasets.parts import PartFormat, TokenRow


def token_row(name, codes, *, num_samples=None, uri=None, **fields):
    """A row of codes [K, T] with hop 8, of speech at a usual level unless fields say something else."""
    defaults = {
        "input_id": name,
        "start_sample": 0,
        "source_sample_rate": 16000,
        "source_channels": 1,
        "facts": AudioFacts(0.5, -20.0, 0.0, 0.8, f"{hash_of(codes):016x}"),
    }
    samples = codes.shape[1] * 8 if num_samples is None else num_samples
    address = f"/nowhere/{name}" if uri is None else uri
    return TokenRow(id=name, uri=address, num_samples=samples, codes=codes.astype(np.uint16), **(defaults | fields))


def hash_of(codes):
    """Something that differs where codes do."""
    return int(np.frombuffer(np.ascontiguousarray(codes, np.uint16).tobytes(), np.uint8).astype(np.uint64).sum())


def part_format(codec, num_codebooks=None, **fields):
    """Of a codec's parts."""
    levels = codec.spec.num_codebooks if num_codebooks is None else num_codebooks
    return PartFormat(spec=codec.spec, num_codebooks=levels, card=codec.card(), **fields)
