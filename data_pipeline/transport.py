# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Gets files and parts of files from an address, again and again if need be.

One class an address: `HTTPTransport`, `CloudTransport` (of object_store.py), `PipeTransport` (a shell command a file).
Each does one try and raises `TryAgain` for what may pass (no connection, a server's error, a body cut short, too slow),
and `UserError` for what will not. `with_retries` repeats.
"""

import http.client
import logging
import os
import signal
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from data_pipeline.addresses import Address, Proxy, credentials, location, proxy_for, shown
from data_pipeline.cloud_settings import is_cloud
from data_pipeline.errors import UserError
from data_pipeline.far import FarSettings
from data_pipeline.object_store import BeyondTheEnd, CloudError, NoObject, ObjectStore

_BLOCK = 1 << 18
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_SLOWEST_BYTES_PER_SECOND = 100_000  # a body that comes more slowly is given up like one that does not come
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_MOST_REDIRECTS = 5
_CUT_OFF = "is cut off: the shard is shorter than its manifest says"
_SILENT_SECONDS = 10.0
LOG = logging.getLogger(__name__)

Result = TypeVar("Result")


class TryAgain(Exception):
    """A try that failed in a way that may pass."""


class Unfit(Exception):
    """What is at the address is not what was built: missing, cut short, changed. The message goes on "document N"."""


class _BeyondTheEnd(Unfit):
    """The file is there and has not the bytes that were asked for."""


class Transport(Protocol):
    """One way to get files. Thread-safe."""

    def blocks(self, name: str, size: int | None) -> Iterator[bytes]:
        """A whole file block by block; `size` is its length where that is known.

        Raises:
            TryAgain: This may pass.
            Unfit: There is no such file, or it has another size.
            UserError: This will not pass.
        """

    def part(self, name: str, offset: int, length: int, size: int) -> bytes:
        """Bytes `offset .. offset + length` of a file of `size` bytes; raises as `blocks` does."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, without reading it; None where that is not told. Raises as `blocks` does."""


def open_transport(address: str, settings: FarSettings) -> Transport:
    """The transport for an address.

    Raises:
        UserError: A pipe is not allowed, or a package is missing.
    """
    if address.startswith("pipe:"):
        if not settings.allow_pipe:
            raise UserError(
                f"data.path {shown(address)}: runs a shell command; set data.allow_pipe to true (--allow-pipe) if you "
                "trust it"
            )
        if settings.mode == "range":
            raise UserError(f"data.path {shown(address)}: a pipe gives whole files only; set data.remote_mode to spool")
        return PipeTransport(address, settings)
    return CloudTransport(address, settings) if is_cloud(address) else HTTPTransport(address, settings)


def with_retries(what: str, settings: FarSettings, attempt: Callable[[], Result]) -> Result:
    """Calls `attempt` until it does not raise `TryAgain`, with growing pauses, and says so where that takes long.

    Raises:
        UserError: The last attempt failed too; names `what`, the number of attempts and the last reason.
    """
    began = time.monotonic()
    for number in range(1, settings.attempts + 1):
        try:
            return attempt()
        except TryAgain as error:
            if number == settings.attempts:
                raise UserError(
                    f"{what} could not be read in {number} attempts ({error}); check the address and the network, "
                    "then resume",
                    exit_code=1,
                ) from None
            if time.monotonic() - began > _SILENT_SECONDS:
                LOG.warning("%s: attempt %d of %d failed (%s); trying again", what, number, settings.attempts, error)
            # Ranks that fail together come back apart: the pause depends on the process.
            spread = 1 + (os.getpid() * 37 % 100) / 200
            time.sleep(min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (number - 1)) * spread)
    raise AssertionError("attempts is 1 or more")


class HTTPTransport:
    """HTTP and HTTPS, over connections that stay open, one a thread.

    Args:
        address: Directory of the data set.
        settings: Time limits.

    Raises:
        UserError: It is not an address, or one with a password.
    """

    def __init__(self, address: str, settings: FarSettings) -> None:
        self._address, self._shown, self._settings = Address.parse(address), location(address), settings
        self._local = threading.local()

    def blocks(self, name: str, size: int | None) -> Iterator[bytes]:
        """See `Transport.blocks`."""
        with self._response(name, {}, size or 0) as (response, deadline):
            if size is not None and response.length not in (None, size):
                raise _another_size(response.length, size)
            yield from self._body(response, size, deadline)

    def part(self, name: str, offset: int, length: int, size: int) -> bytes:
        """See `Transport.part`."""
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._response(name, wanted, length) as (response, deadline):
            if response.status != 206:
                raise UserError(
                    f"{self._shown} does not serve parts of files; set data.remote_mode to spool", exit_code=1
                )
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total.isdigit() and int(total) != size:
                raise _another_size(int(total), size)
            return b"".join(self._body(response, length, deadline))

    def size(self, name: str) -> int | None:
        """See `Transport.size`. The first byte is asked for: signatures for GET are not good for HEAD."""
        try:
            with self._response(name, {"Range": "bytes=0-0"}, 0) as (response, _):
                if response.status == 206:
                    total = response.headers.get("Content-Range", "").rpartition("/")[2]
                    return int(total) if total.isdigit() else None
                length = response.length
                self._drop(None)  # rather than read a whole shard
                return length
        except _BeyondTheEnd:  # not even the first byte is there
            return 0

    @contextmanager
    def _response(
        self, name: str, headers: dict[str, str], size: int
    ) -> Iterator[tuple[http.client.HTTPResponse, float]]:
        deadline = time.monotonic() + self._settings.timeout_seconds + size / _SLOWEST_BYTES_PER_SECOND
        connection = None
        try:
            connection, response = self._request(name, headers)
            yield response, deadline
            response.read()  # what is left of the body, so that the connection can be used again
        except (OSError, http.client.HTTPException) as error:
            self._drop(connection)
            raise TryAgain(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from None
        except BaseException:
            self._drop(connection)
            raise

    def _request(
        self, name: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        address = self._address.of(name)
        for _ in range(_MOST_REDIRECTS):
            proxy = proxy_for(address)
            connection = self._connection(address, proxy)
            asked = {**headers, **credentials(address)}
            target = address.target
            if proxy is not None and address.scheme == "http":
                asked |= proxy.headers
                target = address.url
            try:
                connection.request("GET", target, headers=asked)
                response = connection.getresponse()
            except OSError as error:
                if proxy is None:
                    raise
                raise OSError(f"{error} (through the proxy {proxy.host}:{proxy.port})") from None
            if response.status in (301, 302, 303, 307, 308):
                response.read()
                # Headers come as Latin-1, whatever they are.
                there = response.headers.get("Location", "").encode("latin-1", "replace").decode("utf-8", "replace")
                address = Address.parse(urllib.parse.urljoin(address.url, there))
                continue
            if response.status in (200, 206):
                return connection, response
            self._drop(connection)
            if response.status in (404, 410):
                raise Unfit("is missing with its shard")
            if response.status == 416:
                raise _BeyondTheEnd(_CUT_OFF)
            if response.status in _PASSING:
                raise TryAgain(f"status {response.status} {response.reason}")
            raise UserError(
                f"{self._shown}/{name}: the server answers {response.status} {response.reason}"
                + self._hint(response.status),
                exit_code=1,
            )
        raise UserError(f"{self._shown}/{name}: more than {_MOST_REDIRECTS} redirections", exit_code=1)

    def _hint(self, status: int) -> str:
        if status in (401, 403) and self._address.query:
            return (
                "; what follows the ? of the address was sent with this file, as with all: it may have expired, or be "
                "made for one file only, as S3's X-Amz-Signature is"
            )
        if status in (401, 403):
            return "; a name and password for the server are taken from ~/.netrc"
        return "; the proxy wants a name and password: http://NAME:PASSWORD@HOST:PORT" if status == 407 else ""

    def _connection(self, address: Address, proxy: Proxy | None) -> http.client.HTTPConnection:
        kept: dict[tuple[str, str, int], http.client.HTTPConnection] = self._local.__dict__.setdefault("kept", {})
        key = (address.scheme, address.host, address.port)
        connection = kept.get(key)
        if connection is None:
            host, port = (address.host, address.port) if proxy is None else (proxy.host, proxy.port)
            timeout = self._settings.timeout_seconds
            if address.scheme == "https":
                context = ssl.create_default_context()
                connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
                if proxy is not None:
                    connection.set_tunnel(address.host, address.port, proxy.headers)
            else:
                connection = http.client.HTTPConnection(host, port, timeout=timeout)
            kept[key] = connection
        return connection

    def _drop(self, connection: http.client.HTTPConnection | None) -> None:
        """Closes a connection whose state is not known; the next request opens another."""
        kept = self._local.__dict__.get("kept", {})
        for key, each in list(kept.items()):
            if connection is None or each is connection:
                kept.pop(key).close()

    @staticmethod
    def _body(response: http.client.HTTPResponse, size: int | None, deadline: float) -> Iterator[bytes]:
        received = 0
        size = response.length if size is None else size  # http.client does not miss what is missing at the end
        while block := response.read1(_BLOCK):
            received += len(block)
            yield block
            if time.monotonic() > deadline:
                raise TryAgain(f"the body comes too slowly: {received:,} bytes until the time limit")
        if size is not None and received != size:
            raise TryAgain(f"the body has {received:,} bytes, not {size:,}")


class CloudTransport:
    """`s3://`, `gs://` and `az://`, through the package obstore.

    Args:
        address: Directory of the data set.
        settings: Time limits.

    Raises:
        UserError: The package is missing, or the address cannot be used.
    """

    def __init__(self, address: str, settings: FarSettings) -> None:
        self._objects = ObjectStore(address, 1, settings.timeout_seconds)  # `with_retries` repeats

    def blocks(self, name: str, size: int | None) -> Iterator[bytes]:
        """See `Transport.blocks`."""
        with self._errors():
            if size is not None and (found := self._objects.size(name)) != size:
                raise _another_size(found, size)
            yield from self._objects.blocks(name)

    def part(self, name: str, offset: int, length: int, size: int) -> bytes:
        """See `Transport.part`."""
        with self._errors():
            content, total = self._objects.part(name, offset, length)
        if total != size:
            raise _another_size(total, size)
        return content

    def size(self, name: str) -> int | None:
        """See `Transport.size`."""
        with self._errors():
            return self._objects.size(name)

    @staticmethod
    @contextmanager
    def _errors() -> Iterator[None]:
        try:
            yield
        except NoObject:
            raise Unfit("is missing with its shard") from None
        except BeyondTheEnd:
            raise _BeyondTheEnd(_CUT_OFF) from None
        except CloudError as error:
            if error.passing:
                raise TryAgain(error.reason) from None
            raise


class PipeTransport:
    """`pipe:COMMAND`: a shell command that writes a file to its standard output; `{}` in it is the file's name.

    Args:
        address: The address; without `{}`, `/NAME` is put behind it.
        settings: Time limits.
    """

    def __init__(self, address: str, settings: FarSettings) -> None:
        self._command = address.removeprefix("pipe:").strip()
        self._settings = settings

    def blocks(self, name: str, size: int | None) -> Iterator[bytes]:
        """See `Transport.blocks`."""
        command = self._command.replace("{}", name) if "{}" in self._command else f"{self._command}/{name}"
        limit = self._settings.timeout_seconds + (size or 0) / _SLOWEST_BYTES_PER_SECOND
        # A session of its own, so that the end of the time limit also ends what the shell has started.
        process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True)
        timer = threading.Timer(limit, _kill_session, [process.pid])
        timer.start()
        received = 0
        try:
            assert process.stdout is not None
            while block := process.stdout.read(_BLOCK):
                received += len(block)
                yield block
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                _kill_session(process.pid)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if code or (size is not None and received != size):
            raise TryAgain(f"{shown(command)!r} ended with {code} after {received:,} bytes")

    def part(self, name: str, offset: int, length: int, size: int) -> bytes:
        """Not to be had from a pipe."""
        raise NotImplementedError("a pipe gives whole files only")

    def size(self, name: str) -> int | None:
        """Not told by a pipe."""
        return None


def _another_size(found: int | None, expected: int) -> Unfit:
    return Unfit(
        f"cannot be trusted: the shard has {found} bytes, its manifest says {expected}; it is truncated or was changed"
    )


def _kill_session(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        return
