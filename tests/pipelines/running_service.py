"""A real server in a thread: what tests of routes, streams and clients talk to over loopback."""

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn


@contextmanager
def running_service(app, *, send_buffer=None, **config):
    """The url of an ASGI app behind uvicorn on a free port; the server ends with the block.

    A small send buffer (bytes, of the system) makes a reader that does not read noticed soon.
    """
    listener = socket.socket()
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.bind(("127.0.0.1", 0))
    settings = {"log_level": "error", "timeout_graceful_shutdown": 2, "ws_per_message_deflate": False, **config}
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    if not server.started:
        raise RuntimeError("the service did not start")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def wait_until(condition, timeout_s=10.0):
    """Seconds until a condition holds; TimeoutError where it never does."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > timeout_s:
            raise TimeoutError("the condition never held")
        time.sleep(0.005)
    return time.monotonic() - begin
