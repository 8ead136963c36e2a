"""The stream protocol spoken by hand, message by message, against a real server with a tiny codec."""

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import torch
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pipelines.decoding.decode_engine import DecodeEngine, EngineSettings
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.service_stream import StreamLimits, stream_router
from tests.pipelines.running_service import running_service
from tokenizer import Encoded

PATH = "/v1/audio/stream"


@contextmanager
def streaming(codec, settings=None, *, limits=None, engine_settings=None, metrics=None, **server):
    """A server of streams of one codec: its url and its engine."""
    with DecodeEngine(codec, engine_settings or EngineSettings()) as engine:
        app = FastAPI()
        app.include_router(
            stream_router({"tiny": engine}, settings or ServiceSettings(), metrics, limits or StreamLimits())
        )
        with running_service(app, **server) as url:
            yield url, engine


def some_codes(num_frames, seed=0, num_codebooks=4):
    """[K, T] for the tiny codec."""
    return np.random.default_rng(seed).integers(0, 16, (num_codebooks, num_frames)).astype(np.uint16)


def offline(codec, codes):
    """What one whole decode gives, [C, S]."""
    batch = torch.from_numpy(codes.astype(np.int64))[None]
    return codec.decode(Encoded(batch, None, codes.shape[1] * codec.spec.hop_length))[0].numpy()


def spoken(stream, codes, pieces=4):
    """One utterance through a stream of DecodeClient: pushed in pieces and heard to its end, [C, S]."""
    for piece in np.array_split(codes, pieces, axis=1):
        stream.push(piece)
    stream.finish()
    return np.concatenate(list(stream), axis=1)


class Wire:
    """One connection; `samples` counts what came of each utterance."""

    def __init__(self, websocket):
        self.websocket = websocket

    async def say(self, **fields):
        await self.websocket.send(json.dumps(fields))

    async def push(self, codes):
        await self.websocket.send(np.ascontiguousarray(codes.T, "<u2").tobytes())

    async def finish(self):
        await self.websocket.send(b"")

    async def hear(self):
        """The next message: a dict, or float32 samples [1, n]."""
        message = await self.websocket.recv()
        return json.loads(message) if isinstance(message, str) else np.frombuffer(message, "<f4")[None]

    async def utterance(self):
        """All samples up to the end message, and that."""
        blocks = [np.zeros((1, 0), np.float32)]
        while not isinstance(message := await self.hear(), dict):
            blocks.append(message)
        return np.concatenate(blocks, axis=1), message

    async def last_words(self):
        """The error that the server sends, and its closing code and reason."""
        message = None
        try:
            while True:
                message = await self.hear()
        except ConnectionClosed as closed:
            code = 1006 if closed.rcvd is None else closed.rcvd.code
            return message["error"] if isinstance(message, dict) and message["type"] == "error" else None, code

    def cut(self):
        """The connection is gone, without a word."""
        self.websocket.transport.abort()


@asynccontextmanager
async def opened(url, *, headers=None, origin=None):
    """A connection on which nothing has been said."""
    address = url.replace("http", "ws", 1) + PATH
    async with connect(address, additional_headers=headers, origin=origin, close_timeout=1, compression=None) as socket:
        yield Wire(socket)


@asynccontextmanager
async def started(url, **fields):
    """A connection with a stream, and the server's first message."""
    async with opened(url) as wire:
        await wire.say(**{"pcm": "f32le", **fields} if "resume" not in fields else fields)
        yield wire, await wire.hear()


async def heard(url, codes, cuts=(), **fields):
    """One utterance through a stream of its own."""
    async with started(url, **fields) as (wire, _):
        for piece in np.split(codes, cuts, axis=1):
            await wire.push(piece)
        await wire.finish()
        return await wire.utterance()


def assert_still_right(url, codec):
    """The service goes on as if nothing had been."""
    codes = some_codes(40, seed=9)
    sound, end = asyncio.run(heard(url, codes))
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)
    assert (end["type"], end["num_samples"], end["num_frames"]) == ("end", 320, 40)
