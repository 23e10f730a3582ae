# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The bytes that a process gives to collectives and messages in one optimizer step.

Counted is the payload of each call, as a test counts them in real processes. What DeepSpeed 0.19.8 sends:

| stage | gradients | parameters | norm |
|---|---|---|---|
| 0 | all_reduce, float32 | | |
| 1, 2 | all_reduce, linear layers in 16 bits under autocast | all_gather of each group, float32, padded | 4 B a group |
| 3 | reduce_scatter, the same, each parameter padded | all_gather, the same; once a rollout | 8 B a group |

Left out: ZeRO-3's comparison of its traces (broadcasts of some kB whatever the width), and what the trainer agrees on
after a step (under 1 kB). With `zero3_gather: segment` the parameters are gathered for each use; how often depends on
what DeepSpeed prefetches and keeps, so that the figure is an upper bound.
"""

import math
from collections import Counter

from memformer.config.schema import Config
from memformer.engine.precision import AUTOCAST
from memformer.models.configuration import ModelConfig
from memformer.parallel.pipeline.traffic import sent_by_stage
from memformer.planning.arrangement import Arrangement, arrange
from memformer.planning.segment_trace import Shape

SUB_GROUP = 10**9  # elements of the groups in which ZeRO-3 takes the norm


def traffic_by_stage(config: Config, model: ModelConfig, world: int) -> list[dict[str, Counter[str]]]:
    """What a process of each stage gives to the calls of one optimizer step, by axis and kind: all that are made.

    Raises:
        UserError: The sizes do not divide, or the model's family is not built for the settings.
    """
    run = arrange(config, model, world)
    return [stage_traffic(run, stage) for stage in range(run.stages)]


def stage_traffic(run: Arrangement, stage: int) -> dict[str, Counter[str]]:
    """Bytes by axis and kind, of a process of the stage."""
    parameters = run.parameters(stage)
    return {
        "data": _data(run, parameters),
        "tensor": _tensor(run, stage),
        "replica": _replica(run, parameters),
        "pipeline": _pipeline(run, stage),
    }


def _data(run: Arrangement, parameters: Counter[Shape]) -> Counter[str]:
    """Over the data-parallel axis, for a process that has these parameters."""
    config, precision, replicas = run.config, run.precision, run.replicas
    stage, sent = config.parallel.zero_stage, Counter[str]()
    segments = config.data.most_segments * run.groups if config.training.replay == "mrbp" else run.groups
    times = segments if config.parallel.gradient_reduction == "segment" else 1
    if stage == 0:
        sent["all_reduce"] = 4 * sum(_groups(parameters))
    elif stage < 3:
        reduced = sum(
            count * shape.numel * _width(shape, precision) for shape, count in parameters.items() if shape.trained
        )
        sent["all_reduce"] = reduced * (times if stage == 2 else 1) + _norms(stage, parameters, replicas)
        sent["all_gather"] = sum(4 * _padded(size, 2 * replicas) for size in _groups(parameters))
    else:
        padded, trained = (
            sum(
                count * _padded(shape.numel, replicas) * _width(shape, precision)
                for shape, count in parameters.items()
                if shape.trained or not only
            )
            for only in (False, True)
        )
        # Each advance, forward, recomputation and backward uses the parameters once.
        uses = run.groups * (run.advances + (2 + run.execution.recompute) * config.data.most_segments)
        gathers = 1 if config.parallel.zero3_gather == "rollout" else uses
        sent["reduce_scatter"], sent["all_gather"] = trained * times, padded * gathers
        sent["all_reduce"] = _norms(stage, parameters, replicas)
    if replicas == 1:
        del sent["all_gather"]  # the other calls are made, and go nowhere
    return sent


def _replica(run: Arrangement, parameters: Counter[Shape]) -> Counter[str]:
    """Over all processes that hold a replica together: the norm; with stages, losses and the last memory."""
    parallel, sent = run.config.parallel, Counter[str]()
    if parallel.tensor * parallel.pipeline > 1:
        sent["all_reduce"] = _norms(parallel.zero_stage, parameters, run.replicas)
    if parallel.pipeline > 1:
        sent["all_reduce"] += 4 * (2 * run.config.data.most_segments - 1)
        sent["broadcast"] = 4 * run.replica_lanes * math.prod(run.model.memory_shape)
    return sent


def _tensor(run: Arrangement, stage: int) -> Counter[str]:
    """Over the tensor-parallel axis: layers, writer, embedding and loss of one rollout."""
    trace, data, sent = run.segment(stage), run.config.data, Counter[str]()
    for kinds, times in ((trace.advance, run.advances * run.groups), (trace.replay, data.most_segments * run.groups)):
        for kind, size in kinds.items():
            sent[kind.removesuffix("_into_tensor")] += size * times
    if run.advances and run.config.activation_checkpointing.partition_activations:
        # Each memory but the last segment's is put together once, whether it was kept or computed again.
        fetched = (data.most_segments - 1) * run.groups * run.lanes
        sent["all_gather"] += 4 * fetched * math.prod(run.model.memory_shape)
    return sent


def _pipeline(run: Arrangement, stage: int) -> Counter[str]:
    """To other stages by kind of message, float32."""
    if run.schedule is None:
        return Counter()
    lanes = [run.lanes] * run.schedule.layout.micro_batches
    sent = sent_by_stage(run.schedule, run.config.model, run.config.data.segment_length, lanes, run.embedding)
    return Counter({kind: size for kind, (_, size) in sent[stage].items()})


def _width(shape: Shape, precision: str) -> int:
    return 2 if shape.low_precision and precision in AUTOCAST else 4


def _norms(stage: int, parameters: Counter[Shape], replicas: int) -> int:
    """Bytes of the gradient norm's sums over one axis: a number for each of the optimizer's groups."""
    sizes = _groups(parameters)
    if stage == 3:
        return 8 * sum(-(-size // (SUB_GROUP * replicas)) for size in sizes)
    return 4 * len(sizes) if stage else 4


def _groups(parameters: Counter[Shape]) -> list[int]:
    """Elements of each of the optimizer's groups."""
    sizes = Counter[int]()
    for shape, count in parameters.items():
        if shape.trained:
            sizes[shape.group] += shape.numel * count
    return list(sizes.values())


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
