"""How the codec step of a TTS server is replaced: the usual one, the same with state, and the service.

    python examples/replace_codec_step.py speech.wav                              # the first two, in this process
    quantone serve speech_24khz & python examples/replace_codec_step.py speech.wav --url http://127.0.0.1:8000

TTS servers get codes chunk by chunk. Their codec has no state, so each chunk is decoded again together with some
frames before it ("left context"), and all but the new samples are thrown away: more compute per chunk, and a seam
wherever the context is shorter than what the decoder remembers. All three steps below take an iterator of chunks
[K, n] and give an iterator of samples [C, m], so that one is put in the place of another in one line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.clients.decode_client import DecodeClient
from tokenizer import Codec, Encoded, load_codec, read_audio

Codes = NDArray[np.integer[Any]]
Samples = NDArray[np.float32]
CodecStep = Callable[[Iterable[Codes]], Iterable[Samples]]


def windowed(codec: Codec, left_context: int) -> CodecStep:
    """Before: every chunk is decoded with the frames before it."""

    def step(chunks: Iterable[Codes]) -> Iterator[Samples]:
        context = np.zeros((0, 0), np.int64)
        for chunk in chunks:
            window = chunk if context.size == 0 else np.concatenate([context, chunk], axis=1)
            yield decoded(codec, window)[:, -chunk.shape[1] * codec.spec.hop_length :]
            context = window[:, max(0, window.shape[1] - left_context) :]

    return step


def stateful(codec: Codec) -> CodecStep:
    """After, in one process: the decoder's state is an argument and a result, and nothing is decoded twice."""

    def step(chunks: Iterable[Codes]) -> Iterator[Samples]:
        state = codec.decode_state()
        for chunk in chunks:
            waveform, state = codec.decode_step(torch.from_numpy(chunk.astype(np.int64))[None], state)
            yield waveform[0].numpy()
        yield codec.decode_flush(state)[0][0].numpy()

    return step


def served(client: DecodeClient, num_codebooks: int) -> CodecStep:
    """After, as a service: many servers share one decoder, which puts the steps of all their streams into one batch."""
    return lambda chunks: client.decode_chunks(chunks, num_codebooks=num_codebooks)


def decoded(codec: Codec, codes: Codes) -> Samples:
    """Codes [K, T] decoded at once, [C, S]."""
    batch = torch.from_numpy(codes.astype(np.int64))[None]
    return np.asarray(codec.decode(Encoded(batch, None, codes.shape[1] * codec.spec.hop_length))[0].numpy())


def compare(codec: Codec, codes: Codes, steps: dict[str, CodecStep], chunk_frames: int) -> dict[str, float]:
    """Print how each step sounds against decoding everything at once; the largest difference of each."""
    whole, differences = decoded(codec, codes), {}
    chunks = [codes[:, start : start + chunk_frames] for start in range(0, codes.shape[1], chunk_frames)]
    for name, step in steps.items():
        begin = time.perf_counter()
        waveform = np.concatenate(list(step(chunks)), axis=1)
        seconds = time.perf_counter() - begin
        differences[name] = float(np.abs(waveform - whole).max())
        print(f"{name:28} largest difference {differences[name]:.1e}   {1000 * seconds / len(chunks):6.1f} ms a chunk")
    return differences


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="a recording, whose codes stand for those of a TTS model")
    parser.add_argument("--codec", default="speech_24khz", help="bundled name or directory")
    parser.add_argument("--url", default=None, help="of a service with that codec")
    parser.add_argument("--chunk-frames", type=int, default=25)
    parser.add_argument("--left-context", type=int, default=25, help="frames")
    parsed = parser.parse_args(arguments)
    codec = load_codec(parsed.codec)
    waveform, sample_rate = read_audio(parsed.speech)
    encoded = codec.encode(waveform, sample_rate=sample_rate)
    codes = encoded.codes[0].numpy()
    steps = {
        f"windows, {parsed.left_context} frames before": windowed(codec, parsed.left_context),
        "with state": stateful(codec),
    }
    if parsed.url is None:
        compare(codec, codes, steps, parsed.chunk_frames)
        return
    with DecodeClient(parsed.url) as client:
        compare(codec, codes, {**steps, "from the service": served(client, len(codes))}, parsed.chunk_frames)


if __name__ == "__main__":
    main()
