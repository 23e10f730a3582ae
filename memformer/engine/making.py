# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make_engine`: the engine that a run's settings ask for."""

from memformer.config.schema import Config
from memformer.engine.base import Engine
from memformer.engine.pipeline_engine import PipelineReplayEngine
from memformer.engine.replay_engine import ReplayEngine
from memformer.engine.segment_engine import SegmentReplayEngine
from memformer.models.protocol import MemoryModel
from memformer.processes.group import World


def make_engine(model: MemoryModel, config: Config, world: World, precision: str) -> Engine:
    """Puts a model into the engine that trains it, over as many stages as the processes are arranged in.

    Args:
        model: A module on any device, equal on all processes; or what `training.initial_weights` leaves this process
            of it. It is taken apart.
        config: The run.
        world: This process among all, arranged as `parallel` has it.
        precision: fp32, bf16 or fp16 (resolved).
    """
    made: type[Engine] = ReplayEngine
    if world.mesh.pipe.size > 1:
        made = PipelineReplayEngine
    elif world.mesh.segment.size > 1:
        made = SegmentReplayEngine
    return made(model, config, world, precision)
