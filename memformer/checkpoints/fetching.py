# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`--resume s3://BUCKET/RUN`: a checkpoint of a mirror becomes one of the run directory, from which the run goes on.

It is fetched under a temporary name, verified against its manifest, synced, and renamed: complete or absent, as those
that the run writes itself. The same command again, as of a job that is requeued, goes on from what the run has saved
since. A mirror that does not answer is a reason to refuse: nothing is started afresh because of it.
"""

import dataclasses
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.object_store import CloudError, ObjectStore
from memformer.checkpoints import directory as files
from memformer.checkpoints import mirrored
from memformer.checkpoints.copying import copy_down
from memformer.config.schema import CheckpointConfig
from memformer.run import jsonl
from memformer.run.directory import RunDirectory

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What an address asks for.

    Attributes:
        store: The mirror; for a single checkpoint, where it is in.
        name: The checkpoint to fetch; None: the run goes on from its own newest one.
    """

    store: ObjectStore
    name: str | None


def wanted(run: RunDirectory, resume: str, settings: CheckpointConfig) -> Wanted:
    """Which checkpoint of a mirror a run goes on from. Reads the mirror's list alone, and changes nothing.

    Args:
        run: The run.
        resume: Address of a mirror, or of a checkpoint in it.
        settings: Of the run: its own mirror.

    Raises:
        UserError: There is none, the mirror does not answer, or the run has checkpoints of its own that have nothing to
            do with it.
    """
    root, _, last = resume.rstrip("/").rpartition("/")
    named = files.NAME.fullmatch(last) is not None
    store = ObjectStore(root if named else resume)
    own, again = files.candidates(run), _fetched(run, store, last if named else None)
    if own and not again and not _is_own(store, settings):
        raise UserError(
            f"--resume {resume}: run_dir {run.root} has checkpoints of its own (the newest is {own[0].name}): go on "
            "from them with --resume auto, or choose another run_dir"
        )
    if own and again and (named or not _is_own(store, settings)):
        return Wanted(store, None)
    there = mirrored.complete_steps(store)
    if named and last not in there.values():
        others = f"those in {store.address} are {', '.join(there.values())}" if there else f"{store.address} has none"
        raise UserError(f"--resume {resume}: is no complete checkpoint: {others}")
    if not there:
        raise UserError(f"--resume {resume}: holds no complete checkpoint: give a mirror that has one")
    if named:
        return Wanted(store, last)
    newest = files.newest_complete(run, sums=False)[0]
    newer = newest is None or files.step_of(newest) < max(there)
    return Wanted(store, there[max(there)] if newer else None)


def fetch(run: RunDirectory, what: Wanted, settings: CheckpointConfig) -> str:
    """Fetches a checkpoint into the run directory; for one process, which has it to itself.

    Returns:
        What `choose` is to be told: the checkpoint's path, or auto.

    Raises:
        UserError: It cannot be had, or is not what its manifest says; nothing is left of it then.
    """
    if what.name is None:
        return "auto"
    began, step, place = time.monotonic(), files.step_of(Path(what.name)), what.store.place(what.name)
    final, temporary = files.step_directory(run, step), files.temporary_directory(run, step)
    try:
        content, manifest = mirrored.read_manifest(what.store, what.name)
    except files.CheckpointDamaged as error:
        raise _with_others(error, what.store, what.name) from None
    if _is_here(final, content):
        return str(final)
    made = [folder for folder in (run.checkpoints, run.root) if not folder.exists()]
    try:
        run.create()
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        LOG.info("fetching %s", place)
        copy_down(what.store, what.name, temporary, manifest["files"])
        (temporary / files.MANIFEST).write_bytes(content)
        files.describe_file(temporary, files.MANIFEST)
        files.put_in_place(run, temporary, final, manifest["files"])
        if _is_own(what.store, settings):
            mirrored.adopt(what.store, run)
    except CloudError as error:
        raise error if error.passing else _with_others(error, what.store, what.name) from None
    except OSError as error:
        raise UserError(
            f"--resume {place}: could not be written ({files.words(error)}): make room, or choose another run_dir",
            exit_code=1,
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # something is in it
                folder.rmdir()
    size = sum(int(entry["bytes"]) for entry in manifest["files"].values())
    run.event("fetch", step=step, address=str(what.store.address), bytes=size, seconds=time.monotonic() - began)
    return str(final)


def _with_others(error: UserError, store: ObjectStore, name: str) -> UserError:
    """What is wrong with a checkpoint of a mirror, and which others it has."""
    others = [each for each in mirrored.complete_steps(store).values() if each != name]
    beside = "it has no other"
    if others:
        beside = f"others there are {', '.join(others)}: name one, {store.address}/{others[-1]}"
    return UserError(f"{error}; {beside}", exit_code=1)


def _is_own(store: ObjectStore, settings: CheckpointConfig) -> bool:
    """Whether a run's own mirror is there."""
    return settings.mirror == str(store.address)


def _is_here(final: Path, manifest: bytes) -> bool:
    """Whether the run has this very checkpoint already, sound."""
    try:
        files.verify(final)
        return (final / files.MANIFEST).read_bytes() == manifest
    except (files.CheckpointDamaged, OSError):
        return False


def _fetched(run: RunDirectory, store: ObjectStore, name: str | None) -> bool:
    """Whether a life of the run has fetched from a mirror: any checkpoint, or this one."""
    said = jsonl.last(
        run.events,
        lambda event: (
            event.get("event") == "fetch"
            and event.get("address") == str(store.address)
            and (name is None or event.get("step") == files.step_of(Path(name)))
        ),
    )
    return said is not None
