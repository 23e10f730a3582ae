# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The services by name, and `Loggers`, those of a run: one that fails is given up with a warning, the run goes on.

So is one that does not come to an end: when the run ends, nobody watches it any more, and a server that is away would
keep its processes for ever.
"""

import atexit
import importlib
import importlib.util
import json
import logging
import secrets
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from memformer.run import exit_codes
from memformer.run.directory import RunDirectory, write_atomically
from memformer.run.grace import Grace
from memformer.run.loggers.protocol import Ended, LoggedRun, Logger

LOG = logging.getLogger("memformer")
CLOSING_SECONDS = 60.0
"""How long a run that has ended waits for its services, all of them together."""

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
        grace: How long the run may wait once it is asked to stop.
    """

    def __init__(
        self,
        run: RunDirectory,
        names: Sequence[str],
        settings: Callable[[], Mapping[str, Any]],
        reached: int,
        grace: Grace,
    ) -> None:
        self._reached, self._grace = reached, grace
        self._how: Ended = "failed"
        self._open: dict[str, Logger] = {}
        self._exit_handlers: dict[str, list[Callable[..., Any]]] = {}
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

            with _exit_handlers() as self._exit_handlers[name]:
                made = self._tried(name, make)
            if made is not None:
                self._open[name] = made

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        how: Ended = "failed" if kind is not None else self._how
        deadline = time.monotonic() + min(CLOSING_SECONDS, self._grace.left())
        closings = {name: _Closing(name, each, how) for name, each in self._open.items()}
        for name, closing in closings.items():
            closing.join(max(0.0, deadline - time.monotonic()))
            if closing.is_alive():
                self._give_up(name, "has not come to its end in time", "what it lacks is in metrics.jsonl")
            elif closing.error is not None:
                self._give_up(name, _words(closing.error))

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
            self._give_up(name, _words(error))
            return None

    def _give_up(self, name: str, why: str, then: str = "the run goes on without it") -> None:
        """Says so; what the service wants to do at the end of the process is not waited for either."""
        self._open.pop(name, None)
        for handler in self._exit_handlers[name]:
            atexit.unregister(handler)
        LOG.warning("loggers: %s %s: %s", name, why, then)


def _words(error: Exception) -> str:
    return f"failed ({type(error).__name__}: {error})"


class _Closing(threading.Thread):
    """Tells a service that the life is over, in a thread that holds no process back."""

    def __init__(self, name: str, service: Logger, how: Ended) -> None:
        super().__init__(name=f"closing {name}", daemon=True)
        self._service, self._how = service, how
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Closes it."""
        try:
            self._service.close(self._how)
        except Exception as error:  # whatever a service's package raises
            self.error = error


@contextmanager
def _exit_handlers() -> Iterator[list[Callable[..., Any]]]:
    """What is registered meanwhile for the end of the process.

    wandb's handler waits for its service without a limit; where that does not answer, the handler has to be taken back.
    """
    noted: list[Callable[..., Any]] = []
    register = atexit.register

    def note(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        noted.append(function)
        return register(function, *arguments, **keywords)

    atexit.register = note  # type: ignore[assignment]
    try:
        yield noted
    finally:
        atexit.register = register


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
