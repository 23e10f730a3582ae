# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Objects of a cloud: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, through the package obstore.

Data sets are read here, and copies of checkpoints and exports are kept. Keys and endpoints come from the environment,
as other programs take them (cloud_settings.py). An object is complete or absent: a large one is put in parts, and is
there once its last part is. Everything that goes wrong is a `CloudError`, one line that names the object, what was
found and the mend; it never shows an answer of the server as it is, since addresses in it may have signatures.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.cloud_settings import CREDENTIALS, CloudAddress, options_of
from data_pipeline.errors import UserError

PART_BYTES = 1 << 23
"""Objects are read and put in requests of at most so many bytes, so that one time limit fits them all."""

_AT_ONCE = 4
_MOST_PARTS = 9_000  # S3 takes 10,000
_SLOWEST_BYTES_PER_SECOND = 100_000  # what comes more slowly is given up like what does not come
_CONNECT_SECONDS = 10.0
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_PASSING_CODES = ("RequestTimeout", "SlowDown", "InternalError", "ServerBusy")
_MACHINE = ("169.254.", "metadata.google.internal")  # who is asked for the machine's own keys, where none are given
_WORDS = (
    ("connection refused", "the connection was refused"),
    ("dns error", "its host has no address"),
    ("failed to lookup", "its host has no address"),
    ("timedout", "no answer within the time limit"),
    ("timed out", "no answer within the time limit"),
    ("certificate", "its certificate is not trusted"),
    ("request or response body error", "the answer was cut off"),
    ("error decoding response body", "the answer was cut off"),
    ("error sending request", "the connection broke off"),
)
"""What the library says of connections -> what is said of it here; the first that fits counts."""


class CloudError(UserError):
    """What was asked of a cloud was not done.

    Args:
        place: The object or the address.
        reason: Why, in a few words.
        mend: What to do.
        passing: Whether the same may succeed later, as when a server is busy.
    """

    def __init__(self, place: str, reason: str, mend: str, passing: bool = False) -> None:
        super().__init__(f"{place}: {reason}: {mend}", exit_code=1)
        self.reason, self.passing = reason, passing

    def __reduce__(self) -> tuple[Any, ...]:
        return UserError, (str(self), self.exit_code)  # what other processes are told


class NoObject(CloudError):
    """There is no such object in the bucket."""

    def __init__(self, place: str) -> None:
        super().__init__(place, "there is no such object", "mend the address, or put it there")


class BeyondTheEnd(CloudError):
    """The object has not the bytes that were asked for."""

    def __init__(self, place: str) -> None:
        super().__init__(place, "is shorter than the part of it that was asked for", "put it there again")


class Exists(CloudError):
    """There is such an object already."""

    def __init__(self, place: str) -> None:
        super().__init__(place, "exists already", "choose another name")


class ObjectStore:
    """The objects under an address, by their names relative to it. Thread-safe.

    Attributes:
        address: Scheme, bucket and prefix.

    Args:
        name: The address.
        attempts: How often a request is tried, with growing pauses, by the library itself.
        timeout_seconds: How long an answer may take, apart from the time for its bytes.

    Raises:
        UserError: It is no such address, the package is missing, or the environment names no usable endpoint.
    """

    def __init__(self, name: str, attempts: int = 6, timeout_seconds: float = 30.0) -> None:
        self.address, self._attempts, self._timeout = CloudAddress.parse(name), attempts, timeout_seconds
        try:
            import obstore
        except ImportError:
            raise UserError(
                f"{self.address}: needs the package obstore: pip install 'memformer-train[far]', or pip install obstore"
            ) from None
        self._obstore: Any = obstore
        retries = {
            "max_retries": attempts - 1,
            "retry_timeout": timedelta(minutes=4),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
        }
        limit = timedelta(seconds=timeout_seconds + PART_BYTES / _SLOWEST_BYTES_PER_SECOND)
        client = {"connect_timeout": timedelta(seconds=min(timeout_seconds, _CONNECT_SECONDS)), "timeout": limit}
        # A read that stands still is given up early. A write may not be: the limit runs while its body is sent, too.
        reading = client | {"read_timeout": timedelta(seconds=timeout_seconds)}
        with self._told("", "opened"):
            self._reads, self._writes = (self._open(each, retries) for each in (reading, client))

    def _open(self, client: Mapping[str, Any], retries: Mapping[str, Any]) -> Any:
        from obstore import store

        kinds: dict[str, Any] = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}
        settings, more = options_of(self.address)
        return kinds[self.address.scheme](
            self.address.bucket,
            prefix=self.address.prefix or None,
            config=settings,
            client_options={**client, **more},
            retry_config=retries,
        )

    def reopened(self) -> "ObjectStore":
        """The same, with the keys that the environment has now: those of ~/.aws may have been renewed.

        Raises:
            UserError: As when it is made.
        """
        return ObjectStore(str(self.address), self._attempts, self._timeout)

    def place(self, name: str) -> str:
        """An object's whole address, as people are shown it."""
        return f"{self.address}/{name}" if name else str(self.address)

    def read(self, name: str) -> bytes:
        """A whole object.

        Raises:
            CloudError: It is not to be had.
        """
        return b"".join(self.blocks(name))

    def blocks(self, name: str) -> Iterator[bytes]:
        """A whole object, block after block, several of which are asked for at once.

        Raises:
            CloudError: It is not to be had.
        """
        try:
            first, total = self.part(name, 0, PART_BYTES)
        except BeyondTheEnd:  # not even the first byte is there
            first, total = b"", 0
        yield first
        starts = list(range(len(first), total, PART_BYTES))
        for at in range(0, len(starts), _AT_ONCE):
            group = starts[at : at + _AT_ONCE]
            ends = [min(start + PART_BYTES, total) for start in group]
            with self._told(name):
                parts: Sequence[Any] = self._reads.get_ranges(name, starts=group, ends=ends, coalesce=0)
            for start, end, part in zip(group, ends, parts, strict=True):
                yield self._whole(name, bytes(part), end - start)

    def part(self, name: str, offset: int, length: int) -> tuple[bytes, int]:
        """Bytes `offset .. offset + length` of an object, fewer at its end, and how many it has in all.

        Raises:
            CloudError: They are not to be had.
        """
        with self._told(name):
            answer: Any = self._reads.get(name, options={"range": (offset, offset + length)})
            total = int(answer.meta["size"])
            content = bytes(answer.bytes())
        return self._whole(name, content, min(length, total - offset)), total

    def _whole(self, name: str, content: bytes, length: int) -> bytes:
        if len(content) != length:
            raise self._failed(name, "the answer was cut off")
        return content

    def size(self, name: str) -> int:
        """Bytes of an object, without reading it.

        Raises:
            CloudError: There is none, or it is not told.
        """
        with self._told(name):
            return int(self._reads.head(name)["size"])

    def sha256(self, name: str) -> str | None:
        """The SHA-256 that an object was put with (`put`, `put_file`); None: without one, or there is no such object.

        Raises:
            CloudError: It is not told.
        """
        try:
            with self._told(name):
                found = self._reads.get(name, options={"head": True}).attributes.get("sha256")
        except NoObject:
            return None
        return None if found is None else str(found)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every object, or of those in a folder, by name.

        Raises:
            CloudError: They cannot be listed.
        """
        with self._told(folder):
            found = [each for group in self._reads.list(folder or None, chunk_size=1000) for each in group]
        return {str(each["path"]): int(each["size"]) for each in found}

    def folders(self) -> list[str]:
        """Names of the folders directly under the address.

        Raises:
            CloudError: They cannot be listed.
        """
        with self._told(""):
            found: Any = self._reads.list_with_delimiter()
            return [str(each) for each in found["common_prefixes"]]

    def put(self, name: str, content: bytes, new: bool = False) -> None:
        """Puts an object.

        Args:
            name: The object.
            content: What it holds.
            new: Only if there is none; otherwise in place of an earlier one.

        Raises:
            Exists: There is one, and `new` is asked for.
            CloudError: It was not put; an earlier one is as it was.
        """
        told, mode = {"sha256": hashlib.sha256(content).hexdigest()}, "create" if new else "overwrite"
        with self._told(name, "written"):
            self._writes.put(name, content, attributes=told, mode=mode, use_multipart=False)

    def put_file(self, name: str, file: Path, sha256: str, stop: Callable[[], None] = lambda: None) -> None:
        """Puts a file as an object, in place of an earlier one, if the file is what it should be.

        Args:
            name: The object.
            file: The file.
            sha256: Of its content, in hex; it is computed while the file is sent, and told with the object.
            stop: Called between blocks; what it raises ends the sending.

        Raises:
            CloudError: The file has another content, or it was not put; there is no new object then.
            OSError: The file cannot be read.
        """
        block = max(PART_BYTES, -(-os.stat(file).st_size // _MOST_PARTS))
        with file.open("rb") as opened, self._told(name, "written"):
            content = self._checked(name, opened, block, sha256, stop)
            first, second = next(content, b""), next(content, None)
            if second is None:
                self._writes.put(name, first, attributes={"sha256": sha256}, use_multipart=False)
            else:
                rest = itertools.chain([first, second], content)
                self._writes.put(name, rest, attributes={"sha256": sha256}, chunk_size=block, max_concurrency=_AT_ONCE)

    def _checked(
        self, name: str, file: BinaryIO, block: int, expected: str, stop: Callable[[], None]
    ) -> Iterator[bytes]:
        """The blocks of a file; before the last one is given, all are known to be what they should."""
        digest, data = hashlib.sha256(), file.read(block)
        while True:
            stop()
            digest.update(data)
            following = file.read(block)
            if not following and digest.hexdigest() != expected:
                raise CloudError(
                    self.place(name), f"{file.name} is not what it was (SHA-256 differs)", "nothing was put there"
                )
            yield data
            if not following:
                return
            data = following

    def copy(self, source: str, target: str) -> None:
        """Copies an object, with the SHA-256 that it was put with, inside the bucket: no byte of it comes by here.

        Raises:
            CloudError: It was not copied; S3 does not copy more than 5 GB in one request, for one.
        """
        with self._told(target, "written"):
            self._writes.copy(source, target)

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects; those that are not there are no fault.

        Raises:
            CloudError: Some could not be deleted.
        """
        if names:
            try:
                with self._told("", "deleted"):
                    self._writes.delete(list(names))
            except NoObject:  # Google and Azure tell of what is not there, and do not go on
                for name in names:
                    with suppress(NoObject), self._told(name, "deleted"):
                        self._writes.delete(name)

    @contextmanager
    def _told(self, name: str, what: str = "read") -> Iterator[None]:
        """Turns the library's errors into this module's."""
        try:
            yield
        except (UserError, OSError, ValueError, self._obstore.exceptions.BaseError) as error:
            if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None):
                raise  # of this program, or of a file of this machine
            if isinstance(error, self._obstore.exceptions.AlreadyExistsError):
                raise Exists(self.place(name)) from None
            raise self._explained(name, what, str(error)) from None

    def _explained(self, name: str, what: str, said: str) -> CloudError:
        address, place = self.address, self.place(name)
        status = int(found[1]) if (found := re.search(r"status code: (\d{3})", said)) else 0
        code = found[1] if (found := re.search(r"<Code>(\w{1,60})</Code>", said)) else ""
        told, keys = " ".join(filter(None, [f"status {status}" if status else "", code])), CREDENTIALS[address.scheme]
        if what == "opened":
            return CloudError(place, "the environment does not say how it is reached", f"look at {keys}")
        if any(host in said for host in _MACHINE):
            passing = not 400 <= status < 500
            return CloudError(place, f"no credentials were found, set {keys}", "or give the machine a role", passing)
        if code in _NO_BUCKET:
            return CloudError(str(address), f"there is no bucket {address.bucket}", "make it, or mend the address")
        if status == 404 or "not found" in said[:200].lower():
            return NoObject(place)
        if status == 416:
            return BeyondTheEnd(place)
        if code in _EXPIRED:
            return CloudError(place, f"the credentials have expired ({told})", f"renew {keys}")
        if status in (401, 403):
            mend = f"look at {keys}, and at what they may do in the bucket {address.bucket}"
            return CloudError(place, f"access is denied ({told})", mend)
        if "redirect without LOCATION" in said or code == "PermanentRedirect":
            return CloudError(place, "the bucket is in another region", "set AWS_REGION to its region")
        if code == "RequestTimeTooSkewed":
            return CloudError(place, "this machine's clock is wrong", "synchronise it (NTP)")
        if told:
            return self._failed(name, told, what, passing=status in _PASSING or code in _PASSING_CODES)
        low = said.lower()
        return self._failed(name, next((words for sign, words in _WORDS if sign in low), "the request failed"), what)

    def _failed(self, name: str, reason: str, what: str = "read", passing: bool = True) -> CloudError:
        tries = f" in {self._attempts} attempts" if passing and self._attempts > 1 else ""
        mend = "look at the network and the address, and try again"
        return CloudError(f"{self.place(name)} could not be {what}{tries}", reason, mend, passing)
