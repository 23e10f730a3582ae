# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Checkpoints as directories: complete or absent, verified, listed. Knows files, not models; imports no torch.

    RUN/checkpoints/step-00000100/   manifest.json state.json tokenizer.json
                                     parameters/ lanes/ random/ [base/] : rank-00000.safetensors, ...
    RUN/checkpoints/latest           the name of the newest complete one

A checkpoint is written under a temporary name, synced, listed in a manifest of sizes and checksums, renamed, and only
then named in `latest`. What has no manifest, or does not agree with it, cannot be used; but it is there all the same:
nobody starts over because of it, and nothing that cannot be read is deleted. Files that no manifest names do not count.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sync
from memformer.config.schema import CheckpointConfig
from memformer.run.directory import RunDirectory, write_atomically

LOG = logging.getLogger("memformer")
FORMAT = 3  # of what is written: parameters may be cut by rows and columns
_READABLE = (2, 3)
NAME = re.compile(r"step-(\d{8,})")
"""What the directory of a checkpoint is called."""
_PARTIAL = re.compile(r"\.step-\d{8,}\.partial")
_POINTER = re.compile(r"\.latest\.[0-9a-f]{8}")  # before it was renamed to `latest`
_HELD: set[Path] = set()
_STATE = {
    **dict.fromkeys(("model", "parameters", "data"), dict),
    **dict.fromkeys(("step", "tokens", "num_lanes", "world_size", "zero_stage"), int),
    **dict.fromkeys(("tokenizer_sha256", "precision", "device"), str),
    "probe_losses": list,
}

MANIFEST = "manifest.json"
RANDOM = "random/"
SPARE = (RANDOM, "tokenizer.json")
"""What a run can go on without: torch's own random generators, and the tokenizer, which its data set has as well."""


class CheckpointDamaged(UserError):
    """A checkpoint that cannot be used as it is: damaged, incomplete, unreadable, or of another version's format."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


def words(error: OSError) -> str:
    """What went wrong, and with which file where that is known."""
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")


def step_directory(run: RunDirectory, step: int) -> Path:
    """The directory of a step's checkpoint."""
    return run.checkpoints / f"step-{step:08d}"


def temporary_directory(run: RunDirectory, step: int) -> Path:
    """Where a step's checkpoint is written before it is complete."""
    return run.checkpoints / f".step-{step:08d}.partial"


def describe_file(directory: Path, name: str) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is synced to disk as well."""
    sync(directory / name)
    return _size_and_sum(directory / name)


def _size_and_sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest, size = hashlib.sha256(), 0
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def publish(run: RunDirectory, step: int, files: dict[str, dict[str, Any]]) -> Path:
    """Turns the temporary directory of a step into its checkpoint, and names it in `latest`. For one process.

    Args:
        run: The run.
        step: Its step.
        files: By relative path, what `describe_file` returned.
    """
    temporary, final = temporary_directory(run, step), step_directory(run, step)
    manifest = {"format": FORMAT, "step": step, "time": round(time.time(), 3), "files": files}
    manifest["sha256"] = _own_checksum(manifest)
    write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    put_in_place(run, temporary, final, files)
    return final


def put_in_place(run: RunDirectory, temporary: Path, final: Path, files: Iterable[str]) -> None:
    """Gives a directory with a manifest and these files, all synced, a checkpoint's name, and names it in `latest`."""
    for directory in {temporary, *((temporary / name).parent for name in files)}:
        sync(directory)
    if os.path.lexists(final):
        set_aside(final)
    os.rename(temporary, final)
    sync(run.checkpoints)
    try:
        write_atomically(run.checkpoints / "latest", final.name + "\n")
    except OSError as error:  # the checkpoint is complete without it
        LOG.warning("%s still names an older checkpoint than %s (%s)", run.checkpoints / "latest", final.name, error)


def set_aside(path: Path) -> Path:
    """Makes room where a checkpoint, or what was one, has a name that is needed: renames it, and deletes nothing.

    Returns:
        Its new name, which no run takes for a checkpoint of its own. Renamed back, it is what it was.
    """
    number = 1
    while os.path.lexists(target := path.with_name(f"{path.name}.set-aside-{number}")):
        number += 1
    return path.rename(target)


def step_of(directory: Path) -> int:
    """The step in a checkpoint directory's name.

    Raises:
        UserError: The name is no checkpoint's.
    """
    match = NAME.fullmatch(directory.name)
    if match is None:
        raise UserError(f"{directory}: is not a checkpoint: give a directory named step-00000100 or the like")
    return int(match[1])


def candidates(run: RunDirectory) -> list[Path]:
    """What is named like a checkpoint, newest first, complete or not: also a link that leads nowhere.

    Raises:
        UserError: It cannot be known what there is.
    """
    try:
        named = [path for path in run.checkpoints.iterdir() if NAME.fullmatch(path.name)]
    except FileNotFoundError:
        if run.checkpoints.is_symlink():  # to a disk that is not mounted, say
            place = os.readlink(run.checkpoints)
            raise UserError(f"{run.checkpoints}: is a link to {place}, which is not there", exit_code=1) from None
        return []
    except OSError as error:
        raise UserError(f"{run.checkpoints}: cannot be listed ({error.strerror}): mend that", exit_code=1) from None
    return sorted(named, key=step_of, reverse=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, without a look at the files it names.

    Raises:
        CheckpointDamaged: It is missing, unreadable, of another format, or names files outside the checkpoint.
    """
    return checked_manifest(_read_json(directory / MANIFEST), directory / MANIFEST, step_of(directory))


def checked_manifest(manifest: Any, path: object, step: int) -> dict[str, Any]:
    """What was read as the manifest of a step's checkpoint, if it is one.

    Args:
        manifest: As JSON gives it.
        path: Where it was read, for the message.
        step: The step in the checkpoint's name.

    Raises:
        CheckpointDamaged: See `read_manifest`.
    """
    try:
        version, own_step, _ = manifest["format"], int(manifest["step"]), float(manifest["time"])
        names = [(str(name), int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointDamaged(f"{path}: is not a checkpoint's manifest") from None
    if version not in _READABLE:
        raise CheckpointDamaged(f"{path}: format {version} is none of {_READABLE}: use the version that wrote it")
    if manifest.get("sha256") != _own_checksum(manifest):
        raise CheckpointDamaged(f"{path}: its content changed (SHA-256 differs)")
    if own_step != step:
        raise CheckpointDamaged(f"{path}: is the manifest of step {own_step}: the directory was renamed")
    for name, _, _ in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointDamaged(f"{path}: names {name!r}, outside the checkpoint")
    return dict(manifest)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(content)
    except (FileNotFoundError, NotADirectoryError):
        directory = path.parent
        if directory.is_symlink() and not os.path.exists(directory):
            raise CheckpointDamaged(f"{directory}: is a link to {os.readlink(directory)}, which is not there") from None
        raise CheckpointDamaged(f"{directory}: incomplete, no {path.name}") from None
    except OSError as error:
        raise CheckpointDamaged(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CheckpointDamaged(f"{path}: is not JSON as a checkpoint has it") from None
    return content


def _own_checksum(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def verify(directory: Path, spare: tuple[str, ...] = SPARE, sums: bool = True) -> dict[str, Any]:
    """Checks the files of a checkpoint against its manifest. Files that it does not name are no concern of it.

    Args:
        directory: The checkpoint.
        spare: Beginnings of the names of files that may be missing or damaged: see `lost`.
        sums: Whether to read every file for its SHA-256; without, sizes alone are compared, which costs nothing.

    Returns:
        The manifest.

    Raises:
        CheckpointDamaged: Names the first file that is missing or differs.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest["files"].items():
        flaw = None if name.startswith(spare) else _flaw(directory / name, entry, sums)
        if flaw is not None:
            raise CheckpointDamaged(flaw)
    read_state(directory)
    return manifest


def lost(directory: Path, spare: tuple[str, ...] = SPARE) -> list[str]:
    """A line for each of the spare files of a verified checkpoint that is missing or damaged."""
    entries = {name: entry for name, entry in read_manifest(directory)["files"].items() if name.startswith(spare)}
    flaws = (_flaw(directory / name, entry, sums=True) for name, entry in entries.items())
    return [flaw for flaw in flaws if flaw is not None]


def _flaw(file: Path, entry: dict[str, Any], sums: bool) -> str | None:
    """What is wrong with a file, or None."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{file}: is no file"
        if found.st_size != entry["bytes"]:
            return f"{file}: has {found.st_size} bytes, not {entry['bytes']}"
        changed = sums and _size_and_sum(file)["sha256"] != entry["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return f"{file}: is missing"
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})"
    return f"{file}: its content changed (SHA-256 differs)" if changed else None


def newest_complete(
    run: RunDirectory, spare: tuple[str, ...] = SPARE, sums: bool = True
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    skipped: list[str] = []
    for directory in candidates(run):
        try:
            verify(directory, spare, sums)
            return directory, skipped
        except CheckpointDamaged as damage:
            skipped.append(str(damage))
    return None, skipped


def refuse_no_checkpoint(path: str | os.PathLike[str]) -> None:
    """Refuses at a glance what `locate` can find nothing in; reads no checkpoint.

    Raises:
        UserError: It is no directory, or neither a checkpoint nor a run that has one.
    """
    given = meant(path)
    if not os.path.isdir(given):
        raise UserError(f"{given}: is no directory: give a run or one of its checkpoints")
    if NAME.fullmatch(given.name) or candidates(RunDirectory(given)):
        return
    if (given / "state.json").exists():
        raise UserError(f"{given}: a checkpoint is named after its step, as step-00000100: rename it back to use it")
    raise UserError(f"{given}: holds no complete checkpoint: give a run that has saved one")


def meant(path: str | os.PathLike[str]) -> Path:
    """The run or checkpoint that a path leads to: through a link, or as the folder that a run's checkpoints are in."""
    for place in (Path(path), Path(os.path.realpath(path))):
        if NAME.fullmatch(place.name):
            return place
        if place.name == RunDirectory("").checkpoints.name and not os.path.isdir(RunDirectory(place).checkpoints):
            return place.parent
    return Path(path)


def refuse_unexported(path: str | os.PathLike[str], setting: str = "") -> None:
    """Refuses a run or a checkpoint where an exported model is asked for.

    Args:
        path: What was given.
        setting: The setting that it was given for.

    Raises:
        UserError: It is one; names the command that exports it.
    """
    given = meant(path)
    kind = "run" if os.path.isdir(RunDirectory(given).checkpoints) else "checkpoint"
    if kind == "run" or (NAME.fullmatch(given.name) and os.path.isdir(given)):
        raise UserError(
            f"{setting}{path}: is a {kind}, not an exported model: memformer export {shlex.quote(str(path))} --out DIR "
            "makes one"
        )


def refuse_full(out: str | os.PathLike[str]) -> None:
    """Refuses a place for an export that holds something.

    Raises:
        UserError: It does.
    """
    target = Path(out)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise UserError(f"--out {target}: exists and is not empty: choose another directory")


def locate(path: str | os.PathLike[str], spare: tuple[str, ...] = SPARE, sums: bool = True) -> Path:
    """The checkpoint that a user means by a run directory (its newest one) or a checkpoint directory.

    Args:
        path: The run or checkpoint.
        spare: As in `verify`.
        sums: As in `verify`.

    Raises:
        UserError: There is none.
        CheckpointDamaged: The one that was named cannot be used, or the newest of the run: an older one is not taken
            for it without a word.
    """
    refuse_no_checkpoint(path)
    given = meant(path)
    chosen = given if NAME.fullmatch(given.name) else candidates(RunDirectory(given))[0]
    try:
        verify(chosen, spare, sums)
    except CheckpointDamaged as damage:
        run = RunDirectory(chosen.parent.parent)
        usable = newest_complete(run, spare, sums)[0] if chosen.parent.name == run.checkpoints.name else None
        if chosen == given:
            other = (
                "mend it, or name another checkpoint" if usable is None else f"the newest that can be used is {usable}"
            )
            raise CheckpointDamaged(f"{damage}: {other}") from None
        mend = "and no older one either" if usable is None else f"the newest that can is {usable}: name it to use it"
        raise CheckpointDamaged(f"{given}: its newest checkpoint cannot be used ({damage}), {mend}") from None
    return chosen


def read_state(directory: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        CheckpointDamaged: It is missing, unreadable, or not as this version writes and reads it.
    """
    path = directory / "state.json"
    state = _read_json(path)
    version = state.get("format")
    if version not in _READABLE:
        raise CheckpointDamaged(f"{path}: format {version} is none of {_READABLE}: use the version that wrote it")
    missing = next((name for name, kind in _STATE.items() if not isinstance(state.get(name), kind)), None)
    if missing is not None:
        raise CheckpointDamaged(f"{path}: does not tell {missing} as a checkpoint does")
    if state["step"] != step_of(directory):
        raise CheckpointDamaged(f"{path}: is the state of step {state['step']}")
    return state


def outdated(complete: Mapping[int, float], settings: CheckpointConfig) -> list[int]:
    """The steps of checkpoints that the settings do not keep, newest first.

    Kept are the last `keep_last`, those of every `keep_interval` steps, and the first of every `keep_hours`.

    Args:
        complete: When each was saved, in seconds since 1970, by its step.
        settings: Which are kept.
    """
    steps = sorted(complete, reverse=True)
    first_of_period: dict[int, int] = {}
    for step in steps:  # newest first, so the earliest of a period stays
        if settings.keep_hours:
            first_of_period[int(complete[step] / (3600 * settings.keep_hours))] = step
    return [
        step
        for step in steps[settings.keep_last :]
        if not (settings.keep_interval and step % settings.keep_interval == 0) and step not in first_of_period.values()
    ]


def hold(path: Path) -> None:
    """Has `delete_old` leave a checkpoint that this process reads, until `let_go`."""
    _HELD.add(path)


def let_go(path: Path) -> None:
    """The checkpoint is read no more."""
    _HELD.discard(path)


def delete_old(run: RunDirectory, newest: int, settings: CheckpointConfig) -> list[Path]:
    """Deletes the checkpoints that the settings do not keep. To be called after step `newest` is complete.

    Which they are says `outdated`. What cannot be used, is a link, or has a later step is never deleted, and does not
    count; nor is what is held deleted.

    Returns:
        What was deleted.
    """
    places, complete = {step_of(path): path for path in candidates(run) if not path.is_symlink()}, dict[int, float]()
    for step, directory in places.items():
        if step <= newest:
            with contextlib.suppress(CheckpointDamaged):
                complete[step] = float(verify(directory, sums=False)["time"])
    deleted = [places[step] for step in outdated(complete, settings) if places[step] not in _HELD]
    for path in deleted:
        # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.partial")), ignore_errors=True)
    return deleted


def delete_partial(run: RunDirectory) -> None:
    """Deletes what earlier lives did not finish writing, or deleting."""
    for path in run.checkpoints.iterdir():
        if _PARTIAL.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif _POINTER.fullmatch(path.name):
            path.unlink(missing_ok=True)
