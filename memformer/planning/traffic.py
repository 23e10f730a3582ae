# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The bytes that a process gives to collectives and messages in one optimizer step.

Counted is the payload of each call, as a test counts them in real processes. Of a payload of N bytes in a ring of p
processes each sends (p-1)/p N for a reduce_scatter or an all_gather, twice that for an all_reduce. At stages 1 and 2
memformer/engine/partitions.py sends, at stages 0 and 3 DeepSpeed 0.19.8:

| stage | gradients | parameters | norm |
|---|---|---|---|
| 0 | all_reduce, float32 | | |
| 1, 2 | reduce_scatter, each group padded; of linear layers 16 bits under autocast | all_gather, the same | 4 B |
| 3 | reduce_scatter, each parameter padded; the same | all_gather, the same; once a rollout | 8 B a group |

The weights that stages 1 and 2 gather in 16 bits are those that are only multiplied (memformer/engine/sent.py). With
`gradient_reduction: segment`, stages 1 and 2 leave gradients to DeepSpeed, which sends them by all_reduce, and 4 B
a group for the norm.

Muon's matrices go to their owners and back (memformer/engine/matrix_exchange.py), in 16 bits where products are: from
stage 1 on over all processes of a pipeline stage, counted as data; at stage 0 over those of a layer. A process gives
what is counted here on average: the owner of a large matrix sends more. What tensor parallelism does not cut goes but
once to its owner, and is counted as if every process sent it.

Left out: what the trainer agrees on after a step (under 1 kB). With `zero3_gather: segment` the parameters are gathered
for each use; how often depends on what DeepSpeed prefetches and keeps, so that the figure is an upper bound; and it
compares its traces in broadcasts of some kB, whatever the width, which are left out too; so are the inputs of
recomputed layers that `partition_activations` has put together again.
"""

import math
from collections import Counter
from typing import NamedTuple

from memformer.config.schema import Config
from memformer.engine.partitions import reduced_at_the_end
from memformer.engine.precision import AUTOCAST
from memformer.models.configuration import ModelConfig
from memformer.parallel.pipeline.traffic import Traffic, sent_by_stage
from memformer.parallel.segment.schedule import MEMORY
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
    return {
        "data": _data(run, stage),
        "tensor": _tensor(run, stage),
        "replica": _replica(run, run.parameters(stage)),
        "pipeline": _pipeline(run, stage),
        "segment": _seams(run),
    }


def stage_calls(run: Arrangement, stage: int) -> dict[str, Counter[str]]:
    """How many collectives and messages a process of the stage makes for its segments, by axis and kind.

    Of segment ranks those of the rank or of the chain of a memory and its gradient, whichever are more: a rank waits
    for all before it. The data axis's, a few a step while parameters are gathered for a rollout, are left out.
    """
    trace, tensor = run.segment(stage), Counter[str]()
    for kinds, times in ((trace.advance_calls, run.advances), (trace.replay_calls, run.segments)):
        for kind, calls in kinds.items():
            tensor[kind.removesuffix("_into_tensor")] += calls * times * run.groups
    seams = max(len(run.shared.outgoing(0)), 2 * (run.ranks - 1)) if run.shared else 0
    return {
        "tensor": tensor,
        "pipeline": Counter({kind: calls for kind, (calls, _) in _messages(run, stage).items()}),
        "segment": Counter({MEMORY: seams}),
    }


def _data(run: Arrangement, stage: int) -> Counter[str]:
    """Over all replicas, which gradients are averaged over, for a process of the stage."""
    config, precision, replicas = run.config, run.precision, run.gradient_ranks
    zero_stage, parameters, sent = config.parallel.zero_stage, run.parameters(stage), Counter[str]()
    segments, by_segment = run.segments, config.parallel.gradient_reduction == "segment"
    passes = 2 + run.execution.recompute  # each advance, forward, recomputation and backward uses a parameter once
    # Parameters, how often they are reduced by segment, and how often they are used.
    parts = [(parameters, run.backwards * run.groups, (run.advances + passes * segments) * run.groups)]
    if run.decoder_batch > 1:  # its layers are used less often than all else
        decoder = run.decoder(stage, rest=False).parameters
        parts = [
            (parameters - decoder, *parts[0][1:]),
            (decoder, run.decoders * run.groups, passes * run.decoders * run.groups),
        ]

    def payload(parameters: Counter[Shape], only_trained: bool, multiple: int = 1) -> int:
        return sum(
            count * _padded(shape.numel, multiple) * _width(shape, precision)
            for shape, count in parameters.items()
            if shape.trained or not only_trained
        )

    if zero_stage == 0:
        sent["all_reduce"] = 4 * sum(groups(run, parameters).values())
    elif zero_stage < 3:
        padded = [(group, _padded(size, 2 * replicas)) for group, size in groups(run, parameters).items()]
        if reduced_at_the_end(config):
            sent["reduce_scatter"] = sum(group.gradients * size for group, size in padded)
        else:
            several = by_segment and zero_stage == 2
            sent["all_reduce"] = sum(payload(part, True) * (times if several else 1) for part, times, _ in parts)
        sent["all_reduce"] += _norms(run, parameters)
        sent["all_gather"] = sum(group.weights * size for group, size in padded)
    else:
        for part, times, uses in parts:
            sent["reduce_scatter"] += payload(part, True, replicas) * (times if by_segment else 1)
            sent["all_gather"] += payload(part, False, replicas) * (
                1 if config.parallel.zero3_gather == "rollout" else uses
            )
        if replicas > 1 or config.parallel.offload_optimizer != "none":  # else `engine.zero.group_norms`, with nobody
            sent["all_reduce"] = _norms(run, parameters)
    if replicas == 1:
        del sent["all_gather"]  # DeepSpeed makes its other calls, and they go nowhere
        if zero_stage and reduced_at_the_end(config):
            return Counter(_matrices(run, parameters))
    return sent + (_matrices(run, parameters) if zero_stage else Counter())


def _matrices(run: Arrangement, parameters: Counter[Shape]) -> Counter[str]:
    """Muon's, on the way to their owners and back."""
    ranks = run.gradient_ranks if run.config.parallel.zero_stage else 1
    if ranks * run.config.parallel.tensor == 1:
        return Counter()
    numbers = sum(shape.numel * count for shape, count in parameters.items() if shape.muon)
    return Counter(all_to_all=2 * (2 if run.precision in AUTOCAST else 4) * numbers // ranks)


def _replica(run: Arrangement, parameters: Counter[Shape]) -> Counter[str]:
    """Over all processes that hold a replica together: the norm; with stages, losses and the last memory."""
    parallel, sent = run.config.parallel, Counter[str]()
    if parallel.tensor * parallel.pipeline > 1:
        sent["all_reduce"] = _norms(run, parameters)
    if parallel.pipeline > 1:
        sent["all_reduce"] += 4 * (2 * run.config.data.most_segments - 1)
        sent["broadcast"] = 4 * run.replica_lanes * math.prod(run.model.memory_shape)
    return sent


def _tensor(run: Arrangement, stage: int) -> Counter[str]:
    """Over the tensor-parallel axis: layers, writer, embedding and loss of one rollout."""
    trace, sent = run.segment(stage), Counter[str]()
    for kinds, times in ((trace.advance, run.advances * run.groups), (trace.replay, run.segments * run.groups)):
        for kind, size in kinds.items():
            sent[kind.removesuffix("_into_tensor")] += size * times
    if run.advances and run.config.activation_checkpointing.partition_activations:
        # Each memory but the last is put together once, whether it was kept or computed again: of every segment, or of
        # every group that the decoder takes at once.
        fetched = (run.segments if run.shared else run.decoders - 1) * run.groups * run.lanes
        sent["all_gather"] += 4 * fetched * run.memory_numbers(stage)
    return sent if run.config.parallel.zero_stage else sent + _matrices(run, run.parameters(stage))


def _pipeline(run: Arrangement, stage: int) -> Counter[str]:
    """To other stages by kind of message, float32."""
    return Counter({kind: size for kind, (_, size) in _messages(run, stage).items()})


def _messages(run: Arrangement, stage: int) -> Traffic:
    if run.schedule is None:
        return {}
    lanes = [run.lanes] * run.schedule.layout.micro_batches
    length, embedding = run.config.data.segment_length, run.trained_embedding
    return sent_by_stage(run.schedule, run.config.model, length, lanes, embedding)[stage]


def _seams(run: Arrangement) -> Counter[str]:
    """To other segment ranks, float32, of the first: its seams, and at the end the figures and the last memories."""
    sent = Counter[str]()
    if run.shared is None:
        return sent
    numbers = math.prod(run.model.memory_shape)
    for message in run.shared.outgoing(0):
        sent[message.kind] += 4 * run.shared.lanes[message.group] * numbers
    sent["all_reduce"] = 4 * (2 * run.config.data.most_segments - 1 + run.replica_lanes * numbers)
    return sent


def _width(shape: Shape, precision: str) -> int:
    return 2 if shape.low_precision and precision in AUTOCAST else 4


def _norms(run: Arrangement, parameters: Counter[Shape]) -> int:
    """Bytes of the gradient norm's sums over one axis: one number, or where DeepSpeed sums one for each group.

    With stages as many as that has which has most of them: the others take part.
    """
    stage = run.config.parallel.zero_stage
    if stage == 3:
        return 8 * sum(-(-size // (SUB_GROUP * run.gradient_ranks)) for size in groups(run, parameters).values())
    if stage == 0 or reduced_at_the_end(run.config):
        return 4
    return 4 * max(len(groups(run, run.parameters(each))) for each in range(run.stages))


class Group(NamedTuple):
    """What tells apart the optimizer's groups of parameters, each of which ZeRO 1 and 2 send as one tensor.

    Attributes:
        number: As `parameter_groups` has it where all is sent alike.
        gradients: Bytes in which an element of the gradient is sent.
        weights: Bytes in which an element of the weight is.
    """

    number: int
    gradients: int = 4
    weights: int = 4


def groups(run: Arrangement, parameters: Counter[Shape]) -> Counter[Group]:
    """Elements of each of the optimizer's groups."""
    sizes = Counter[Group]()
    apart = run.config.parallel.zero_stage in (1, 2) and run.precision in AUTOCAST
    for shape, count in parameters.items():
        if shape.trained:
            widths = (4 - 2 * shape.low_precision, 4 - 2 * shape.multiplied) if apart else (4, 4)
            sizes[Group(shape.group, *widths)] += shape.numel * count
    return sizes


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
