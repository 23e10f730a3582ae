# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Turns a plain model into a distributed one, in one fixed order.

    layers of the stage -> tensor parallel -> frozen parameters -> stage -> compile -> activation checkpointing
    -> weights side by side (wavefronts) -> optimizer -> DeepSpeed engine (ZeRO 0-3)

The model knows nothing of any of it.
"""

from typing import Any

import torch

from data_pipeline.errors import UserError
from memformer.config.schema import Config
from memformer.engine.compilation import compile_model, why_plain
from memformer.engine.deepspeed_config import deepspeed_config, telling_unfit_values
from memformer.engine.frozen import freeze
from memformer.engine.optimizer import make_optimizer
from memformer.engine.partitions import reduced_at_the_end
from memformer.engine.precision import AUTOCAST
from memformer.models.protocol import MemoryModel
from memformer.models.registry import stages_of, wavefronts_of
from memformer.parallel.activation_checkpointing import checkpoint_layers
from memformer.parallel.pipeline.construction import keep_layers
from memformer.parallel.pipeline.split import split_of
from memformer.parallel.tensor import shard_model
from memformer.processes.environment import local_rank_of
from memformer.processes.group import World


def parallelize(model: MemoryModel, config: Config, world: World, precision: str) -> Any:
    """The DeepSpeed engine that trains `model`, or this process's stage of it, on the process's device.

    Args:
        model: A module on any device; its parameters must be equal on all processes (same seed).
        config: The run.
        world: This process among all.
        precision: fp32, bf16 or fp16 (resolved).
    """
    module: Any = model
    pipe = world.mesh.pipe
    if pipe.size > 1:
        split, stages = split_of(config, module.config), stages_of(module.config)
        keep_layers(module, stages.kind, split.own(pipe.rank, stages.places(module.config)))
    shard_model(module, world.mesh.tensor)
    freeze(module, config.training.train, precision)
    module.to(world.device)
    if pipe.size > 1:
        module = stages.cut(module, split.encoder(pipe.rank), split.decoder(pipe.rank))
    if why_plain(config, world.device) is None:
        compile_model(module, config, world.device)
    checkpoint_layers(module, config, world)
    optimizer_device = world.device if config.parallel.offload_optimizer == "none" else torch.device("cpu")
    import deepspeed

    if config.parallel.zero_stage == 3:
        # A layer's parameters come and go with the layer, and not with each linear map in it: fewer Python hooks, which
        # a GPU waits for, and none inside a compiled layer.
        deepspeed.utils.set_z3_leaf_modules(module, list({type(layer) for layer in module.layers()}))
    # ZeRO 1 and 2 send each of the optimizer's groups as one tensor, so what is sent otherwise is in another.
    sent_in = AUTOCAST.get(precision) if config.parallel.zero_stage in (1, 2) else None
    # Before anything else holds the parameters' storage; ZeRO's flat groups then keep them neighbours.
    neighbours = wavefront_of(module, config).side_by_side() if config.training.wavefront_window else ()
    parts = world.mesh.gradients.size if reduced_at_the_end(config) else 1
    optimizer = make_optimizer(module, config.optimizer, optimizer_device, sent_in, neighbours, parts)
    with telling_unfit_values(config), local_rank_of(world.device):
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(config, world.mesh.gradients.size, precision),
            mpu=world.mesh.mpu,
        )
    # The loss scale is ours (memformer/engine/precision.py). DeepSpeed makes others under float16 autocast and, since
    # it keeps that setting in a global, for any later engine of this process too.
    engine.torch_autocast_z0_gradscaler = None
    if config.parallel.zero_stage:
        engine.optimizer.torch_autocast_gradscaler = None
    return engine


def wavefront_of(model: MemoryModel, config: Config, moved: bool = True) -> Any:
    """What a run with `training.wavefront_window` reads its windows with: a `Wavefront` and `WindowCell`.

    Raises:
        UserError: The model has none.
    """
    recompute = config.activation_checkpointing.mode == "full"
    try:
        return wavefronts_of(model.config).build(model, recompute=recompute, moved=moved)
    except ValueError as error:
        window = config.training.wavefront_window
        raise UserError(f"training.wavefront_window is {window}: {error}: set it to 0") from None
