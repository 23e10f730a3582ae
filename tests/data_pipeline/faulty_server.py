# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A real HTTP server on the loopback interface that can be slow and make mistakes."""

import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

Server = TypeVar("Server", bound=ThreadingHTTPServer)
Fault = Callable[["Handler", bytes], None]
"""Answers in the server's place; gets the handler and the bytes that should be sent."""


class FaultyServer(ThreadingHTTPServer):
    """Serves a directory, with byte ranges.

    Attributes:
        requests: Requests by path.
        latency_seconds: Waited before each answer.
        faults: By file name, what answers its next requests in the server's place, first come first served.
        ranges: Whether parts of files are served.
        query: What must follow the ? of every address, or the answer is 403.
        redirects: Requests of this path are sent there.
        asked: The request line's target and the headers of each request. As a proxy it is asked for whole addresses,
            and answers itself.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.requests: Counter[str] = Counter()
        self.latency_seconds = 0.0
        self.faults: dict[str, list[Fault]] = {}
        self.ranges = True
        self.query = ""
        self.redirects: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that leave early are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in few packets, so that what is measured is the latency that was asked for
    server: FaultyServer

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        server, name = self.server, urllib.parse.unquote(parts.path).lstrip("/")
        with server.lock:
            server.asked.append((self.path, dict(self.headers)))
            server.requests[name] += 1
            waiting = server.faults.get(Path(name).name, [])
            fault = waiting.pop(0) if waiting else None
        time.sleep(server.latency_seconds)
        if parts.query != server.query:
            self.answer(403, b"")
            return
        if parts.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[parts.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = server.root / name
        if not path.is_file():
            self.answer(404, b"")
            return
        size = path.stat().st_size
        begin, end = 0, size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.status, self.range = 200, ""
        if wanted and server.ranges:
            begin, end = int(wanted[1]), min(int(wanted[2]) + 1, size)
            if begin >= size:
                self.answer(416, b"")
                return
            self.status, self.range = 206, f"bytes {begin}-{end - 1}/{size}"
        with path.open("rb") as file:
            file.seek(begin)
            content = file.read(end - begin)
        if fault is not None:
            fault(self, content)
        else:
            self.answer(self.status, content)

    def do_CONNECT(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.send_error(502)

    def answer(self, status: int, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", self.range)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Has a server answer for the block, in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serving(root: Path) -> AbstractContextManager[FaultyServer]:
    """Serves a directory for the block."""
    return running(FaultyServer(root))


def error_503(handler: Handler, content: bytes) -> None:
    handler.answer(503, b"try later")


def cut_connection(handler: Handler, content: bytes) -> None:
    """Promises all and sends half."""
    handler.answer(handler.status, content[: len(content) // 2], len(content))
    handler.close_connection = True


def no_answer(handler: Handler, content: bytes) -> None:
    handler.close_connection = True


def slow_body(handler: Handler, content: bytes) -> None:
    """A few bytes, and the rest never."""
    handler.answer(handler.status, content[:10], len(content))
    time.sleep(1.5)
    handler.close_connection = True


def trickle(handler: Handler, content: bytes) -> None:
    """Always something within the time limit of one answer, and never the whole."""
    handler.answer(handler.status, content[:1], len(content))
    for at in range(1, 30):
        time.sleep(0.1)
        handler.wfile.write(content[at : at + 1])
        handler.wfile.flush()
    handler.close_connection = True


def flipped_bit(handler: Handler, content: bytes) -> None:
    """As a bad network card does it: one byte, another one each time."""
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1 + handler.server.requests.total() % 255
    handler.answer(handler.status, bytes(changed))
