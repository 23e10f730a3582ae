# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Turns a plain model into a distributed one, in one fixed order.

    tensor parallel -> pipeline split -> activation checkpointing -> compile -> optimizer -> DeepSpeed engine (ZeRO 0-3)

The model knows nothing of any of it.
"""

from typing import Any

import torch

from memformer.activation_checkpointing import checkpoint_layers
from memformer.config import Config
from memformer.deepspeed_config import deepspeed_config
from memformer.distributed import World
from memformer.model import Memformer
from memformer.optimizer import make_optimizer
from memformer.pipeline.channels import Channels
from memformer.pipeline.split import split_of
from memformer.pipeline.stage import StageModel
from memformer.tensor_parallel import leave_uncompiled, shard_model


def parallelize(model: Memformer, config: Config, world: World, precision: str) -> Any:
    """The DeepSpeed engine that trains `model`, on the process's device.

    Args:
        model: On any device; its parameters must be equal on all processes (same seed).
        config: The run.
        world: This process among all.
        precision: fp32, bf16 or fp16 (resolved).
    """
    shard_model(model, world.mesh.tensor)
    model.to(world.device)
    if world.mesh.pipe.size > 1:
        model = stage_of(model, config, world)
    checkpoint_layers(model, config, world)
    if config.compile:
        compile_layers(model)
    optimizer_device = world.device if config.parallel.offload_optimizer == "none" else torch.device("cpu")
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, config.optimizer, optimizer_device),
        config=deepspeed_config(config, world.mesh.data.size, precision),
        mpu=world.mesh.mpu,
    )
    # The loss scale is ours (memformer/precision.py). DeepSpeed makes others under float16 autocast and, since it keeps
    # that setting in a global, for any later engine of this process too.
    engine.torch_autocast_z0_gradscaler = None
    if config.parallel.zero_stage:
        engine.optimizer.torch_autocast_gradscaler = None
    return engine


def stage_of(model: Memformer, config: Config, world: World) -> StageModel:
    """This process's part of the model; what belongs to other stages is not kept."""
    split = split_of(config, model.config)
    channels = Channels(world.mesh, world.device, next(model.parameters()).dtype)
    return StageModel(model, split, world.mesh.pipe.rank, channels)


def compile_layers(model: Memformer) -> None:
    """torch.compile of each layer: all layers of a stack share one graph, and ZeRO's hooks stay outside it.

    Under tensor parallelism a layer's graph breaks where the processes talk.
    """
    if model.config.dropout:
        import torch._inductor.config

        # The replay must redraw the masks of the first pass; compiled random numbers differ between the graph with
        # gradients and the one without.
        torch._inductor.config.fallback_random = True
    leave_uncompiled()
    for layer in (*model.encoder, *model.decoder):
        layer.compile()
