# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Logger`: what a service for experiments must be able to do here, and `LoggedRun`, what it is told at first."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Ended = Literal["finished", "stopped", "failed"]
"""finished: all its steps; stopped: asked to, has saved and may go on; failed: anything else."""


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run, as services are told of it.

    Attributes:
        name: For people: the run directory's name.
        identifier: The same in all lives of the run.
        directory: A place in the run directory for the service's own files.
        settings: The configuration, plain values, and what follows from it; without secrets.
    """

    name: str
    identifier: str
    directory: Path
    settings: Mapping[str, Any]


class Logger(Protocol):
    """One service. Made on the main process alone, where a run begins or goes on; whatever it raises is a warning."""

    def __init__(self, run: LoggedRun) -> None:
        """Opens the run, or goes on with it."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers of an optimizer step by tag (`train/loss`); steps never go backward."""

    def close(self, how: Ended) -> None:
        """The life is over. Called in a thread, which is left behind where this takes too long."""
