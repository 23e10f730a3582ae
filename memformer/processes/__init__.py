# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The processes of a run: how they meet, who they are to each other, what they say to each other."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.processes.group import World, initialise

__all__ = [
    "World",
    "initialise",
]

__getattr__ = face(
    __name__,
    {
        "World": "group",
        "initialise": "group",
    },
)
