# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Checkpoints as directories: complete or absent, verified, listed. Knows files, not models; imports no torch.

    RUN/checkpoints/step-00000100/   manifest.json state.json tokenizer.json
                                     parameters/ lanes/ random/ : rank-00000.safetensors, ...
    RUN/checkpoints/latest           the name of the newest complete one

A checkpoint is written under a temporary name, synced, listed in a manifest of sizes and checksums, renamed, and only
then named in `latest`. What has no manifest, or does not agree with it, is not a checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sync
from memformer.config.schema import CheckpointConfig
from memformer.run.directory import RunDirectory, write_atomically

FORMAT = 3  # of what is written: parameters may be cut by rows and columns
_READABLE = (2, 3)
_NAME = re.compile(r"step-(\d{8,})")


class CheckpointDamaged(UserError):
    """A checkpoint that does not agree with its manifest."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


def step_directory(run: RunDirectory, step: int) -> Path:
    """The directory of a step's checkpoint."""
    return run.checkpoints / f"step-{step:08d}"


def temporary_directory(run: RunDirectory, step: int) -> Path:
    """Where a step's checkpoint is written before it is complete."""
    return run.checkpoints / f".step-{step:08d}.partial"


def relative_files(directory: Path) -> list[str]:
    """Every file below a directory, by its path within it, sorted; the manifest itself left out."""
    found = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sorted(name for name in found if name != "manifest.json")


def describe_file(directory: Path, name: str) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is synced to disk as well."""
    path = directory / name
    with path.open("rb") as file:
        os.fsync(file.fileno())
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
    write_atomically(temporary / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    for directory in {temporary, *((temporary / name).parent for name in files)}:
        sync(directory)
    if final.exists():
        shutil.rmtree(final)  # an older life wrote this step, and it was found damaged or is being repeated
    os.rename(temporary, final)
    sync(run.checkpoints)
    write_atomically(run.checkpoints / "latest", final.name + "\n")
    return final


def step_of(directory: Path) -> int:
    """The step in a checkpoint directory's name.

    Raises:
        UserError: The name is no checkpoint's.
    """
    match = _NAME.fullmatch(directory.name)
    if match is None:
        raise UserError(f"{directory}: is not a checkpoint: give a directory named step-00000100 or the like")
    return int(match[1])


def candidates(run: RunDirectory) -> list[Path]:
    """Directories named like checkpoints, newest first, complete or not."""
    if not run.checkpoints.is_dir():
        return []
    named = [path for path in run.checkpoints.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(named, key=step_of, reverse=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, without a look at the files it names.

    Raises:
        CheckpointDamaged: It is missing, unreadable, of another format, or names files outside the checkpoint.
    """
    path = directory / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, step, _ = manifest["format"], int(manifest["step"]), float(manifest["time"])
        names = [(str(name), int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()]
    except OSError as error:
        raise CheckpointDamaged(f"{directory}: incomplete, no manifest.json ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointDamaged(f"{path}: is not a checkpoint's manifest") from None
    if version not in _READABLE:
        raise CheckpointDamaged(f"{path}: format {version} is none of {_READABLE}: use the version that wrote it")
    if manifest.get("sha256") != _own_checksum(manifest):
        raise CheckpointDamaged(f"{path}: its content changed (SHA-256 differs)")
    if step != step_of(directory):
        raise CheckpointDamaged(f"{path}: is the manifest of step {step}: the directory was renamed")
    for name, _, _ in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointDamaged(f"{path}: names {name!r}, outside the checkpoint")
    return manifest


def _own_checksum(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def verify(directory: Path) -> dict[str, Any]:
    """Checks every file of a checkpoint against its manifest, by size and SHA-256.

    Returns:
        The manifest.

    Raises:
        CheckpointDamaged: Names the first file that is missing or differs.
    """
    manifest = read_manifest(directory)
    stranger = next((name for name in relative_files(directory) if name not in manifest["files"]), None)
    if stranger is not None:
        raise CheckpointDamaged(f"{directory / stranger}: is not in the manifest")
    for name, entry in manifest["files"].items():
        file = directory / name
        if not file.is_file():
            raise CheckpointDamaged(f"{file}: is missing")
        if file.stat().st_size != entry["bytes"]:
            raise CheckpointDamaged(f"{file}: has {file.stat().st_size} bytes, not {entry['bytes']}")
        if describe_file(directory, name)["sha256"] != entry["sha256"]:
            raise CheckpointDamaged(f"{file}: its content changed (SHA-256 differs)")
    return manifest


def newest_complete(run: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    skipped: list[str] = []
    for directory in candidates(run):
        try:
            verify(directory)
            return directory, skipped
        except CheckpointDamaged as damage:
            skipped.append(str(damage))
    return None, skipped


def refuse_no_checkpoint(path: str | os.PathLike[str]) -> None:
    """Refuses at a glance what `locate` can find nothing in; reads no checkpoint.

    Raises:
        UserError: It is no directory, or neither a checkpoint nor a run that has one.
    """
    given = Path(path)
    if not given.is_dir():
        raise UserError(f"{given}: is no directory: give a run or one of its checkpoints")
    if not _NAME.fullmatch(given.name) and not candidates(RunDirectory(given)):
        raise UserError(f"{given}: holds no complete checkpoint: give a run that has saved one")


def refuse_full(out: str | os.PathLike[str]) -> None:
    """Refuses a place for an export that holds something.

    Raises:
        UserError: It does.
    """
    target = Path(out)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise UserError(f"--out {target}: exists and is not empty: choose another directory")


def locate(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that a user means by a run directory (its newest complete one) or a checkpoint directory.

    Raises:
        UserError: There is none.
        CheckpointDamaged: The one that was named does not verify.
    """
    refuse_no_checkpoint(path)
    given = Path(path)
    if _NAME.fullmatch(given.name):
        verify(given)
        return given
    found, skipped = newest_complete(RunDirectory(given))
    if found is None:
        reasons = f" ({'; '.join(skipped)})" if skipped else ""
        raise UserError(f"{given}: holds no complete checkpoint{reasons}: give a run that has saved one")
    return found


def read_state(directory: Path) -> dict[str, Any]:
    """state.json of a verified checkpoint."""
    return json.loads((directory / "state.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def delete_old(run: RunDirectory, newest: int, settings: CheckpointConfig) -> list[Path]:
    """Deletes the checkpoints that the settings do not keep. To be called after step `newest` is complete.

    Kept are the last `keep_last` up to `newest`, those of every `keep_interval` steps, and the first of every
    `keep_hours`. A directory of a later step belongs to a future that was given up (it was found damaged, or an
    earlier checkpoint was asked for); it is deleted, since it would be mistaken for this run's.

    Returns:
        What was deleted.
    """
    complete: list[tuple[Path, float]] = []
    deleted: list[Path] = []
    for directory in candidates(run):
        try:
            manifest = read_manifest(directory)
        except CheckpointDamaged:
            deleted.append(directory)
            continue
        if step_of(directory) <= newest:
            complete.append((directory, float(manifest["time"])))
        else:
            deleted.append(directory)
    first_of_period: dict[int, Path] = {}
    for directory, saved in complete:  # newest first, so the earliest of a period stays
        if settings.keep_hours:
            first_of_period[int(saved / (3600 * settings.keep_hours))] = directory
    for directory, _ in complete[settings.keep_last :]:
        regular = settings.keep_interval and step_of(directory) % settings.keep_interval == 0
        if not regular and directory not in first_of_period.values():
            deleted.append(directory)
    for path in deleted:
        # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.partial")), ignore_errors=True)
    return deleted


def delete_partial(run: RunDirectory) -> None:
    """Deletes what earlier lives did not finish writing, or deleting."""
    for path in run.checkpoints.iterdir():
        if path.is_dir() and path.name.endswith(".partial"):
            shutil.rmtree(path, ignore_errors=True)
