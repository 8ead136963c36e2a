"""A bad network: an HTTP proxy in front of an S3 server that delays, refuses and breaks off a share of the calls.

It hands on a request only when it has all of it, so that a client that dies in the middle leaves nothing behind, as
with a real server.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
REFUSALS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "wrong_key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "denied": (403, "AccessDenied", "Access Denied"),
}


@dataclass(frozen=True)
class Fault:
    """What happens to some calls.

    Attributes:
        kind: one of REFUSALS; "late"; "reset" breaks off in the middle of the answer's body; "lost_answer" breaks off
            when the server has done what it was asked.
        share: of the calls that it may happen to: one of each ten, where it is 0.1, a random one.
        methods: that it may happen to.
        within: what the path contains of such calls.
        seconds: of lateness.
    """

    kind: str
    share: float = 1.0
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    within: str = ""
    seconds: float = 2.0


class FaultProxy:
    """Runs in threads of this process for the length of a block.

    Args:
        upstream: URL of the server behind it.
        faults: the first that strikes a call happens to it, none to the others; may be replaced at any time.
        seed: of the choice.
    """

    def __init__(self, upstream, faults=(), seed=0):
        self.faults, self.counts = faults, Counter()  # of strikes by kind
        self._upstream, self._random = urlsplit(upstream), random.Random(seed)  # noqa: S311 - not a secret
        self._turns = {}  # fault -> calls until it strikes, calls until the next block of calls begins
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def url(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def choose(self, method, path):
        """The fault that strikes a call, or None."""
        with self._lock:
            for fault in self.faults:
                if method in fault.methods and fault.within in path and self._strikes(fault):
                    self.counts[fault.kind] += 1
                    return fault
        return None

    def _strikes(self, fault):
        strike, rest = self._turns.get(fault, (0, 0))
        if rest == 0:
            rest = round(1 / fault.share)
            strike = self._random.randrange(rest)
        self._turns[fault] = strike - 1, rest - 1
        return strike == 0

    def forward(self, method, path, headers, body):
        """Ask the server; status, headers and body of its answer."""
        connection = http.client.HTTPConnection(self._upstream.hostname, self._upstream.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _handle(self):
        body = self._read_body()
        if body is None:  # the client died in the middle
            self.close_connection = True
            return
        fault = self.proxy.choose(self.command, self.path)
        kind = fault and fault.kind
        if kind in REFUSALS:
            status, code, message = REFUSALS[kind]
            content = _ERROR.format(code=code, message=message).encode()
            self._answer(status, [("Content-Type", "application/xml")], content)
            return
        if kind == "late":
            time.sleep(fault.seconds)
        status, headers, content = self.proxy.forward(self.command, self.path, self.headers.items(), body)
        if kind == "lost_answer":
            self._break_off()
            return
        self._answer(status, headers, content, broken=kind == "reset")

    def _read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            return body if len(body) == length else None
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status, headers, content, *, broken=False):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP and name.lower() != "content-length":
                self.send_header(name, value)
        if self.command == "HEAD":
            length = next((value for name, value in headers if name.lower() == "content-length"), "0")
        else:
            length = str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if broken:
            self.wfile.write(content[: len(content) // 2])
            self._break_off()
        elif self.command != "HEAD":
            self.wfile.write(content)

    def _break_off(self):
        # Without a farewell: the client gets a reset and no end of file.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_):
        """Nothing."""

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - the names are http.server's
