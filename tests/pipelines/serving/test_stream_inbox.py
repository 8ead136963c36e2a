"""Codes on their way to the engine: bounded, in order, and overtaken by a reset."""

import asyncio

import numpy as np
import pytest

from pipelines.serving.stream_inbox import StreamInbox


def codes(frames):
    return np.zeros((2, frames), np.uint16)


async def happens(work):
    """Whether something gets done without anything else being done."""
    try:
        async with asyncio.timeout(0.02):
            await work
    except TimeoutError:
        return False
    return True


def test_codes_and_ends_come_in_order():
    async def talk():
        inbox = StreamInbox(10)
        await inbox.put(codes(1))
        await inbox.put(None)
        await inbox.put(codes(2))
        return [await inbox.get() for _ in range(3)]

    first, end, second = asyncio.run(talk())
    assert (first.shape[1], end, second.shape[1]) == (1, None, 2)


def test_a_fast_writer_waits():
    """Until so many frames have gone on; one long message is taken all the same, and ends count."""

    async def talk():
        inbox = StreamInbox(3)
        assert await happens(inbox.put(codes(50)))
        assert not await happens(inbox.put(codes(1)))
        await inbox.get()
        assert await happens(inbox.put(None))
        assert await happens(inbox.put(None))
        assert await happens(inbox.put(None))
        assert not await happens(inbox.put(None))

    asyncio.run(talk())


def test_a_reset_overtakes_what_waits():
    """It makes room at once, and counts the ends that it has overtaken, and itself."""

    async def talk():
        inbox = StreamInbox(3)
        for item in (codes(1), None, codes(1)):
            await inbox.put(item)
        assert not await happens(inbox.reset_asked())
        await inbox.put_reset()
        assert await happens(inbox.reset_asked())
        assert await inbox.take_reset() == 2
        assert inbox.empty

    asyncio.run(talk())


@pytest.mark.parametrize("resets", [1, 2])
def test_nothing_is_read_until_the_reset_is_done(resets):
    """Codes that come after a reset must not get into the utterance before it."""

    async def talk():
        inbox = StreamInbox(3)
        for _ in range(resets):
            await inbox.put_reset()
        await inbox.put(codes(2))
        assert not inbox.empty
        assert not await happens(inbox.get())
        assert await inbox.take_reset() == resets
        assert (await inbox.get()).shape[1] == 2

    asyncio.run(talk())
