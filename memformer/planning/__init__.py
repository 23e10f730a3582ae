# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer plan`: what a run will cost in memory, traffic and time, before a GPU is asked for."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.planning.cost_model import Plan, make_plan

__all__ = [
    "Plan",
    "make_plan",
]

__getattr__ = face(
    __name__,
    {
        "Plan": "cost_model",
        "make_plan": "cost_model",
    },
)
