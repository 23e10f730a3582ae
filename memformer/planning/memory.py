# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a process holds during a step, by part: each part has a function of its own, with its reason.

Weights, gradients and optimizer states are numbers of 4 bytes, whatever the precision; states may be stored in 2
(`optimizer.state_dtype`). Frozen weights have neither of the others, and 2 bytes where matrices of bf16 runs are stored
so. Left out is what Muon works on, about 1 GiB at a time, since no activations lie beside it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from memformer.engine.partitions import reduced_at_the_end
from memformer.engine.precision import AUTOCAST
from memformer.models.registry import stages_of
from memformer.planning.arrangement import Arrangement
from memformer.planning.segment_trace import ACTIVATIONS, LOGITS, WEIGHT_COPIES
from memformer.planning.traffic import groups

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default `reduce_bucket_size`, elements."""
JOINED = 1.1
"""What segments keep along diagonals by what they keep in turn: their inputs are joined to batches, and kept beside.
Measured: 1.08 to 1.12 (docs/results/cpu-wavefront-training.md)."""
MENDS = {
    "activations": "activation_checkpointing.mode full, or fewer training.lanes_per_micro_batch, or a smaller "
    "training.segments_per_decoder_batch or training.wavefront_window",
    "memories of diagonals": "a smaller training.wavefront_window",
    "gradients of a window": "a training.wavefront_window of all segments of a rollout",
    "decoder batch": "a smaller training.segments_per_decoder_batch",
    "outputs of encoders": "a larger parallel.segment, or fewer lanes (data.num_lanes)",
    "logits": "fewer training.lanes_per_micro_batch, or parallel.tensor",
    "gradients": "parallel.gradient_reduction segment at zero_stage 2 or 3, or parallel.tensor",
    "optimizer states": "a higher parallel.zero_stage, optimizer.state_dtype bfloat16, optimizer.name muon, or "
    "parallel.offload_optimizer cpu",
    "weights": "parallel.tensor, parallel.pipeline, or zero_stage 3",
    "gathered parameters": "parallel.zero3_gather segment",
    "replay buffer": "activation_checkpointing.memory_interval near the square root of data.num_segments, or "
    "activation_checkpointing.cpu_checkpointing",
}
"""What makes a part smaller."""

LESS_TRAFFIC = {
    "data": "it does not grow with the tokens of a step, so give more of them (data.num_lanes, data.num_segments)",
    "tensor": "lower parallel.tensor, and use parallel.zero_stage or parallel.pipeline in its place",
    "pipeline": "lower parallel.pipeline, or parallel.tensor within a node in its place",
    "segment": "lower parallel.segment",
    "replica": "lower parallel.tensor or parallel.pipeline",
}
"""What makes an axis' traffic a smaller part of a step."""


class Part(NamedTuple):
    """One part of what a process holds.

    Attributes:
        name: As the plan prints it.
        size: Bytes.
        on_host: Whether it lies in host memory.
    """

    name: str
    size: float
    on_host: bool = False


def stage_memory(run: Arrangement, stage: int) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes by part on the device and in host memory, of a process of the stage."""
    device: dict[str, float] = {}
    host: dict[str, float] = {}
    for parts in (_weights, _optimizer, _gradients, _buffers, _gathered, _copies, _segments, _memories):
        for part in parts(run, stage):
            (host if part.on_host else device)[part.name] = part.size
    return device, host


def least_memory(run: Arrangement) -> float:
    """Bytes on the device that a process of some stage has whatever its rollouts are, so no more than it really has.

    No schedule is simulated for it, and no segment's activations are looked at.
    """
    parts = (_weights, _optimizer, _gradients, _buffers, _gathered, _copies)
    return max(
        sum(part.size for find in parts for part in find(run, stage) if not part.on_host) for stage in range(run.stages)
    )


def largest(parts: dict[str, float]) -> tuple[str, float, str]:
    """The largest of the parts of `stage_memory`: name, bytes, and what makes it smaller."""
    name, size = max(parts.items(), key=lambda item: item[1])
    return name, size, MENDS.get(name, "parallel.tensor or parallel.pipeline")


def _weights(run: Arrangement, stage: int) -> Iterator[Part]:
    """The weights, whole below ZeRO 3; and those that the optimizer steps, where they are not the same tensors.

    ZeRO 1 and 2 step a flat copy of their part. ZeRO 3 steps the part that it holds, unless that lies elsewhere.
    """
    parallel, share = run.config.parallel, _count(run, stage) / run.gradient_ranks
    stored = _stored(run, stage)
    offloaded, optimizer_offloaded = parallel.offload_parameters == "cpu", _offloads_optimizer(run)
    yield Part("weights", stored / run.gradient_ranks if parallel.zero_stage == 3 else stored, offloaded)
    if parallel.zero_stage in (1, 2) or (parallel.zero_stage == 3 and optimizer_offloaded and not offloaded):
        yield Part("master weights", 4 * share, optimizer_offloaded)


def _optimizer(run: Arrangement, stage: int) -> Iterator[Part]:
    """AdamW's two averages, or Muon's momentum, of the process's part from ZeRO 1 on."""
    numbers = sum(
        (1 if shape.muon else 2) * shape.numel * count
        for shape, count in run.parameters(stage).items()
        if shape.trained
    )
    width = {"float32": 4, "bfloat16": 2}[run.config.optimizer.state_dtype]
    ranks = 1 if run.config.parallel.zero_stage == 0 else run.gradient_ranks
    yield Part("optimizer states", width * numbers / ranks, _offloads_optimizer(run))


def _gradients(run: Arrangement, stage: int) -> Iterator[Part]:
    """Whole until they are reduced, which is after the rollout or after each segment; then a part is kept."""
    parallel, count = run.config.parallel, _count(run, stage)
    share = count / run.gradient_ranks
    whole = parallel.zero_stage < 2 or parallel.gradient_reduction == "rollout"
    yield Part("gradients", 4 * count if whole else 4 * share)
    if run.window and run.backwards * run.groups > 1:  # of all diagonals of a window, before they are added
        yield Part("gradients of a window", 4 * count)
    if parallel.zero_stage >= 2 or reduced_at_the_end(run.config):
        yield Part("gradient partition", 4 * share, _offloads_optimizer(run))


def _buffers(run: Arrangement, stage: int) -> Iterator[Part]:
    """Gradients on their way, of one group at a time, at most `reduce_bucket_size`, and what comes back of them.

    DeepSpeed's own bucket has that size whatever the model's, in fp32, and a 16-bit copy that is sent under autocast.
    The weights on their way back, in 16 bits, come when gradients and activations are gone, and are not counted.
    """
    if not run.config.parallel.zero_stage:
        return
    bucket = run.config.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", REDUCE_BUCKET)
    size: float = bucket * (6 if run.precision in AUTOCAST else 4)
    if reduced_at_the_end(run.config):
        sizes = groups(run, run.parameters(stage)).items()
        size = max((group.gradients * min(bucket, each) for group, each in sizes), default=0)
        size *= 1 + 1 / run.gradient_ranks if run.gradient_ranks > 1 else 0  # one process sends nothing
    yield Part("reduction buffers", size)


def _gathered(run: Arrangement, stage: int) -> Iterator[Part]:
    """What ZeRO 3 gathers, the whole stage for a rollout, or a few layers.

    Linear layers are sent in 16 bits under autocast, and lie in float32 all the same.
    """
    if run.config.parallel.zero_stage < 3:
        return
    size: float = _stored(run, stage)
    if run.config.parallel.zero3_gather == "segment":
        # The layer in use, the one that is fetched ahead, and its gradient.
        size = 3 * size / max(1, sum(run.layers[stage].values()))
    yield Part("gathered parameters", size)


def _copies(run: Arrangement, stage: int) -> Iterator[Part]:
    """The embedding with its gradient, on stages that use the first one's."""
    if run.model.tied() and stage in run.embedding_copies:
        yield Part("copies of the embedding", 8 * run.embedding)


def _segments(run: Arrangement, stage: int) -> Iterator[Part]:
    """What autograd keeps of the segments whose graphs are held, and of the one whose layers are recomputed."""
    kept, held = run.segment(stage).saved, run.held_graphs(stage)
    activations: float = held * kept[ACTIVATIONS]
    if run.decodes_apart:
        held, encoder = run.decoder_batch, run.encoder(stage).saved[ACTIVATIONS]
        decoder = held * run.decoder(stage).saved[ACTIVATIONS]
        recomputed = run.recomputation_peak_of_group(stage) if run.execution.recompute else 0
        activations = encoder + max(decoder, recomputed)
        if run.shared:  # the encoder's graphs come before the decoder's and after
            activations = max(encoder, decoder, recomputed)
    elif run.execution.recompute:
        activations = max(activations, run.recomputation_peak(stage) + (held - 1) * kept[ACTIVATIONS])
    if run.window:
        activations *= JOINED
        if run.execution.recompute:  # the layers of a diagonal are recomputed at once
            diagonal = min(held, sum(run.layers[stage].values()))
            activations += (diagonal - 1) * max(0, run.recomputation_peak(stage) - kept[ACTIVATIONS])
    yield Part("activations", activations)
    if run.window:
        diagonals = held + sum(run.layers[stage].values()) - 1
        yield Part("memories of diagonals", 4 * diagonals * run.lanes * math.prod(run.model.memory_shape))
    # Beside what is kept, the gradient of the logits; or one chunk of them, on the last stage, which has the head.
    last = stage == run.stages - 1
    yield Part("logits", last * run.traces.chunk_bytes or 2 * held * kept[LOGITS])
    yield Part("16-bit weights", kept[WEIGHT_COPIES])
    if run.shared and run.decodes_apart:
        # Of every piece that is under way the encoder's outputs, or their gradients; and one batch of both.
        output = run.config.data.segment_length * stages_of(run.model).width(run.model)
        yield Part("outputs of encoders", 4 * run.lanes * output * (run.shared.held * run.segments + 2 * held))
    elif run.decoder_batch > 1:
        # The encoder's outputs by segment, as one batch, and their gradients; and the memories they were read with.
        outputs = 3 * run.config.data.segment_length * stages_of(run.model).width(run.model)
        yield Part("decoder batch", 4 * held * run.lanes * (outputs + math.prod(run.model.memory_shape)))


def _memories(run: Arrangement, stage: int) -> Iterator[Part]:
    """The memories that are kept: of one group of lanes, or of all, which a pipeline and segment ranks mix."""
    if run.config.training.replay != "mrbp" or stage > run.writer_stage:
        return
    checkpointing = run.config.activation_checkpointing
    lanes = run.replica_lanes if run.stages > 1 or run.shared else run.lanes
    count = run.segments if run.shared else run.memories.count
    processes = run.config.parallel.tensor if checkpointing.partition_activations else 1
    size = 4 * count * lanes * math.prod(run.model.memory_shape) / processes
    yield Part("replay buffer", size, checkpointing.cpu_checkpointing)


def _count(run: Arrangement, stage: int) -> int:
    """Elements that are trained."""
    return sum(shape.numel * number for shape, number in run.parameters(stage).items() if shape.trained)


def _stored(run: Arrangement, stage: int) -> int:
    """Bytes of the parameters, frozen ones too."""
    return sum(shape.size * shape.numel * number for shape, number in run.parameters(stage).items())


def _offloads_optimizer(run: Arrangement) -> bool:
    return run.config.parallel.offload_optimizer == "cpu"
