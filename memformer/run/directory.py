# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`RunDirectory`: where a run's files lie, and how its metrics and events are written.

RUN/config.yaml  deepspeed.json  metrics.jsonl  events.jsonl  logs/  tensorboard/  audit/  checkpoints/
heartbeats/  hangs/  profile/  loggers/  lock/  mirror.json
"""

import datetime
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from memformer.run.appending import Appender

TIMING_FIELDS = frozenset({"step_seconds", "data_seconds", "tokens_per_second", "peak_memory_bytes", "mfu", "hfu"})
"""Fields of metrics.jsonl that depend on the machine's speed; all others are equal when a run is repeated."""


class RunDirectory:
    """The paths of a run."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.deepspeed = self.root / "deepspeed.json"
        self.metrics = self.root / "metrics.jsonl"
        self.events = self.root / "events.jsonl"
        self.logs = self.root / "logs"
        self.tensorboard = self.root / "tensorboard"
        self.audit = self.root / "audit"
        self.checkpoints = self.root / "checkpoints"
        self.heartbeats = self.root / "heartbeats"
        self.hangs = self.root / "hangs"
        self.profile = self.root / "profile"
        self.compiled = self.root / "compiled"
        self.loggers = self.root / "loggers"
        self.lock = self.root / "lock"
        self.mirror = self.root / "mirror.json"
        self.stop_file = self.root / "stop"
        # Not kept open: other processes of the run write there as well, and other machines are to see it at once.
        self._events = Appender(self.events, keep_open=False)

    def create(self) -> None:
        """Makes the directory.

        Raises:
            UserError: It cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {self.root} cannot be made ({error.strerror}): choose another") from None

    def refuse_unwritable(self) -> None:
        """Refuses, before anything is made, a directory in which nothing can be.

        Raises:
            UserError: It cannot be written, or not be made.
        """
        place = next(each for each in (self.root, *self.root.absolute().parents) if os.path.lexists(each))
        if not place.is_dir():
            raise UserError(f"run_dir: {self.root} cannot be made ({place} is no directory): choose another")
        if not os.access(place, os.W_OK | os.X_OK):
            what = "written" if place == self.root else f"made: {place} cannot be written"
            raise UserError(f"run_dir: {self.root} cannot be {what}: mend its permissions, or choose another")

    def event(self, kind: str, **details: Any) -> None:
        """Appends one line to events.jsonl: time (UTC), event, and its details; a full disk ends no run."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps(json_ready({"time": now, "event": kind, **details})) + "\n"
        self._events.append(line.encode())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file by one with this content, or leaves it as it was: synced, then renamed. The umask is kept.

    Args:
        path: The file.
        content: Bytes, or text that is written as UTF-8.
    """
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:  # not mkstemp's, which only its owner may read
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_taken(path: Path) -> None:
    """Refuses a place for a new file where there is something, or where `write_atomically` could make none.

    Raises:
        UserError: So it is.
    """
    if os.path.lexists(path):
        raise UserError(f"{path}: exists: choose another file, or remove it")
    if not os.path.isdir(path.parent):
        raise UserError(f"{path}: there is no directory {path.parent}: make it, or choose another file")
    try:
        _beside(path).lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long, here or with what is put to it until it is written whole
        raise UserError(f"{path}: cannot be written ({error.strerror}): choose another file") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {path.parent} cannot be written: mend its permissions, or choose another file")


def _beside(path: Path) -> Path:
    """Where a file is written before it is renamed."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def json_ready(value: Any) -> Any:
    """The value with non-finite numbers as null, which JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: json_ready(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(each) for each in value]
    return value
