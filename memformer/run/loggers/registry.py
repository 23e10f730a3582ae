# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The services by name, and `Loggers`, those of a run: one that fails is given up with a warning, the run goes on."""

import importlib
import importlib.util
import json
import logging
import secrets
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from memformer.run import exit_codes
from memformer.run.directory import RunDirectory, write_atomically
from memformer.run.loggers.protocol import Ended, LoggedRun, Logger

LOG = logging.getLogger("memformer")

SERVICES = {
    "wandb": ("wandb", "to_wandb", "WandbLogger"),
    "mlflow": ("mlflow", "to_mlflow", "MlflowLogger"),
    "trackio": ("trackio", "to_trackio", "TrackioLogger"),
    "prometheus": ("prometheus_client", "to_prometheus", "PrometheusLogger"),
}
"""Name in `loggers` -> package that it needs, module here, class."""


def refuse_missing(names: Sequence[str]) -> None:
    """Refuses services whose package is not there, before a run begins.

    Raises:
        UserError: So it is.
    """
    for name in names:
        if importlib.util.find_spec(SERVICES[name][0]) is None:
            raise UserError(
                f"loggers: {name} needs the package {SERVICES[name][0]}: pip install 'memformer-train[{name}]', or "
                "leave it out"
            )


class Loggers:
    """A run's services; a context manager that tells them how the run has ended.

    Args:
        run: The run's directory, which keeps the identifier that all its lives share.
        names: Of the services; none on processes that write nothing.
        settings: What they are told of the run.
        reached: Steps that earlier lives got to; those up to it are trained again, and not told again.
    """

    def __init__(
        self,
        run: RunDirectory,
        names: Sequence[str],
        settings: Callable[[], Mapping[str, Any]],
        reached: int,
    ) -> None:
        self._reached = reached
        self._how: Ended = "failed"
        self._open: dict[str, Logger] = {}
        identifier = _identifier(run) if names else None
        if identifier is None:
            return
        told = settings()
        for name in names:
            _, module, kind = SERVICES[name]
            logged = LoggedRun(run.root.resolve().name, identifier, run.loggers / name, told)

            def make(module: str = module, kind: str = kind, logged: LoggedRun = logged) -> Logger:
                made: Logger = getattr(importlib.import_module(f"memformer.run.loggers.{module}"), kind)(logged)
                return made

            made = self._tried(name, make)
            if made is not None:
                self._open[name] = made

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        how: Ended = "failed" if kind is not None else self._how
        for name, each in list(self._open.items()):
            self._tried(name, lambda each=each: each.close(how))  # type: ignore[misc]

    def ended(self, exit_code: int) -> None:
        """How the run leaves, by its exit code."""
        interrupted = (exit_codes.SAVED, exit_codes.INTERRUPTED)
        self._how = "finished" if exit_code == exit_codes.DONE else "stopped" if exit_code in interrupted else "failed"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers of a step by tag."""
        if step <= self._reached:
            return
        for name, each in list(self._open.items()):
            self._tried(name, lambda each=each: each.scalars(step, values))  # type: ignore[misc]

    def _tried(self, name: str, act: Callable[[], Any]) -> Any:
        """What it gives; None, with a warning and the end of this service, where it fails."""
        try:
            return act()
        except Exception as error:  # whatever a service's package raises
            self._open.pop(name, None)
            LOG.warning("loggers: %s failed (%s: %s): the run goes on without it", name, type(error).__name__, error)
            return None


def _identifier(run: RunDirectory) -> str | None:
    """The run's name for services, the same in all its lives; None, with a warning, where it is not known."""
    file = run.loggers / "run.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["id"]
        if not isinstance(found, str) or not found.isalnum():
            raise ValueError("no id in it")
    except FileNotFoundError:
        return _named(run, file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        LOG.warning(
            "%s: cannot be read (%s), so that this run's name at the services is not known and they are told nothing: "
            "mend it, or delete it for a new name",
            file,
            error,
        )
        return None
    return str(found)


def _named(run: RunDirectory, file: Path) -> str | None:
    identifier = secrets.token_hex(8)
    try:
        run.loggers.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"id": identifier}) + "\n")
    except OSError as error:
        LOG.warning("%s: cannot be written (%s): the services are told nothing", file, error.strerror)
        return None
    return identifier
