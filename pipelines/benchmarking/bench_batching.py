"""What continuous batching gains: streams that share steps beside the same streams one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from pipelines.benchmarking.bench_turns import take_turns, torch_threads
from pipelines.decoding.decode_engine import DecodeEngine, DecodeStream, EngineSettings
from tokenizer import Codec

_LEAST_CHUNKS = 12  # of each stream: joining and leaving are not what is measured
_CHUNKS = 128  # of all streams, where that is more


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingGain:
    """One number of streams; speeds are medians, in seconds of sound per second."""

    streams: int
    chunk_frames: int
    together: float  # all streams at once
    one_at_a_time: float  # the same streams, one after the other
    gain: float  # median of the rounds' ratios, each of two runs that followed one another


def bench_batching(codec: Codec, streams: Sequence[int], chunks: Sequence[int], *, rounds: int) -> list[BatchingGain]:
    """Measure an engine without a web, on one thread.

    A stream gives its next chunk when it has heard the one before, as a model that is asked in real time does.

    Args:
        codec: on the CPU.
        streams: how many.
        chunks: frames of each push.
        rounds: medians are over so many.
    """
    with torch_threads(1):
        longest = _chunks_of_each(min(streams))
        known = {frames: _known_samples(codec, frames, longest) for frames in chunks}
        with DecodeEngine(codec, EngineSettings(max_streams=max(streams))) as engine:
            return [
                _gain(_Speech(engine, frames, count, known[frames]), rounds) for frames in chunks for count in streams
            ]


def _gain(speech: _Speech, rounds: int) -> BatchingGain:
    contenders = [partial(speech.run, at_once) for at_once in (speech.count, 1)]
    contenders[0]()  # warms up
    (together, alone), gain = take_turns(contenders, rounds)
    return BatchingGain(
        streams=speech.count,
        chunk_frames=speech.chunk_frames,
        together=together,
        one_at_a_time=alone,
        gain=gain or 1.0,
    )


def _chunks_of_each(count: int) -> int:
    """Of so many streams."""
    return max(_LEAST_CHUNKS, _CHUNKS // count)


def _known_samples(codec: Codec, chunk_frames: int, chunks: int) -> list[int]:
    """Samples of a stream that are known after each of its chunks: some codecs hold back what later codes change."""
    known, total = [], 0
    with torch.inference_mode():
        state = codec.decode_state(1)
        chunk = torch.zeros(1, codec.spec.num_codebooks, chunk_frames, dtype=torch.int64)
        for _ in range(chunks):
            waveform, state = codec.decode_step(chunk, state)
            total += waveform.shape[-1]
            known.append(total)
    return known


class _Speech:
    """What all streams say in one run."""

    def __init__(self, engine: DecodeEngine, chunk_frames: int, count: int, known: list[int]) -> None:
        spec = engine.codec.spec
        self.count, self.chunk_frames = count, chunk_frames
        self._engine, self._known = engine, known[: _chunks_of_each(count)]
        self._chunk = np.random.default_rng(0).integers(0, spec.codebook_size, (spec.num_codebooks, chunk_frames))
        self._samples = spec.hop_length * chunk_frames * len(self._known)  # of a stream
        self._audio_seconds = count * self._samples / spec.sample_rate

    def run(self, at_once: int) -> float:
        """All streams, so many at once; returns seconds of sound."""

        async def all_of_them() -> None:
            places = asyncio.Semaphore(at_once)

            async def wait_and_say() -> None:
                async with places:
                    await self._say()

            await asyncio.gather(*(wait_and_say() for _ in range(self.count)))

        asyncio.run(all_of_them())
        return self._audio_seconds

    async def _say(self) -> None:
        """One stream from its opening to its last sample."""
        heard = 0
        async with self._engine.open_stream(num_codebooks=len(self._chunk)) as stream:
            for known in self._known:
                await stream.push(self._chunk)
                while heard < known:
                    heard += await _read(stream)
            stream.finish()
            while count := await _read(stream):
                heard += count
        if heard != self._samples:
            raise RuntimeError(f"{heard} samples came of {self._samples}")


async def _read(stream: DecodeStream) -> int:
    """Samples that came; 0 at the end."""
    samples = await stream.read()
    return 0 if samples is None else samples.shape[-1]
