# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The directory of a build that is under way: locked, resumable after a kill, and put in place when it is complete.

`OUT.partial` holds the shards so far, a journal with a line for every shard that is whole and on disk, and what was
computed before the first shard (content hashes, a trained tokenizer). A later build with the same settings goes on from
there, as far as the sources still begin with the same documents; any other build starts from nothing.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sync
from data_pipeline.manifest import partial_of

MARKER = ".building"  # a file in the directory of a build that is under way
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

    def open(
        self,
        identity: dict[str, Any],
        sources: list[Any],
        unchanged: Callable[[Sequence[dict[str, Any]]], int],
    ) -> None:
        """Takes up what an earlier build of the same identity left, and removes everything else.

        Args:
            identity: Settings; JSON.
            sources: What tells without reading them whether they are those of the earlier build; JSON.
            unchanged: How many of these records, from the first, are of documents that are still there: asked where
                the sources are others. What depends on all documents (splits, a trained tokenizer) is then made again
                from nothing.
        """
        lines = self._file.read_bytes().split(b"\n") if self._file.exists() else []
        text = json.dumps({**identity, "sources": sources}, sort_keys=True).encode()
        kept = {MARKER}
        earlier = json.loads(lines[0]) if len(lines) > 1 else {}
        same_sources = earlier.pop("sources", None) == sources
        if earlier == identity and (same_sources or not self._products()):
            # What follows the last line end was being written when the build was killed.
            records = [json.loads(line) for line in lines[1:-1]]
            whole = next((at for at, record in enumerate(records) if not self._is_whole(record)), len(records))
            self._records = records[: whole if same_sources else unchanged(records[:whole])]
            kept |= {_JOURNAL, *self._products(), *map(self._shard_name, self._records)}
        self._remove_all_but(kept)
        fresh = self.directory / f"{_JOURNAL}.new"
        with fresh.open("wb") as file:
            file.write(text + b"\n")
            for record in self._records:
                file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)

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
            if path.name.startswith(".") and path.name != MARKER:
                path.unlink()

    def worth_keeping(self) -> str:
        """What an unfinished build has that the next one need not do again, for people; empty if there is nothing."""
        shards = self._file.read_bytes().count(b"\n") - 1 if self._file.exists() else 0
        if shards > 0:
            return f"the {shards:,} finished shards are kept" if shards > 1 else "the finished shard is kept"
        return "what was read and trained is kept" if self._products() else ""

    def _is_whole(self, record: dict[str, Any]) -> bool:
        path = self.directory / self._shard_name(record)
        return path.is_file() and bool(path.stat().st_size == record["shard"]["size_bytes"])

    @staticmethod
    def _shard_name(record: dict[str, Any]) -> str:
        return str(Path(record["split"] or "", record["shard"]["name"]))

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

    An error leaves it to be taken up if it holds finished shards, and says so; a kill or an interrupt always does. A
    build that still runs is recognised by its lock.

    Raises:
        UserError: Something else is in the way, or another build of this target runs.
    """
    partial = partial_of(target)
    made = [folder for folder in partial.parents if not folder.exists()]
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and not (partial / MARKER).exists():
        raise UserError(f"{partial} is in the way and is not an unfinished build; move it away")
    partial.mkdir(exist_ok=True)
    with (partial / MARKER).open("w") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another build is writing {target}; wait for it, or name another directory") from None
        except OSError:
            pass  # a file system without locks: two builds of one target at once are then the user's to avoid
        try:
            journal = Journal(partial)
            if not overwrite and target.is_dir() and any(target.iterdir()):
                raise UserError(f"another build has made {target} just now; name another directory")
            yield journal
            journal.clear()
            sync(partial)
        except Exception as error:
            kept = journal.worth_keeping()
            if not kept:
                shutil.rmtree(partial, ignore_errors=True)
                with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                    for folder in made:
                        folder.rmdir()
                raise
            if not isinstance(error, UserError | OSError):
                raise
            message = error if isinstance(error, UserError) else f"cannot write {target}: {error.strerror or error}"
            code = error.exit_code if isinstance(error, UserError) else 1
            raise UserError(f"{message} ({kept} in {partial}: the same command goes on there)", code) from error
        replaced = target.with_name(f"{target.name}.replaced-{os.getpid()}") if overwrite and target.exists() else None
        if replaced:
            target.rename(replaced)
        partial.rename(target)
        # Not before: what a kill leaves of the lines above is still known as a build.
        (target / MARKER).unlink()
        sync(target)
        sync(target.parent)
        if replaced:
            shutil.rmtree(replaced)
