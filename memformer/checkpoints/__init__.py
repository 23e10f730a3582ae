# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Checkpoints: saved, found, loaded on any topology, exported."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.checkpoints.exporting import export
    from memformer.checkpoints.saving import Saver
    from memformer.checkpoints.state import find, load

__all__ = [
    "Saver",
    "export",
    "find",
    "load",
]

__getattr__ = face(
    __name__,
    {
        "Saver": "saving",
        "export": "exporting",
        "find": "state",
        "load": "state",
    },
)
