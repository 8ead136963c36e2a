"""Decode actors: other Ray programs call a codec by handle, with arrays, for utterances and for streams."""

import asyncio

import numpy as np
import pytest
import ray
import torch

from pipelines.decoding.decode_actor import CodecDecoder, DecodeActor
from pipelines.decoding.decode_engine import EngineSettings
from pipelines.decoding.decode_errors import DeadlineExceeded, Overloaded, StreamClosed
from tests.conftest import make_codec, speech_like, tiny_spec
from tests.pipelines.engines import close, offline, paused, random_codes, within
from tokenizer import CodesError, QuantoneError, load_codec


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


async def heard(decoder, stream):
    """[C, S] until the utterance ends."""
    blocks = []
    while (block := await decoder.read(stream)) is not None:
        blocks.append(block)
    return np.concatenate(blocks, axis=1)


def test_an_actor_serves_utterances_and_streams_by_handle(ray_session, tiny_codec_dir):
    """Numpy in, numpy out, errors by their own type, and many calls at once on one actor."""
    codec = load_codec(tiny_codec_dir)
    actor = DecodeActor.remote(str(tiny_codec_dir), sha256=codec.sha256, settings=EngineSettings(max_streams=2))
    assert ray.get(actor.ready.remote())
    codes = [random_codes(10 + index, 1 + index % 4, seed=index) for index in range(40)]
    calls = [actor.decode.remote(one.astype(np.int64)) for one in codes]
    for waveform, one in zip(ray.get(calls), codes, strict=True):
        assert waveform.dtype == np.float32
        assert close(waveform, offline(codec, one))
    streams = ray.get([actor.open_stream.remote(4) for _ in range(2)])
    with pytest.raises(Overloaded, match="all 2 stream slots") as refused:
        ray.get(actor.open_stream.remote(4))
    assert refused.value.cause.retry_after_s > 0
    for stream, seed in zip(streams, (1, 2), strict=True):
        one = random_codes(30, 4, seed)
        reading = actor.read.remote(stream)  # waits inside the actor, and holds up no other call
        ray.get(actor.push.remote(stream, one[:, :11]))
        ray.get(actor.push.remote(stream, one[:, 11:], last=True))
        blocks = [ray.get(reading)]
        while (block := ray.get(actor.read.remote(stream))) is not None:
            blocks.append(block)
        assert close(np.concatenate(blocks, axis=1), offline(codec, one))
    assert ray.get(actor.stats.remote())["active_streams"] == 2
    ray.get([actor.close.remote(stream) for stream in streams])
    assert ray.get(actor.stats.remote()) | {"last_step_age_s": 0.0} == {
        "ok": True,
        "reason": "",
        "active_streams": 0,
        "queued": 0,
        "last_step_age_s": 0.0,
    }
    with pytest.raises(StreamClosed, match="no stream"):
        ray.get(actor.push.remote(streams[0], codes[0]))
    with pytest.raises(CodesError, match="range from"):
        ray.get(actor.decode.remote(codes[0] + 16))
    with pytest.raises(DeadlineExceeded):
        ray.get(actor.decode.remote(codes[0], deadline_s=-1.0))


def test_a_batch_larger_than_the_queue_waits_for_its_places(codec):
    """All utterances come back in order, bad ones as errors in place, however few places the engine has."""

    async def main():
        decoder = CodecDecoder(codec, settings=EngineSettings(max_queued=1))
        codes = [random_codes(1 + index % 9, seed=index) for index in range(100)]
        codes[17] = codes[17] + 16
        results = await decoder.decode_batch(codes, [8 * one.shape[1] for one in codes])
        assert [index for index, one in enumerate(results) if isinstance(one, CodesError)] == [17]
        for index, one in enumerate(codes):
            assert index == 17 or close(results[index], offline(codec, one))

    within(main())


def test_segments_are_decoded_with_their_loudness():
    """The very samples of the codec, for each utterance of a batch; missing scales are an error in place."""
    codec = make_codec(tiny_spec("segmented"))

    async def main():
        decoder = CodecDecoder(codec, precision="plain")
        heard = [torch.from_numpy(speech_like(0.02 * seed, seed=seed)).expand(2, -1) for seed in range(1, 5)]
        encoded = [codec.encode(waveform) for waveform in heard]
        codes = [one.codes[0].numpy() for one in encoded]
        scales = [one.scales[0].numpy() for one in encoded]
        results = await decoder.decode_batch(codes, [one.num_samples for one in encoded], [*scales[:3], None])
        for result, one in zip(results[:3], encoded, strict=False):
            assert np.array_equal(result, codec.decode(one)[0].numpy())
        assert isinstance(results[3], CodesError)

    within(main())


def test_a_stream_is_read_to_its_end_and_begins_anew(codec):
    """`last` ends an utterance, with codes or after them; `read` gives None once there is nothing left."""

    async def main():
        decoder = CodecDecoder(codec)
        stream = await decoder.open_stream(4)
        for seed in range(2):
            codes = random_codes(20, seed=seed)
            await decoder.push(stream, codes[:, :5])
            await decoder.push(stream, codes[:, 5:])
            await decoder.push(stream, None, last=True)
            assert close(await heard(decoder, stream), offline(codec, codes))
            assert await decoder.read(stream) is None
            await decoder.reset(stream)
        await decoder.close(stream)
        await decoder.close(stream)
        with pytest.raises(StreamClosed, match="no stream"):
            await decoder.read(stream)

    within(main())


def test_a_stream_that_nobody_calls_for_is_closed(codec):
    """Its slot is free after the timeout; a caller who waits for samples is there all the time."""

    async def main():
        decoder = CodecDecoder(codec, settings=EngineSettings(max_streams=2), idle_timeout_s=0.2)
        abandoned, waiting = await decoder.open_stream(4), await decoder.open_stream(4)
        reading = asyncio.create_task(decoder.read(waiting))
        await asyncio.sleep(0.5)
        assert (await decoder.stats())["active_streams"] == 1
        with pytest.raises(StreamClosed, match=r"nobody called it for 0\.2 s"):
            await decoder.read(abandoned)
        await decoder.push(waiting, random_codes(3))
        assert (await reading).shape == (1, 24)
        await asyncio.sleep(0.5)
        assert (await decoder.stats())["active_streams"] == 0
        again = await decoder.open_stream(4)
        await asyncio.sleep(0.5)
        assert (await decoder.stats())["active_streams"] == 0, "the watch has ended with the first streams"
        await decoder.close(again)

    within(main())


def test_single_calls_pass_by_a_batch(codec):
    """A batch leaves room in the queue: whoever asks for one utterance meanwhile is not turned away."""
    batch_was_done = []

    async def main():
        decoder = CodecDecoder(codec)
        async with paused(decoder._engine):
            batch = asyncio.create_task(decoder.decode_batch([random_codes(9)] * 200, [72] * 200))
            await asyncio.sleep(0.05)
            single = asyncio.create_task(decoder.decode(random_codes(9)))
            single.add_done_callback(lambda _: batch_was_done.append(batch.done()))
            await asyncio.sleep(0)
        assert (await single).shape == (1, 72)
        assert len(await batch) == 200

    within(main())
    assert batch_was_done == [False]


def test_another_codec_under_the_same_name_is_refused(codec, tiny_codec_dir):
    """What was asked for by its identity is decoded by no other weights."""
    with pytest.raises(QuantoneError, match="expected 0000"):
        CodecDecoder(str(tiny_codec_dir), sha256="0000")
