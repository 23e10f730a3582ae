# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make_plan`: parameters, memory by part, traffic by kind, time and bubble of a run on any number of devices.

Bytes follow from the code (`memory` and `traffic`, which ask `segment_trace` and the pipeline's own schedule). Time is
an estimate with three stated assumptions: a step computes at `EFFICIENCY` of the device's peak; it takes no less than
starting its kernels does; and collectives run in rings at the bandwidth of the slowest link between their members,
with a latency for each call and each step of a ring, without being hidden behind computation.
"""

import dataclasses
from collections import Counter

from data_pipeline.errors import UserError
from memformer.config.schema import Config
from memformer.models.configuration import ModelConfig
from memformer.models.sizes import count_parameters, hardware_flops_per_token, model_flops_per_token
from memformer.planning.arrangement import Arrangement, arrange
from memformer.planning.devices import (
    CALL_SECONDS,
    NETWORK_HOP_SECONDS,
    NODE_HOP_SECONDS,
    Device,
    device_of,
    peak_flops,
)
from memformer.planning.memory import LESS_TRAFFIC, largest, stage_memory
from memformer.planning.traffic import stage_calls, stage_traffic

EFFICIENCY = 0.3
"""Part of the peak that a step's operations reach. Measured on an H100 (docs/results/gpu-step.md): 1.3B 0.36 as its
layers are written, 0.43 compiled, 0.49 with all that saves bytes; 350M 0.20 and 0.29. Nothing else was."""
LAUNCH_SECONDS = 5e-6
"""Seconds in which Python and the driver start a kernel, about; less work than that a kernel leaves a device idle."""
KERNELS = 50
"""Kernels of a layer's forward, about; its backward has twice as many. Derived, not measured on a GPU: a step of 350M
with 3 segments and without `compile` starts 8,887 in all, counted on a simulated device."""
RESERVED = 5e9
"""Bytes of a device left to the driver, the communication library and the allocator's fragments."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run costs. Bytes and seconds; per process those of the pipeline stage that needs most memory.

    Attributes:
        parameters: Of the model.
        topology: Processes by axis: pipeline, data, segment, tensor; nodes and gpus_per_node.
        tokens: Of one optimizer step, all processes.
        device_memory: By part, on the device; `total` is their sum.
        host_memory: By part, what is offloaded, and what a save in the background copies.
        capacity: Bytes of the device that a run can use.
        fits: Whether device_memory's total is within capacity.
        traffic: Bytes a process gives to each kind of collective or message in a step, by axis.
        flops: Of a step, all processes, recomputation included.
        bubble: Part of the time in which stages or segment ranks wait for each other, 0 .. 1.
        compute_seconds: Of a step, the bubble included.
        communication_seconds: Of a step, by axis, latency included.
        latency_seconds: The part of them that does not depend on bytes, by axis.
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
    latency_seconds: dict[str, float]
    step_seconds: float
    tokens_per_second: float
    mfu: float
    warnings: list[str]


def make_plan(
    config: Config,
    model: ModelConfig,
    nodes: int,
    gpus_per_node: int,
    device: str,
    efficiency: float = EFFICIENCY,
    network_gigabits: float | None = None,
) -> Plan:
    """Plans a run.

    Args:
        config: The run; `precision: auto` is bf16, as on a GPU.
        model: Its model, with vocab_size.
        nodes: Machines.
        gpus_per_node: Processes of each.
        device: Short name of the device (memformer/planning/devices.py).
        efficiency: Part of the peak that matrix products reach.
        network_gigabits: Gb/s in one direction of a GPU's adapter; None: of the device's usual network.

    Raises:
        UserError: The device or its network is not known, the sizes do not divide, or the model's family is not built
            for the settings.
    """
    hardware = device_of(device, nodes, network_gigabits)
    world = nodes * gpus_per_node
    run = arrange(config, model, world, f"--nodes {nodes} x --gpus-per-node {gpus_per_node} = {world}")
    return plan_of(run, device, hardware, gpus_per_node, efficiency)


def plan_of(
    run: Arrangement, device: str, hardware: Device, gpus_per_node: int, efficiency: float = EFFICIENCY
) -> Plan:
    """Plans a run that is laid out.

    Args:
        run: What is laid out.
        device: Short name of the device.
        hardware: What it is, in its network.
        gpus_per_node: Processes of each machine.
        efficiency: As of `make_plan`.

    Raises:
        UserError: No peak of the device is known for the run's precision.
    """
    config, model, world = run.config, run.model, run.gradient_ranks * run.stages * run.config.parallel.tensor
    nodes = world // gpus_per_node
    peak = peak_flops(hardware.name, run.precision)
    if peak is None:
        known = " or ".join(each for each in ("bf16", "fp16", "fp32") if peak_flops(hardware.name, each))
        raise UserError(f"--device {device}: no peak is known for precision {run.precision}: set precision to {known}")
    data, parallel, peak_of_all = config.data, config.parallel, peak * world

    stages = [stage_memory(run, stage) for stage in range(run.stages)]
    worst = max(range(run.stages), key=lambda stage: sum(stages[stage][0].values()))
    device_memory, host_memory = stages[worst]
    device_memory["total"] = sum(device_memory.values())
    capacity = capacity_of(hardware)

    tokens = data.num_lanes * data.most_segments * data.segment_length
    flops = tokens * hardware_flops_per_token(
        model,
        data.segment_length,
        data.most_segments,
        config.training.replay,
        config.activation_checkpointing.mode,
        config.activation_checkpointing.memory_interval,
        config.training.train,
        config.training.segments_per_decoder_batch,
        config.training.wavefront_window,
    )
    flops += tokens * run.traces.scored_again * parallel.tensor
    traffic = stage_traffic(run, worst)
    slowest = max(run.layer_passes(stage) for stage in range(run.stages))
    compute = max(flops / world / (peak * efficiency), slowest * KERNELS * LAUNCH_SECONDS) / (1 - run.bubble)
    seconds = _communication_seconds(run, traffic, hardware, gpus_per_node)
    latency = _latency_seconds(run, stage_calls(run, worst), gpus_per_node)
    seconds = {axis: each + latency.get(axis, 0.0) for axis, each in seconds.items()}
    step = compute + sum(seconds.values())
    return Plan(
        parameters=count_parameters(model),
        topology={
            "nodes": nodes,
            "gpus_per_node": gpus_per_node,
            "pipeline": parallel.pipeline,
            "data": run.replicas,
            "segment": run.ranks,
            "tensor": parallel.tensor,
        },
        tokens=tokens,
        device_memory=device_memory,
        host_memory=host_memory,
        capacity=capacity,
        fits=device_memory["total"] <= capacity,
        traffic={axis: dict(kinds) for axis, kinds in traffic.items() if len(kinds)},
        flops=flops,
        bubble=run.bubble,
        compute_seconds=compute,
        communication_seconds=seconds,
        latency_seconds=latency,
        step_seconds=step,
        tokens_per_second=tokens / step,
        mfu=tokens / step * model_flops_per_token(model, data.segment_length, config.training.train) / peak_of_all,
        warnings=_warnings(run, device_memory, capacity, gpus_per_node, seconds, step),
    )


def capacity_of(hardware: Device) -> float:
    """Bytes of a device that a run can use."""
    return hardware.memory - RESERVED


@dataclasses.dataclass(frozen=True)
class _Place:
    """How the members of an axis lie: processes, the ranks that they are spread over, and those of them on a node."""

    members: int
    span: int
    here: int


def _places(run: Arrangement, gpus_per_node: int) -> dict[str, _Place]:
    """By axis. Tensor ranks are neighbours, then come the segment ranks, the data ranks, and the stages."""
    tensor, replicas = run.config.parallel.tensor, run.gradient_ranks
    world = tensor * replicas * run.stages
    spans = {"tensor": tensor, "segment": tensor * run.ranks, "data": tensor * replicas}
    spans |= {"pipeline": world, "replica": world}
    members = {"tensor": tensor, "segment": run.ranks, "data": replicas, "pipeline": run.stages}
    members["replica"] = tensor * run.stages
    return {
        axis: _Place(members[axis], span, members[axis] * min(gpus_per_node, span) // span)
        for axis, span in spans.items()
    }


def _communication_seconds(
    run: Arrangement, traffic: dict[str, Counter[str]], hardware: Device, gpus_per_node: int
) -> dict[str, float]:
    """Time of the bytes of collectives in rings, and of messages, by axis."""
    places, seconds = _places(run, gpus_per_node), {}
    for axis, kinds in traffic.items():
        place = places[axis]
        ring = (place.members - 1) / place.members
        factors = {"all_reduce": 2 * ring, "all_gather": ring, "reduce_scatter": ring, "all_to_all": ring}
        alone, together = hardware.within(2), hardware.within(max(2, place.here))
        if place.span > gpus_per_node and hardware.network_bandwidth is not None:
            # A message takes one adapter; a collective as many rings as it has members on a node, each with its own.
            alone = hardware.network_bandwidth
            together = min(together, max(1, place.here) * alone)
        seconds[axis] = sum(
            size * factors[kind] / together if kind in factors else size / alone for kind, size in kinds.items()
        )
    return seconds


def _latency_seconds(run: Arrangement, calls: dict[str, Counter[str]], gpus_per_node: int) -> dict[str, float]:
    """Time of collectives and messages whatever their bytes, by axis: of each call, and of each step of its ring."""
    places, seconds = _places(run, gpus_per_node), {}
    for axis, kinds in calls.items():
        place = places[axis]
        crossings = place.members // max(1, place.here) - 1 if place.span > gpus_per_node else 0
        once_round = (place.members - 1 - crossings) * NODE_HOP_SECONDS + crossings * NETWORK_HOP_SECONDS
        hop = NETWORK_HOP_SECONDS if crossings else NODE_HOP_SECONDS
        steps = {"all_reduce": 2 * once_round, "all_gather": once_round}
        seconds[axis] = sum(count * (CALL_SECONDS + steps.get(kind, hop)) for kind, count in kinds.items())
    return seconds


def _warnings(
    run: Arrangement,
    memory: dict[str, float],
    capacity: float,
    gpus_per_node: int,
    seconds: dict[str, float],
    step: float,
) -> list[str]:
    tensor, found = run.config.parallel.tensor, []
    if memory["total"] > capacity:
        name, size, mend = largest({name: size for name, size in memory.items() if name != "total"})
        found.append(
            f"does not fit: {memory['total'] / 1e9:.1f} GB of {capacity / 1e9:.1f} GB; the largest part is {name} "
            f"({size / 1e9:.1f} GB): try {mend}"
        )
    if tensor > gpus_per_node:
        found.append(f"parallel.tensor {tensor} spans nodes: it talks in every layer, keep it within one")
    axis = max(seconds, key=lambda name: seconds[name])
    if seconds[axis] > 0.3 * step:
        found.append(f"{seconds[axis] / step:.0%} of a step is {axis}-parallel traffic: {LESS_TRAFFIC[axis]}")
    if run.bubble > 0.2:
        if run.shared:
            ranks, groups = run.ranks, run.groups
            found.append(
                f"segment ranks wait {run.bubble:.0%} of the time for the memory's chain: as many groups of lanes as "
                f"ranks ({ranks}) fill it, here are {groups} (data.num_lanes, training.lanes_per_micro_batch)"
            )
        else:
            found.append(f"the pipeline's bubble is {run.bubble:.0%}: more segments, or more groups of lanes, fill it")
    return found
