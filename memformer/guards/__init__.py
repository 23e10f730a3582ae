# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What is watched while a run trains, and what is done about it."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.guards.guards import Guards
    from memformer.guards.watchdog import Watchdog

__all__ = [
    "Guards",
    "Watchdog",
]

__getattr__ = face(
    __name__,
    {
        "Guards": "guards",
        "Watchdog": "watchdog",
    },
)
