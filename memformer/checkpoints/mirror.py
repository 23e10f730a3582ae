# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Mirror`: copies of a run's checkpoints in a cloud (`checkpoint.mirror`), made by a thread while training goes on.

A copy is complete or absent: its manifest is put last. What fails is told, costs the run nothing, and is tried again
with the next checkpoint. While a checkpoint is copied, others may become complete: of those that wait, the newest goes
next, and those that are kept for ever. The settings keep as many there as here. How it lies there: mirrored.py.
"""

import dataclasses
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.object_store import NoObject, ObjectStore
from memformer.checkpoints import directory as files
from memformer.checkpoints import mirrored
from memformer.checkpoints.copying import Copied, copy_up
from memformer.config.schema import CheckpointConfig
from memformer.run.directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class MirrorReport:
    """How a copy ended.

    Attributes:
        step: Of the checkpoint.
        address: Where it is, or should be.
        copied: What it took; None: it failed.
        deleted: Steps whose copies are kept no more, and were deleted after it.
        error: Why it failed, or why old copies could not be deleted.
    """

    step: int
    address: str
    copied: Copied | None = None
    deleted: tuple[int, ...] = ()
    error: str | None = None


class _Leaving(Exception):
    """The run ends before the copy."""


class Mirror:
    """The thread that copies, in the one process that writes what is written once.

    Args:
        store: Where to.
        run: The run.
        settings: Which checkpoints are kept, and how copies are verified.
        report: Called by the thread after each copy.
    """

    def __init__(
        self,
        store: ObjectStore,
        run: RunDirectory,
        settings: CheckpointConfig,
        report: Callable[[MirrorReport], None],
    ) -> None:
        self._store, self._run, self._settings, self._report = store, run, settings, report
        self._waiting: dict[int, Path] = {}
        self._under_way: int | None = None
        self._failed: Path | None = None
        self._passing = False  # whether what failed last may succeed later
        self._life, self._taken = secrets.token_hex(8), False
        self._times: dict[int, float] = {}  # of the copies, by step
        self._tried = False  # in vain, since the last copy
        self._last: str | None = None  # the newest copy, from which what has not changed is copied there
        self._changed, self._leaving = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="checkpoint-mirror", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Path) -> None:
        """Has a complete checkpoint copied. It is not deleted meanwhile."""
        with self._changed:
            step = files.step_of(checkpoint)
            for other in [each for each in self._waiting if each < step and not self._kept_for_ever(each)]:
                files.let_go(self._waiting.pop(other))
            files.hold(checkpoint)
            self._waiting[step], self._failed = checkpoint, None
            self._changed.notify_all()

    @property
    def may_pass(self) -> bool:
        """Whether the last copy failed for a reason that may pass, such as a server that is not there."""
        with self._changed:
            return self._failed is not None and self._passing

    def offer_failed(self) -> None:
        """Tries once more what failed last."""
        with self._changed:
            failed = self._failed
        if failed is not None and failed.is_dir():
            self.offer(failed)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is copied, or waits for it."""
        with self._changed:
            return bool(self._waiting) or self._under_way is not None

    def missing(self) -> list[int]:
        """Steps of the checkpoints that have no copy: they are under way, wait for it, or failed last."""
        with self._changed:
            others = [self._under_way, None if self._failed is None else files.step_of(self._failed)]
            return sorted({*self._waiting, *(step for step in others if step is not None)})

    def close(self, seconds: float) -> None:
        """Ends the thread, in the middle of a copy as well, which the next life goes on with; waits so long at most."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def _kept_for_ever(self, step: int) -> bool:
        return bool(self._settings.keep_interval) and step % self._settings.keep_interval == 0

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._leaving)
                if self._leaving:
                    return
                step = max(self._waiting)
                path, self._under_way = self._waiting.pop(step), step
            try:
                report = self._copied(step, path)
            except _Leaving:
                return
            with self._changed:
                self._under_way, self._failed = None, path if report.copied is None else self._failed
            files.let_go(path)
            self._report(report)

    def _copied(self, step: int, path: Path) -> MirrorReport:
        address = self._store.place(path.name)
        try:
            if self._tried:
                self._store = self._store.reopened()  # the keys may have been the reason
            self._tried = True
            if not self._taken or not mirrored.is_claimed(self._store, self._life):
                mirrored.claim(self._store, self._run, self._life)
                self._taken = True
            entries = files.read_manifest(path)["files"]
            self._times.pop(step, None)
            read_back = self._settings.mirror_read_back
            equal = self._equal(path.name)
            copied = copy_up(
                self._store, path, path.name, entries, files.MANIFEST, read_back, self._stop, equal,
                before_last=lambda: mirrored.is_claimed(self._store, self._life),
            )  # fmt: skip
            self._last, self._tried = path.name, False
        except _Leaving:
            raise
        except Exception as error:  # whatever it is, it is no reason to end the run
            self._passing = getattr(error, "passing", False)
            return MirrorReport(step, address, error=_words(error))
        try:
            return MirrorReport(step, address, copied, self._delete_old(step))
        except UserError as error:
            return MirrorReport(step, address, copied, error=str(error))

    def _equal(self, name: str) -> dict[str, str]:
        """The files of another copy, by their SHA-256: weights that are not trained are the same in all of them."""
        if self._last is None:
            self._last = next(reversed(mirrored.complete_steps(self._store).values()), None)
        try:
            if self._last in (None, name):
                return {}
            entries = mirrored.read_manifest(self._store, str(self._last))[1]["files"]
        except (NoObject, files.CheckpointDamaged):  # deleted, as one that is kept no more
            return {}
        return {str(entry["sha256"]): f"{self._last}/{each}" for each, entry in entries.items()}

    def _stop(self) -> None:
        if self._leaving:
            raise _Leaving

    def _delete_old(self, newest: int) -> tuple[int, ...]:
        """Deletes copies that the settings do not keep, and what is left of those that were never completed.

        A copy loses its manifest first: what is only half deleted is none. One whose manifest cannot be used stays, and
        does not count.
        """
        complete: dict[int, str] = {}
        unfinished: list[str] = []
        for name in mirrored.steps_in(self._store):
            step = files.step_of(Path(name))
            if step > newest:
                continue
            try:
                if step not in self._times:
                    self._times[step] = float(mirrored.read_manifest(self._store, name)[1]["time"])
                complete[step] = name
            except NoObject:
                unfinished.append(name)
            except files.CheckpointDamaged:
                continue
        times = {step: self._times[step] for step in complete}
        old = files.outdated(times, self._settings)
        for name in [*(complete[step] for step in old), *unfinished]:
            self._stop()
            self._store.delete([f"{name}/{files.MANIFEST}"])
            self._store.delete(list(self._store.sizes(name)))
        for step in old:
            del self._times[step]
        return tuple(old)


def _words(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return files.words(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
