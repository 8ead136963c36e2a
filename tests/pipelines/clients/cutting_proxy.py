"""A network that breaks: TCP between a client and a service, cut where a test wants it."""

import asyncio
import socket
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit


class CuttingProxy:
    """Connections to `target`; each one ends without a word once its budget of bytes is spent, in either direction.

    Budgets are taken from the lists in order; where a list is empty the connection is left alone.
    """

    def __init__(self, target):
        self.target = target
        self.down_budgets, self.up_budgets = [], []
        self.connections = 0
        self.open_writers = set()

    async def handle(self, reader, writer):
        self.connections += 1
        down = self.down_budgets.pop(0) if self.down_budgets else None
        up = self.up_budgets.pop(0) if self.up_budgets else None
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.target).port)
        except OSError:
            writer.transport.abort()
            return
        self.open_writers |= {writer, far_writer}
        pumps = [asyncio.create_task(pump(reader, far_writer, up)), asyncio.create_task(pump(far_reader, writer, down))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        for end in (writer, far_writer):
            end.transport.abort()
        self.open_writers -= {writer, far_writer}

    def cut_all(self):
        """Every connection that is open now."""
        for writer in list(self.open_writers):
            self.loop.call_soon_threadsafe(writer.transport.abort)


async def pump(reader, writer, budget):
    """Bytes one way, until the budget is spent or an end is gone."""
    try:
        while budget is None or budget > 0:
            data = await reader.read(65536 if budget is None else min(65536, budget))
            if not data:
                return
            writer.write(data)
            await writer.drain()
            budget = None if budget is None else budget - len(data)
    except OSError:
        return


@contextmanager
def cutting_proxy(target):
    """A proxy in a thread, and its url."""
    proxy = CuttingProxy(target)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy.loop = asyncio.new_event_loop()

    ended = asyncio.Event()

    async def serve():
        async with await asyncio.start_server(proxy.handle, sock=listener):
            await ended.wait()
            proxy.cut_all()

    thread = threading.Thread(target=proxy.loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        proxy.loop.call_soon_threadsafe(ended.set)
        thread.join(5)
