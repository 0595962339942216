"""An HTTP proxy that forwards to an S3 endpoint all but what a test tells it to break."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.ports import free_port
from tests.s3_refusals import REFUSALS

PIECE = 1 << 16

Kind = Literal["500", "503", "slow", "reset", "cut", "lose", "hang", "strip", "refuse"]


@dataclass
class Fault:
    """What happens to requests that match; `done` counts them."""

    kind: Kind
    match: re.Pattern[str]
    times: int | None
    until: float
    seconds: float
    header: str
    code: str
    done: int = 0


class FaultProxy:
    """A proxy before an S3 endpoint that forwards all faithfully, except what it's told to break.

    The Host header is forwarded as it came, so that signatures stay valid.

    Attributes:
        endpoint_url: where clients go.
        counts: requests seen ("all") and broken (by kind).
        seen: every request, as `METHOD /path?query`.
        headers: the newest request's.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.port = free_port()
        self._held = _holding(self.port)  # while it is down, nobody else gets the port
        self.endpoint_url = f"http://127.0.0.1:{self.port}"
        self.counts: Counter[str] = Counter()
        self.seen: list[str] = []
        self.headers: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._free = threading.Event()

    def __enter__(self) -> FaultProxy:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self.down()
        self._held.close()

    def up(self) -> None:
        """Listen (again)."""
        self._server = _Server(("127.0.0.1", self.port), self)
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def down(self) -> None:
        """Refuse connections, and end those that are open, until `up`."""
        self._server.shutdown()
        self._server.server_close()
        self._server.end_connections()

    def inject(
        self,
        kind: Kind,
        *,
        times: int | None = None,
        for_seconds: float = float("inf"),
        match: str = "",
        seconds: float = 1.0,
        header: str = "If-None-Match",
        code: str = "AccessDenied",
    ) -> Fault:
        """Break requests from now on.

        Args:
            kind: 500; 503 (SlowDown); slow (forwarded after `seconds`); reset (before it is
                forwarded); cut (reset in the middle of the request's body, else of the answer's);
                lose (forwarded, then reset: done, but the client can't know); hang (no answer until
                `clear`); strip (forwarded without `header`); refuse (answered with `code`).
            times: how many requests; None: all.
            for_seconds: from now on.
            match: a regex that `METHOD /path?query` must contain.
            seconds: how slow.
            header: what to strip.
            code: an error code of S3's, of REFUSALS.
        """
        until = time.monotonic() + for_seconds
        fault = Fault(kind, re.compile(match), times, until, seconds, header, code)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Break nothing from now on; requests that hang are reset."""
        with self._lock:
            self._faults.clear()
            self._free.set()
            self._free = threading.Event()

    def take(self, request: str) -> tuple[Fault | None, threading.Event]:
        """The fault for this request, counted, and what ends its hanging."""
        with self._lock:
            self.counts["all"] += 1
            self.seen.append(request)
            for fault in self._faults:
                spent = fault.times is not None and fault.done >= fault.times
                if not spent and time.monotonic() < fault.until and fault.match.search(request):
                    fault.done += 1
                    self.counts[fault.kind] += 1
                    return fault, self._free
            return None, self._free


def _holding(port: int) -> socket.socket:
    """A socket that keeps the port but doesn't listen: connections are refused."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", port))
    return held


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(address, _Forward)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what this proxy is for."""

    def end_connections(self) -> None:
        for request in list(self._open):
            reset(request)


def reset(connection: socket.socket) -> None:
    """End a connection as a crashed machine would; its reader sees ECONNRESET."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        pass
    connection.close()


# Not for the other side of a proxy (RFC 9110, 7.6.1); Expect is answered here.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or head and body of an answer lie 40 ms apart
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_any(self) -> None:
        self.server.proxy.headers = {name.lower(): value for name, value in self.headers.items()}
        fault, free = self.server.proxy.take(f"{self.command} {self.path}")
        kind = fault.kind if fault else None
        if kind == "hang":
            free.wait()
        if kind in ("reset", "hang"):
            return self._reset()
        codes = {"500": "InternalError", "503": "SlowDown", "refuse": fault.code if fault else ""}
        if kind in codes:
            for _ in self._body():
                pass
            return self._refuse(codes[kind])
        size = int(self.headers.get("Content-Length", 0))
        if kind == "cut" and size:
            self.rfile.read(size // 2)
            return self._reset()
        if fault and kind == "slow":
            free.wait(fault.seconds)
        stripped = fault.header.lower() if fault and kind == "strip" else ""
        try:
            return self._forward(stripped, kind)
        except OSError:
            return self._reset()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def _forward(self, stripped: str, kind: str | None) -> None:
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP and name.lower() != stripped:
                    upstream.putheader(name, value)
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
            if chunked:
                upstream.putheader("Transfer-Encoding", "chunked")
            upstream.endheaders()
            for piece in self._body():
                upstream.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                upstream.send(b"0\r\n\r\n")
            answer = upstream.getresponse()
            if kind == "lose":
                answer.read()
                self._reset()
            else:
                self._hand_back(answer, kind)
        finally:
            upstream.close()

    def _hand_back(self, answer: http.client.HTTPResponse, kind: str | None) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length")
        bodiless = self.command == "HEAD" or answer.status in (204, 304)
        chunked = length is None and not bodiless
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if kind == "cut":
            self.wfile.write(answer.read(int(length or 2) // 2))
            return self._reset()
        while not bodiless and (piece := answer.read(PIECE)):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        return None

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left and (piece := self.rfile.read(min(PIECE, left))):
            left -= len(piece)
            yield piece

    def _refuse(self, code: str) -> None:
        status, told = REFUSALS[code]
        text = f"<Error><Code>{code}</Code><Message>Told by S3.</Message>{told}</Error>"
        body = b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        reset(self.connection)
