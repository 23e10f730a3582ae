# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The model in a DeepSpeed engine, trained by whole rollouts."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.engine.pipeline_engine import PipelineReplayEngine
    from memformer.engine.replay_engine import ReplayEngine

__all__ = [
    "PipelineReplayEngine",
    "ReplayEngine",
]

__getattr__ = face(
    __name__,
    {
        "PipelineReplayEngine": "pipeline_engine",
        "ReplayEngine": "replay_engine",
    },
)
