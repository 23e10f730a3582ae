# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make_plan`: parameters, memory by part, traffic by kind, time and bubble of a run on any number of devices.

Bytes follow from the code (`segment_trace`, `traffic`, the pipeline's own schedule). Time is an estimate with two
stated assumptions: matrix products reach `EFFICIENCY` of the device's peak, and collectives run in rings at the
bandwidth of the slowest link between their members without being hidden behind computation.
"""

import dataclasses
from collections import Counter

from data_pipeline.errors import UserError
from memformer.config.schema import Config
from memformer.config.topology import replicas_of
from memformer.engine.precision import AUTOCAST
from memformer.models.memformer import MemformerConfig
from memformer.models.sizes import count_parameters, hardware_flops_per_token, model_flops_per_token
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.split import Split, Work, lanes_of_groups, replay_schedule, split_of
from memformer.planning.devices import Device, device_of, peak_flops
from memformer.planning.segment_trace import (
    ACTIVATIONS,
    LOGITS,
    WEIGHT_COPIES,
    SegmentTrace,
    Shape,
    StackTraces,
    recomputation_peak,
    trace_parts,
)
from memformer.planning.traffic import data_traffic, pipeline_traffic, replica_traffic, tensor_traffic

EFFICIENCY = 0.5
"""Part of the peak that matrix products reach; large models are reported at 0.4 to 0.6."""
RESERVED = 5e9
"""Bytes of a device left to the driver, the communication library and the allocator's fragments."""
REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default `reduce_bucket_size`, elements."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run costs. Bytes and seconds; per process those of the pipeline stage that needs most memory.

    Attributes:
        parameters: Of the model.
        topology: Processes by axis: pipeline, data, tensor; nodes and gpus_per_node.
        tokens: Of one optimizer step, all processes.
        device_memory: By part, on the device; `total` is their sum.
        host_memory: By part, what is offloaded.
        capacity: Bytes of the device that a run can use.
        fits: Whether device_memory's total is within capacity.
        traffic: Bytes a process gives to each kind of collective or message in a step, by axis.
        flops: Of a step, all processes, recomputation included.
        bubble: Part of the stages' time in which they wait for each other, 0 .. 1.
        compute_seconds: Of a step, the bubble included.
        communication_seconds: Of a step, by axis.
        step_seconds: Their sum.
        tokens_per_second: All processes.
        mfu: Model FLOP/s over the devices' peak, 0 .. 1.
        warnings: What to look at, in words.
    """

    parameters: int
    topology: dict[str, int]
    tokens: int
    device_memory: dict[str, float]
    host_memory: dict[str, float]
    capacity: float
    fits: bool
    traffic: dict[str, dict[str, int]]
    flops: float
    bubble: float
    compute_seconds: float
    communication_seconds: dict[str, float]
    step_seconds: float
    tokens_per_second: float
    mfu: float
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class _Run:
    """The sizes that everything follows from."""

    config: Config
    model: MemformerConfig
    precision: str
    replicas: int
    split: Split
    groups: int
    lanes: int  # of a group

    @property
    def recompute(self) -> bool:
        return self.config.activation_checkpointing.mode == "full"

    @property
    def replica_lanes(self) -> int:
        return self.config.data.num_lanes // self.replicas


def make_plan(
    config: Config,
    model: MemformerConfig,
    nodes: int,
    gpus_per_node: int,
    device: str,
    efficiency: float = EFFICIENCY,
) -> Plan:
    """Plans a run.

    Args:
        config: The run; `precision: auto` is bf16, as on a GPU.
        model: Its model, with vocab_size.
        nodes: Machines.
        gpus_per_node: Processes of each.
        device: Short name of the device (memformer/planning/devices.py).
        efficiency: Part of the peak that matrix products reach.

    Raises:
        UserError: The device is not known, or the sizes do not divide.
    """
    hardware = device_of(device)
    world = nodes * gpus_per_node
    replicas = replicas_of(config, world, f"--nodes {nodes} x --gpus-per-node {gpus_per_node} = {world}")
    run = _arrange(config, model, replicas)
    data, parallel = config.data, config.parallel
    traces = trace_parts(model, run.lanes, data.segment_length, parallel.tensor, run.precision, run.recompute)
    plain = traces
    if run.recompute:
        plain = trace_parts(model, run.lanes, data.segment_length, parallel.tensor, run.precision)
    schedule = _schedule(run)
    if parallel.pipeline == 1:
        bubble, held = 0.0, [1 if config.training.replay == "mrbp" else data.num_segments]
    else:
        bubble, held = schedule.bubble, [schedule.held_graphs(stage) for stage in range(parallel.pipeline)]

    stages = [_stage_memory(run, traces, plain, stage, held[stage]) for stage in range(parallel.pipeline)]
    worst = max(range(parallel.pipeline), key=lambda stage: sum(stages[stage][0].values()))
    device_memory, host_memory = (dict(part) for part in stages[worst])
    device_memory["total"] = sum(device_memory.values())

    traffic = _stage_traffic(run, traces, schedule, worst)

    tokens = data.num_lanes * data.num_segments * data.segment_length
    flops = tokens * hardware_flops_per_token(
        model,
        data.segment_length,
        data.num_segments,
        config.training.replay,
        config.activation_checkpointing.mode,
    )
    peak = peak_flops(hardware.name, run.precision)
    if peak is None:
        raise UserError(f"--device {device}: no peak is known for precision {run.precision}: set precision to bf16")
    compute = flops / world / (peak * efficiency) / (1 - bubble)
    seconds = _communication_seconds(run, traffic, hardware, gpus_per_node)
    step = compute + sum(seconds.values())
    capacity = hardware.memory - RESERVED
    return Plan(
        parameters=count_parameters(model),
        topology={
            "nodes": nodes,
            "gpus_per_node": gpus_per_node,
            "pipeline": parallel.pipeline,
            "data": run.replicas,
            "tensor": parallel.tensor,
        },
        tokens=tokens,
        device_memory=device_memory,
        host_memory=host_memory,
        capacity=capacity,
        fits=device_memory["total"] <= capacity,
        traffic={axis: dict(kinds) for axis, kinds in traffic.items() if len(kinds)},
        flops=flops,
        bubble=bubble,
        compute_seconds=compute,
        communication_seconds=seconds,
        step_seconds=step,
        tokens_per_second=tokens / step,
        mfu=tokens / step * model_flops_per_token(model, data.segment_length) / (peak * world),
        warnings=_warnings(config, device_memory, capacity, gpus_per_node, seconds, step, bubble),
    )


def _arrange(config: Config, model: MemformerConfig, replicas: int) -> _Run:
    parallel = config.parallel
    own, group = config.data.num_lanes // replicas, config.training.lanes_per_micro_batch
    if parallel.pipeline > 1:
        spans = lanes_of_groups(own, parallel.pipeline, group)
        size, groups = spans[0][1] - spans[0][0], len(spans)
    else:
        size = min(own, group or own)
        groups = -(-own // size)
    precision = "bf16" if config.precision == "auto" else config.precision
    return _Run(config, model, precision, replicas, split_of(config, model), groups, size)


def _layers(run: _Run, traces: StackTraces, stage: int) -> SegmentTrace:
    """One segment of a stage; embedding, writer, head and loss are counted with the last stage, which has most."""
    last = stage == run.split.stages - 1
    return traces.of(len(run.split.encoder(stage)), len(run.split.decoder(stage)), rest=last)


def _parameters(run: _Run, traces: StackTraces, stage: int) -> Counter[Shape]:
    """The parameters that a process of the stage trains."""
    found = traces.of(len(run.split.encoder(stage)), len(run.split.decoder(stage)), rest=False).parameters
    last = run.split.stages - 1
    places = {"embedding": 0, "encoder_norm": run.split.writer_stage, "writer": run.split.writer_stage}
    places |= {"forget": run.split.writer_stage, "decoder_norm": last, "head": last}
    for name, shapes in traces.rest_parameters.items():
        if places[name] == stage:
            found = found + shapes
    return found


def traffic_by_stage(config: Config, model: MemformerConfig, world: int) -> list[dict[str, Counter[str]]]:
    """What a process of each stage gives to the calls of one optimizer step, by axis and kind: all that are made.

    Raises:
        UserError: The sizes do not divide.
    """
    run = _arrange(config, model, replicas_of(config, world))
    traces = trace_parts(
        model, run.lanes, config.data.segment_length, config.parallel.tensor, run.precision, run.recompute
    )
    schedule = _schedule(run)
    return [_stage_traffic(run, traces, schedule, stage) for stage in range(run.split.stages)]


def _schedule(run: _Run) -> ReplaySchedule:
    window = run.config.parallel.segments_in_flight
    return replay_schedule(run.split, Work.of_run(run.config, run.model), run.groups, window)


def _stage_traffic(run: _Run, traces: StackTraces, schedule: ReplaySchedule, stage: int) -> dict[str, Counter[str]]:
    config, parameters = run.config, _parameters(run, traces, stage)
    traffic = {
        "data": data_traffic(config, run.precision, parameters, run.replicas, run.groups),
        "tensor": tensor_traffic(config, _layers(run, traces, stage), run.groups),
        "replica": replica_traffic(config, run.model, parameters, run.replicas, run.replica_lanes),
        "pipeline": Counter[str](),
    }
    if run.split.stages > 1:
        embedding = sum(shape.numel * count for shape, count in traces.rest_parameters["embedding"].items())
        sent = pipeline_traffic(run.model, schedule, run.lanes, config.data.segment_length, embedding)
        traffic["pipeline"] = sent[stage]
    return traffic


def _stage_memory(
    run: _Run, traces: StackTraces, plain: StackTraces, stage: int, held: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes by part on the device and in host memory, of a process of the stage."""
    parallel, zero = run.config.parallel, run.config.parallel.zero_stage
    shapes = _parameters(run, traces, stage)
    count = sum(shape.numel * number for shape, number in shapes.items())
    low = sum(2 * shape.numel * number for shape, number in shapes.items() if shape.low_precision)
    share = count / run.replicas
    device: dict[str, float] = {}
    host: dict[str, float] = {}
    parameters_in = host if parallel.offload_parameters == "cpu" else device
    optimizer_in = host if parallel.offload_optimizer == "cpu" else device
    parameters_in["weights"] = 4 * share if zero == 3 else 4 * count
    if zero in (1, 2) or (zero == 3 and optimizer_in is host and parameters_in is device):
        optimizer_in["master weights"] = 4 * share
    optimizer_in["optimizer states"] = 8 * (count if zero == 0 else share)
    whole_gradients = zero < 2 or parallel.gradient_reduction == "rollout"
    device["gradients"] = 4 * count if whole_gradients else 4 * share
    if zero >= 2:
        optimizer_in["gradient partition"] = 4 * share
    if zero:
        bucket = run.config.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", REDUCE_BUCKET)
        device["reduction buffers"] = bucket * (6 if run.precision in AUTOCAST else 4)
    if zero == 3:
        gathered = low + 4 * (count - low / 2) if run.precision in AUTOCAST else 4 * count
        if parallel.zero3_gather == "segment":
            # The layer in use, the one that is fetched ahead, and its gradient.
            gathered = 3 * gathered / max(1, run.split.layers[stage])
        device["gathered parameters"] = gathered
    elif stage and run.model.tie_embeddings and stage in (run.split.decoder_stage, run.split.stages - 1):
        device["copies of the embedding"] = 8 * sum(s.numel * n for s, n in traces.rest_parameters["embedding"].items())

    kept = _layers(run, traces, stage).saved
    device["activations"] = held * kept[ACTIVATIONS]
    if run.recompute:
        layers = len(run.split.encoder(stage)), len(run.split.decoder(stage))
        once = recomputation_peak(traces, plain, *layers)
        device["activations"] = max(device["activations"], once + (held - 1) * kept[ACTIVATIONS])
    # Beside what is kept, the gradient of the logits.
    device["logits"] = 2 * held * kept[LOGITS]
    if zero < 3:
        device["16-bit weights"] = kept[WEIGHT_COPIES]
    checkpointing = run.config.activation_checkpointing
    memories = (run.config.data.num_segments - 1) * run.replica_lanes * run.model.num_memory_slots * run.model.d_model
    if run.config.training.replay == "mrbp" and stage <= run.split.writer_stage:
        shared = parallel.tensor if checkpointing.partition_activations else 1
        lanes = run.replica_lanes if run.split.stages > 1 else run.lanes
        buffer = 4 * memories * lanes / run.replica_lanes / shared
        (host if checkpointing.cpu_checkpointing else device)["replay buffer"] = buffer
    return device, host


def _communication_seconds(
    run: _Run, traffic: dict[str, Counter[str]], hardware: Device, gpus_per_node: int
) -> dict[str, float]:
    """Time of the collectives in rings, and of messages, by axis."""
    tensor = run.config.parallel.tensor
    # Tensor ranks are neighbours, then come the data ranks, then the stages.
    world = tensor * run.replicas * run.split.stages
    spans = {"tensor": tensor, "data": tensor * run.replicas, "pipeline": world, "replica": world}
    members = {"tensor": tensor, "data": run.replicas, "pipeline": run.split.stages}
    members["replica"] = tensor * run.split.stages
    seconds = {}
    for axis, kinds in traffic.items():
        inside = spans[axis] <= gpus_per_node
        bandwidth = hardware.node_bandwidth if inside else hardware.network_bandwidth
        ring = (members[axis] - 1) / members[axis]
        factors = {"all_reduce": 2 * ring, "all_gather": ring, "reduce_scatter": ring}
        seconds[axis] = sum(size * factors.get(kind, 1.0) for kind, size in kinds.items()) / bandwidth
    return seconds


def _warnings(
    config: Config,
    memory: dict[str, float],
    capacity: float,
    gpus_per_node: int,
    seconds: dict[str, float],
    step: float,
    bubble: float,
) -> list[str]:
    parallel, found = config.parallel, []
    if memory["total"] > capacity:
        name, size = max(((n, s) for n, s in memory.items() if n != "total"), key=lambda item: item[1])
        mends = {
            "activations": "activation_checkpointing.mode full, or fewer training.lanes_per_micro_batch",
            "logits": "fewer training.lanes_per_micro_batch, or parallel.tensor",
            "gradients": "parallel.gradient_reduction segment at zero_stage 2 or 3, or parallel.tensor",
            "optimizer states": "a higher parallel.zero_stage, or parallel.offload_optimizer cpu",
            "weights": "parallel.tensor, parallel.pipeline, or zero_stage 3",
            "gathered parameters": "parallel.zero3_gather segment",
            "replay buffer": "activation_checkpointing.cpu_checkpointing",
        }
        mend = mends.get(name, "parallel.tensor or parallel.pipeline")
        found.append(
            f"does not fit: {memory['total'] / 1e9:.1f} GB of {capacity / 1e9:.1f} GB; the largest part is {name} "
            f"({size / 1e9:.1f} GB): try {mend}"
        )
    if parallel.tensor > gpus_per_node:
        found.append(f"parallel.tensor {parallel.tensor} spans nodes: it talks in every layer, keep it within one")
    axis = max(seconds, key=lambda name: seconds[name])
    if seconds[axis] > 0.3 * step:
        found.append(f"{seconds[axis] / step:.0%} of a step is {axis}-parallel traffic")
    if bubble > 0.2:
        found.append(f"the pipeline's bubble is {bubble:.0%}: more segments, or more groups of lanes, fill it")
    return found
