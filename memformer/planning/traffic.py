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

from collections import Counter

from memformer.config.schema import Config
from memformer.engine.precision import AUTOCAST
from memformer.models.memformer import MemformerConfig
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.traffic import sent_by_stage
from memformer.planning.segment_trace import SegmentTrace, Shape

SUB_GROUP = 10**9  # elements of the groups in which ZeRO-3 takes the norm


def data_traffic(
    config: Config, precision: str, parameters: Counter[Shape], replicas: int, groups: int
) -> Counter[str]:
    """Bytes over the data-parallel axis by kind.

    Args:
        config: The run.
        precision: Resolved.
        parameters: What the process has of the model.
        replicas: Data-parallel processes.
        groups: Groups of lanes that are replayed one after another.
    """
    stage, sent = config.parallel.zero_stage, Counter[str]()
    segments = config.data.num_segments * groups if config.training.replay == "mrbp" else groups
    times = segments if config.parallel.gradient_reduction == "segment" else 1
    if stage == 0:
        sent["all_reduce"] = 4 * _numel(parameters)
    elif stage < 3:
        reduced = sum(count * shape.numel * _width(shape, precision) for shape, count in parameters.items())
        sent["all_reduce"] = reduced * (times if stage == 2 else 1) + _norms(stage, parameters, replicas)
        sizes = [_numel(parameters, decayed) for decayed in (True, False)]
        sent["all_gather"] = sum(4 * _padded(size, 2 * replicas) for size in sizes)
    else:
        padded = sum(
            count * _padded(shape.numel, replicas) * _width(shape, precision) for shape, count in parameters.items()
        )
        gathers = 1 if config.parallel.zero3_gather == "rollout" else 3 * segments
        sent["reduce_scatter"], sent["all_gather"] = padded * times, padded * gathers
        sent["all_reduce"] = _norms(stage, parameters, replicas)
    if replicas == 1:
        del sent["all_gather"]  # the other calls are made, and go nowhere
    return sent


def replica_traffic(
    config: Config, model: MemformerConfig, parameters: Counter[Shape], replicas: int, lanes: int
) -> Counter[str]:
    """Bytes over all processes that hold a replica together: the norm; with stages, losses and the last memory.

    Args:
        config: The run.
        model: Its model.
        parameters: What the process has of the model.
        replicas: Data-parallel processes.
        lanes: Of the replica.
    """
    parallel, sent = config.parallel, Counter[str]()
    if parallel.tensor * parallel.pipeline > 1:
        sent["all_reduce"] = _norms(parallel.zero_stage, parameters, replicas)
    if parallel.pipeline > 1:
        sent["all_reduce"] += 4 * (2 * config.data.num_segments - 1)
        sent["broadcast"] = 4 * lanes * model.num_memory_slots * model.d_model
    return sent


def tensor_traffic(config: Config, trace: SegmentTrace, groups: int) -> Counter[str]:
    """Bytes over the tensor-parallel axis by kind: layers, writer, embedding and loss of one rollout."""
    sent: Counter[str] = Counter()
    advances = (config.data.num_segments - 1) * groups if config.training.replay == "mrbp" else 0
    for kinds, times in ((trace.advance, advances), (trace.replay, config.data.num_segments * groups)):
        for kind, size in kinds.items():
            sent[kind.removesuffix("_into_tensor")] += size * times
    return sent


def pipeline_traffic(
    model: MemformerConfig, schedule: ReplaySchedule, lanes: int, segment_length: int, embedding: int
) -> list[Counter[str]]:
    """Bytes that each stage sends to others by kind of message, float32.

    Args:
        model: The model.
        schedule: Of the rollout.
        lanes: Of one micro-batch.
        segment_length: S.
        embedding: Elements of the token embedding that a process has; it goes to the stages with a copy of it.
    """
    groups = [lanes] * schedule.layout.micro_batches
    sent = sent_by_stage(schedule, model, segment_length, groups, embedding)
    return [Counter({kind: size for kind, (_, size) in stage.items()}) for stage in sent]


def _width(shape: Shape, precision: str) -> int:
    return 2 if shape.low_precision and precision in AUTOCAST else 4


def _norms(stage: int, parameters: Counter[Shape], replicas: int) -> int:
    """Bytes of the gradient norm's sums over one axis: a number for each of the optimizer's groups."""
    sizes = [_numel(parameters, decayed) for decayed in (True, False)]
    if stage == 3:
        return 8 * sum(-(-size // (SUB_GROUP * replicas)) for size in sizes)
    return 4 * sum(size > 0 for size in sizes) if stage else 4


def _numel(parameters: Counter[Shape], decayed: bool | None = None) -> int:
    return sum(
        shape.numel * count for shape, count in parameters.items() if decayed is None or shape.decayed == decayed
    )


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
