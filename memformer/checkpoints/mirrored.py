# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What lies at the address of a mirror: checkpoints, and whose they are.

    s3://BUCKET/RUN/mirror.json            which run this is the mirror of; the same file is in the run's directory
    s3://BUCKET/RUN/step-00000100/...      a checkpoint, complete if its manifest.json is there

A mirror belongs to one run. Two runs at one address would delete each other's checkpoints as old ones, so the second
one to come is refused. Whoever goes on from a mirror on another machine goes on with that run, and has its mirror; so
mirror.json there also names the life that copies, and an earlier one that is not dead after all copies no more.
"""

import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.object_store import CloudError, Exists, NoObject, ObjectStore
from memformer.checkpoints import directory as files
from memformer.checkpoints.resuming import Start
from memformer.run.directory import RunDirectory, write_atomically

OWNER = "mirror.json"


def steps_in(store: ObjectStore) -> list[str]:
    """Names of the folders under an address that are called like checkpoints, complete or not.

    Raises:
        CloudError: They cannot be listed.
    """
    return sorted(name for name in store.folders() if files.NAME.fullmatch(name))


def complete_steps(store: ObjectStore) -> dict[int, str]:
    """The complete checkpoints under an address, step -> name, the newest last.

    Raises:
        CloudError: They cannot be listed.
    """
    found: dict[int, str] = {}
    for name in steps_in(store):
        try:
            store.size(f"{name}/{files.MANIFEST}")
        except NoObject:
            continue
        found[files.step_of(Path(name))] = name
    return dict(sorted(found.items()))


def read_manifest(store: ObjectStore, name: str) -> tuple[bytes, dict[str, Any]]:
    """The manifest of a checkpoint under an address: as it is there, and what it says.

    Raises:
        NoObject: There is none, so that there is no checkpoint.
        CloudError: It cannot be read.
        CheckpointDamaged: It is not a manifest of this checkpoint.
    """
    key = f"{name}/{files.MANIFEST}"
    content = store.read(key)
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        raise files.CheckpointDamaged(f"{store.place(key)}: is not JSON as a checkpoint has it") from None
    return content, files.checked_manifest(said, store.place(key), files.step_of(Path(name)))


def refuse_others(store: ObjectStore, run: RunDirectory) -> dict[str, str] | None:
    """Refuses the mirror of another run.

    Returns:
        What is said there of this run; None: it is no mirror yet.

    Raises:
        UserError: It is another run's, or whose it is cannot be read.
    """
    there = _owner(store)
    if there is not None:
        own = _own(run)
        if own is None or own["id"] != there["id"]:
            raise UserError(
                f"checkpoint.mirror: {store.address} is the mirror of another run ({there['run_dir']} on "
                f"{there['host']}): give another address, or go on with that run by --resume {store.address}"
            )
    return there


def claim(store: ObjectStore, run: RunDirectory, life: str) -> None:
    """Makes an address the mirror of a run, if it is not yet, and says that this life of the run copies there.

    Args:
        store: The address.
        run: The run.
        life: What tells this life from earlier and later ones, which copy no more from now on.

    Raises:
        UserError: As `refuse_others`.
        OSError: The run's directory cannot be written.
    """
    there, here = refuse_others(store, run), {"run_dir": os.path.abspath(run.root), "host": socket.gethostname()}
    own = _own(run) or {"id": secrets.token_hex(8), **here}
    said = (json.dumps({**own, **here, "life": life}) + "\n").encode()
    if there is None:
        write_atomically(run.mirror, json.dumps(own) + "\n")
        try:
            store.put(OWNER, said, new=True)
            return
        except Exists:  # another process was faster
            refuse_others(store, run)
    store.put(OWNER, said)


def is_claimed(store: ObjectStore, life: str) -> bool:
    """Whether this life of a run copies there; it did, and if nothing is said there any more, it has to say it again.

    Raises:
        CloudError: A later life has begun to, or it cannot be told.
    """
    there = _owner(store)
    if there is not None and there["life"] != life:
        who = f"is copied to by {there['run_dir']} on {there['host']}, which goes on with the same run"
        raise CloudError(str(store.address), who, "end one of the two")
    return there is not None


def adopt(store: ObjectStore, run: RunDirectory) -> None:
    """Makes a run the one that an address is the mirror of: it goes on from there.

    Raises:
        CloudError: Whose it is cannot be read.
    """
    there = _owner(store)
    if there is not None:
        write_atomically(run.mirror, json.dumps(there) + "\n")


def refuse_unfit(store: ObjectStore, run: RunDirectory, start: Start) -> None:
    """Refuses a mirror that a run which begins there must not have.

    Args:
        store: The mirror.
        run: The run.
        start: Where it begins.

    Raises:
        UserError: It is another run's, or has later checkpoints than the run goes on from: those would be taken for its
            newest ones.
        CloudError: It does not answer.
    """
    refuse_others(store, run)
    later = {step: name for step, name in complete_steps(store).items() if step > start.step}
    if later:
        where = f"goes on from step {start.step}" if start.checkpoint is not None else "starts afresh"
        raise UserError(
            f"checkpoint.mirror: {store.address} has {later[max(later)]}, and the run {where}: go on from there with "
            f"--resume {store.address}, or give another address"
        )


def _owner(store: ObjectStore) -> dict[str, str] | None:
    try:
        return _parsed(store.read(OWNER), store.place(OWNER))
    except NoObject:
        return None


def _own(run: RunDirectory) -> dict[str, str] | None:
    try:
        return _parsed(run.mirror.read_bytes(), str(run.mirror))
    except FileNotFoundError:
        return None


def _parsed(content: bytes, place: str) -> dict[str, str]:
    try:
        said = json.loads(content)
        return {**{name: str(said[name]) for name in ("id", "run_dir", "host")}, "life": str(said.get("life", ""))}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CloudError(place, "does not say whose mirror this is", "restore it, or give another address") from None
