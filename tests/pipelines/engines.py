"""Engines under test: codecs that can be held in a step, broken or watched, and what offline decoding gives."""

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import torch

from tests.conftest import make_codec, tiny_spec
from tokenizer import Encoded

HOP = 8


def within(coroutine, seconds=20.0):
    """What a coroutine returns, on a loop of its own; a hang is a failure."""

    async def bounded():
        async with asyncio.timeout(seconds):
            return await coroutine

    return asyncio.run(bounded())


def random_codes(frames, levels=4, seed=0):
    """[levels, frames] of a tiny codec."""
    return np.random.default_rng(seed).integers(0, 16, (levels, frames)).astype(np.uint16)


def offline(codec, codes, num_samples=None):
    """[C, S] that the codec gives for the whole utterance."""
    batch = torch.from_numpy(codes.astype(np.int64))[None]
    length = codes.shape[1] * HOP if num_samples is None else num_samples
    return codec.decode(Encoded(batch, None, length))[0].numpy()


def close(one, other):
    """Whether two waveforms are the same to 1e-5."""
    return one.shape == other.shape and np.abs(one - other).max(initial=0.0) < 1e-5


async def collected(blocks):
    """[1, S] of all blocks of an iterator."""
    found = [block async for block in blocks]
    return np.concatenate([np.zeros((1, 0), np.float32), *found], axis=1)


class HeldCodec:
    """A tiny codec whose steps wait while it is held, and raise for one code if you like. It keeps what it saw."""

    def __init__(self, kind="patch", poison=None):
        self.codec = make_codec(tiny_spec(kind))
        self.poison, self.seen = poison, []
        self.entered = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self._step = self.codec.decode_step
        self.codec.decode_step = self.decode_step

    def decode_step(self, codes, state):
        self.seen.append(codes.numpy().copy())
        self.entered.set()
        assert self._free.wait(20), "a test left the codec held"
        if self.poison is not None and bool((codes == self.poison).any()):
            raise MemoryError("no room for this step")
        return self._step(codes, state)

    @contextmanager
    def held(self):
        """The next step begins, and does not end inside of this block."""
        self.entered.clear()
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    async def stuck(self):
        """Wait until a step has begun."""
        await asyncio.to_thread(self.entered.wait, 20)


@asynccontextmanager
async def paused(engine):
    """The model thread does other work while this block runs: what comes meanwhile waits for it."""
    begun, go_on = threading.Event(), threading.Event()

    def wait():
        begun.set()
        assert go_on.wait(20), "a test left the engine paused"
        yield

    work = asyncio.create_task(engine.run(wait()))
    await asyncio.to_thread(begun.wait, 20)
    try:
        yield
    finally:
        go_on.set()
        await work


class Watcher:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *facts: self.told.append((name, *facts))

    def named(self, name):
        """The facts of all calls of one method."""
        return [facts for told, *facts in self.told if told == name]
