# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a process holds in the fullest moment of a step, by part: each part has a function of its own, with its reason.

Moments are the rollout, at the beginning of a segment's backward, and the reduction of its gradients where that comes
after it, when activations and 16-bit weights are gone; gradients that are sent in the last backward go as activations
do. The optimizer's step holds less. Held to what a simulated GPU allocates (tests/simulated_gpu).

Weights, gradients and optimizer states are numbers of 4 bytes, whatever the precision; states may be stored in 2
(`optimizer.state_dtype`), and gradients summed in 2 (`training.gradient_accumulation_dtype`). Frozen weights have
neither of the others, and 2 bytes where matrices of bf16 runs are stored so. Left out is what Muon works on, about 1
GiB at a time, since no activations lie beside it. The inputs of recomputed layers are counted as if they were whole and
on the device: with `partition_activations` or `cpu_checkpointing` a run needs less than this there.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from memformer.engine.partitions import reduced_at_the_end
from memformer.engine.precision import AUTOCAST
from memformer.engine.reduction import STRETCH, UNDER_WAY, sent_while_it_ends
from memformer.models.registry import stages_of
from memformer.planning.arrangement import Arrangement
from memformer.planning.segment_trace import ACTIVATIONS, LOGITS, WEIGHT_COPIES, Shape
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
    "gradients": "parallel.gradient_reduction segment at zero_stage 2 or 3, or parallel.tensor, or "
    "training.gradient_accumulation_dtype bfloat16",
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
    """Bytes by part on the device, in the fullest moment, and in host memory, of a process of the stage."""
    device = max(moments(run, stage).values(), key=lambda parts: sum(parts.values()))
    return device, {part.name: part.size for part in _all(run, stage) if part.on_host}


def moments(run: Arrangement, stage: int) -> dict[str, dict[str, float]]:
    """Bytes by part on the device of a process of the stage, in each of a step's moments."""
    resting = {part.name: part.size for part in _resting(run, stage) if not part.on_host}
    of_moments = {"rollout": _rollout(run, stage)}
    if not _sends_early(run):
        of_moments["reduction"] = _reduction(run, stage)
    return {
        name: resting | {part.name: part.size for part in parts if not part.on_host}
        for name, parts in of_moments.items()
    }


def _all(run: Arrangement, stage: int) -> Iterator[Part]:
    yield from _resting(run, stage)
    yield from _reduction(run, stage)
    yield from _rollout(run, stage)


def _resting(run: Arrangement, stage: int) -> Iterator[Part]:
    """What is there in every moment."""
    for parts in (_weights, _optimizer, _buffers_of_deepspeed, _gathered, _copies, _saved):
        yield from parts(run, stage)


def _rollout(run: Arrangement, stage: int) -> Iterator[Part]:
    """What is there in a segment's backward."""
    for parts in (_gradients, _segments, _memories):
        yield from parts(run, stage)


def least_memory(run: Arrangement) -> float:
    """Bytes on the device that a process of some stage has whatever its rollouts are, so no more than it really has.

    No schedule is simulated for it, and no segment's activations are looked at.
    """
    return max(
        sum(part.size for parts in (_resting, _gradients) for part in parts(run, stage) if not part.on_host)
        for stage in range(run.stages)
    )


def largest(parts: dict[str, float]) -> tuple[str, float, str]:
    """The largest of the parts of `stage_memory`: name, bytes, and what makes it smaller."""
    name, size = max(parts.items(), key=lambda item: item[1])
    return name, size, MENDS.get(name, "parallel.tensor or parallel.pipeline")


def _weights(run: Arrangement, stage: int) -> Iterator[Part]:
    """The weights, whole below ZeRO 3; and from ZeRO 1 on those that the optimizer steps: a flat copy of its part.

    At ZeRO 3 DeepSpeed 0.19.8 means to step the part that it holds, but compares its device with a name, and copies it.
    """
    parallel, share = run.config.parallel, _count(run, stage) / run.gradient_ranks
    stored = _stored(run, stage)
    offloaded, optimizer_offloaded = parallel.offload_parameters == "cpu", _offloads_optimizer(run)
    yield Part("weights", stored / run.gradient_ranks if parallel.zero_stage == 3 else stored, offloaded)
    if parallel.zero_stage:
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
    parallel, size = run.config.parallel, _summed(run, run.parameters(stage))
    whole = parallel.zero_stage < 2 or parallel.gradient_reduction == "rollout"
    yield Part("gradients", size if whole else size / run.gradient_ranks)
    if run.window and run.backwards * run.groups > 1:  # of all diagonals of a window, before they are added
        yield Part("gradients of a window", size)


def _reduction(run: Arrangement, stage: int) -> Iterator[Part]:
    """Where all gradients are sent when the last backward has ended: those that are left, and what is on its way.

    The part that the process steps, and the weights on their way back, in 16 bits, come when gradients are gone, and
    are not counted.
    """
    yield from _gradients(run, stage)
    if not reduced_at_the_end(run.config):
        return
    ranks, parameters = run.gradient_ranks, run.parameters(stage)
    if _offloads_optimizer(run):
        yield Part("gradient partition", 4 * _count(run, stage) / ranks, on_host=True)
    largest, size = max(groups(run, parameters).items(), key=lambda it: it[0].gradients * it[1])
    if ranks == 1:  # a group at a time, in float32
        yield Part("reduction buffers", 4 * size)
        return
    at_once = min(_count(run, stage), UNDER_WAY * min(STRETCH * ranks, _bucket(run)))
    yield Part("reduction buffers", largest.gradients * at_once * (1 + 1 / ranks))


def _sends_early(run: Arrangement) -> bool:
    """Whether gradients are sent while the last backward goes on."""
    return run.gradient_ranks > 1 and reduced_at_the_end(run.config) and sent_while_it_ends(run.config)


def _buffers_of_deepspeed(run: Arrangement, stage: int) -> Iterator[Part]:
    """Where it reduces gradients itself: its part of them, and a bucket of a fixed size whatever the model's.

    In float32, with a 16-bit copy that is sent under autocast.
    """
    zero_stage = run.config.parallel.zero_stage
    if not zero_stage or reduced_at_the_end(run.config):
        return
    if zero_stage >= 2:
        yield Part("gradient partition", 4 * _count(run, stage) / run.gradient_ranks, _offloads_optimizer(run))
    yield Part("reduction buffers", _bucket(run) * (6 if run.precision in AUTOCAST else 4))


def _bucket(run: Arrangement) -> int:
    """Elements."""
    size: int = run.config.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", REDUCE_BUCKET)
    return size


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
    """The embedding with its gradient if it is trained, on stages that use the first one's."""
    if run.model.tied() and stage in run.embedding_copies:
        yield Part("copies of the embedding", 4 * (run.embedding + run.trained_embedding))


def _saved(run: Arrangement, stage: int) -> Iterator[Part]:
    """What a save in the background copies: this process's share, frozen weights too, which a first save may write.

    Pinned memory is made in powers of two, a block for each kind of numbers of each parameter, and torch keeps it.
    ZeRO 1 and 2 cut few parameters, the others every one.
    """
    if not run.config.checkpoint.background:
        return
    cut = run.gradient_ranks if run.config.parallel.zero_stage in (0, 3) else 1
    width = {"float32": 4, "bfloat16": 2}[run.config.optimizer.state_dtype]
    size = 0.0
    for shape, count in run.parameters(stage).items():
        states = (1 if shape.muon else 2) if shape.trained else 0
        pinned = _block(shape.size * shape.numel / cut) + states * _block(width * shape.numel / cut)
        size += count * pinned * cut / run.gradient_ranks
    if stage == 0:
        size += _block(4 * run.replica_lanes * math.prod(run.model.memory_shape))
    yield Part("copy of a save", size, on_host=True)


def _block(size: float) -> int:
    """Bytes of the block of pinned memory that holds so many."""
    return 1 << (math.ceil(size) - 1).bit_length() if size else 0


def _segments(run: Arrangement, stage: int) -> Iterator[Part]:
    """What autograd keeps of the segments whose graphs are held, and of the one whose layers are recomputed."""
    kept, held = run.segment(stage).saved, run.held_graphs(stage)
    activations: float = held * kept[ACTIVATIONS]
    # Beside what is kept, the gradient of the logits; or one chunk of them, on the last stage, which has the head.
    last = stage == run.stages - 1
    logits = last * run.traces.chunk_bytes or 2 * (run.decoder_batch if run.decodes_apart else held) * kept[LOGITS]
    if run.decodes_apart:
        held, encoder = run.decoder_batch, run.encoder(stage).saved[ACTIVATIONS]
        decoder = held * run.decoder(stage).saved[ACTIVATIONS]
        recomputed = run.recomputation_peak_of_group(stage) if run.execution.recompute else 0
        activations = encoder + max(decoder, recomputed)
        if run.shared:  # the encoder's graphs come before the decoder's and after
            activations = max(encoder, decoder, recomputed)
    elif run.execution.recompute:
        recomputed = run.recomputation_peak(stage) + (held - 1) * kept[ACTIVATIONS]
        if recomputed > activations + logits:  # the logits are gone by then
            activations, logits = recomputed, 0
    if run.window:
        activations *= JOINED
        depth = sum(run.layers[stage].values())
        if run.execution.recompute:  # the layers of a diagonal are recomputed at once
            activations += (min(held, depth) - 1) * max(0, run.recomputation_peak(stage) - kept[ACTIVATIONS])
        memories = (held + depth - 1) * run.lanes * math.prod(run.model.memory_shape)
        yield Part("memories of diagonals", 4 * memories)
    if run.stages > 1:  # the first pass goes on beside the graphs that are held
        activations += run.advanced_layer()
        width = stages_of(run.model).width(run.model)
        yield Part("messages", 4 * run.lanes * run.config.data.segment_length * width * (held + 2))
    yield Part("activations", activations)
    yield Part("logits", logits)
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
    size = 4 * count * lanes * run.memory_numbers(stage) / processes
    yield Part("replay buffer", size, checkpointing.cpu_checkpointing)


def _count(run: Arrangement, stage: int) -> int:
    """Elements that are trained."""
    return sum(shape.numel * number for shape, number in run.parameters(stage).items() if shape.trained)


def _summed(run: Arrangement, parameters: Counter[Shape]) -> int:
    """Bytes of the gradients that a rollout's add up to."""
    narrow = run.precision in AUTOCAST and run.config.training.gradient_accumulation_dtype == "bfloat16"
    shapes = ((shape, count) for shape, count in parameters.items() if shape.trained)
    return sum((2 if narrow and shape.copied else 4) * shape.numel * count for shape, count in shapes)


def _stored(run: Arrangement, stage: int) -> int:
    """Bytes of the parameters, frozen ones too."""
    return sum(shape.size * shape.numel * number for shape, number in run.parameters(stage).items())


def _offloads_optimizer(run: Arrangement) -> bool:
    return run.config.parallel.offload_optimizer == "cpu"
