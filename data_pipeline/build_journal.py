# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The directory of a build that is under way: locked, resumable after a kill, and put in place when it is complete.

`OUT.partial` holds the shards so far, a journal with a line for every shard that is whole and on disk, and what was
computed before the first shard (content hashes, a trained tokenizer). A later build with the same settings and the
same sources goes on from there; any other build starts from nothing.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sync
from data_pipeline.manifest import partial_of

_MARKER = ".building"
_JOURNAL = ".journal.jsonl"


class Journal:
    """What an unfinished build has on disk. Made by `building`.

    Args:
        directory: The build's directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / _JOURNAL
        self._records: list[dict[str, Any]] = []

    def open(self, identity: dict[str, Any]) -> None:
        """Takes up what an earlier build of the same identity left, and removes everything else.

        Args:
            identity: Settings and sources; JSON.
        """
        lines = self._file.read_bytes().split(b"\n") if self._file.exists() else []
        text = json.dumps(identity, sort_keys=True).encode()
        kept = {_MARKER}
        if lines and lines[0] == text:
            kept |= {_JOURNAL, *self._products()}
            # What follows the last line end was being written when the build was killed.
            for line in lines[1:-1]:
                record = json.loads(line)
                shard = Path(record["split"] or "", record["shard"]["name"])
                path = self.directory / shard
                if not path.is_file() or path.stat().st_size != record["shard"]["size_bytes"]:
                    break
                self._records.append(record)
                kept.add(str(shard))
        self._remove_all_but(kept)
        with self._file.open("wb") as file:
            file.write(text + b"\n")
            for record in self._records:
                file.write(json.dumps(record).encode() + b"\n")
            os.fsync(file.fileno())

    def finished(self, split: str | None) -> Iterator[dict[str, Any]]:
        """The records of the shards of a split that are complete, in order."""
        return (record for record in self._records if record["split"] == split)

    def note(self, split: str | None, record: dict[str, Any]) -> None:
        """Notes a shard that is complete and on disk."""
        with self._file.open("ab") as file:
            file.write(json.dumps({"split": split, **record}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def product(self, name: str) -> Path | None:
        """A file that `keep` wrote in the killed build; None if there is none."""
        path = self.directory / f".kept-{name}"
        return path if path.is_file() else None

    def keep(self, name: str, content: bytes) -> None:
        """Keeps a result that is expensive to compute again, complete or absent."""
        temporary = self.directory / ".kept.temporary"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.directory / f".kept-{name}")

    def clear(self) -> None:
        """Removes everything that is not part of the data set, but for the lock."""
        for path in self.directory.iterdir():
            if path.name.startswith(".") and path.name != _MARKER:
                path.unlink()

    def _products(self) -> set[str]:
        return {path.name for path in self.directory.iterdir() if path.name.startswith(".kept-")}

    def _remove_all_but(self, kept: set[str]) -> None:
        for path in sorted(self.directory.rglob("*"), reverse=True):
            if str(path.relative_to(self.directory)) not in kept:
                if path.is_dir():
                    if not any(path.iterdir()):
                        path.rmdir()
                else:
                    path.unlink()


@contextmanager
def building(target: Path, overwrite: bool) -> Iterator[Journal]:
    """A directory beside `target` that takes its place when the block ends without an error.

    An error removes it; a kill or an interrupt leaves it to be taken up. A build that still runs is recognised by its
    lock.

    Raises:
        UserError: Something else is in the way, or another build of this target runs.
    """
    partial = partial_of(target)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and not (partial / _MARKER).exists():
        raise UserError(f"{partial} is in the way and is not an unfinished build; move it away")
    partial.mkdir(exist_ok=True)
    with (partial / _MARKER).open("w") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another build is writing {target}; wait for it, or name another directory") from None
        except OSError:
            pass  # a file system without locks: two builds of one target at once are then the user's to avoid
        try:
            journal = Journal(partial)
            yield journal
            journal.clear()
            (partial / _MARKER).unlink()
            sync(partial)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if overwrite and target.exists():
            replaced = target.with_name(f"{target.name}.replaced-{os.getpid()}")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
        sync(target.parent)
