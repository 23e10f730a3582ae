# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which settings fit the devices, and which of those are fastest: every combination, planned."""

import itertools
from typing import Any

from data_pipeline.errors import UserError
from memformer.config.schema import Config, parse_config
from memformer.models.configuration import ModelConfig
from memformer.models.registry import family_of, wavefronts_of
from memformer.planning.arrangement import arrange
from memformer.planning.cost_model import Plan, capacity_of, plan_of
from memformer.planning.devices import device_of
from memformer.planning.memory import least_memory

Settings = dict[str, Any]
MAX_PIPELINE = 16
MAX_SEGMENT = 64


def search(
    config: Config,
    model: ModelConfig,
    nodes: int,
    gpus_per_node: int,
    device: str,
    keep: int = 8,
    network_gigabits: float | None = None,
) -> list[tuple[Settings, Plan]]:
    """The fastest plans that fit, the best first.

    Tensor parallelism within a node, up to 16 pipeline stages, rollouts shared by up to 64 ranks, every ZeRO stage,
    with and without recomputation, all lanes of a process at once or one by one, the decoder of 1, 2, 4, ... segments
    at once, windows of 2, 4, ... segments along diagonals. Combinations that the configuration refuses are left out.

    Args:
        config: The run; everything but these settings stays.
        model: Its model, with vocab_size.
        nodes: Machines.
        gpus_per_node: Processes of each.
        device: Short name of the device.
        keep: How many to return.
        network_gigabits: As of `make_plan`.
    """
    layers = sum(model.layer_counts().values())
    deepest = min(MAX_PIPELINE, layers, nodes * gpus_per_node) if family_of(model).stages else 1
    segments = config.data.most_segments
    batches = _powers(segments) if family_of(model).decoder_apart else [1]
    pieces = min(MAX_SEGMENT, segments, nodes * gpus_per_node)
    # Pipelines are refused with the other two, and asking takes time.
    in_time = [(1, ranks, batch, 0) for ranks in _powers(pieces) for batch in batches if ranks * batch <= segments]
    in_time += [(pipeline, 1, 1, 0) for pipeline in _powers(deepest)[1:]]
    in_time += [(1, 1, 1, window) for window in _windows(model, segments)]
    hardware = device_of(device, nodes, network_gigabits)
    found = []
    for tensor, (pipeline, ranks, batch, window) in itertools.product(_powers(gpus_per_node), in_time):
        if window and tensor > 1:
            continue
        whole = 0  # lanes of a group where all of a process are one
        for stage, mode, group in itertools.product(range(4), ("none", "full"), (None, 1)):
            settings = {
                "parallel.tensor": tensor,
                "parallel.pipeline": pipeline,
                "parallel.segment": ranks,
                "parallel.zero_stage": stage,
                "activation_checkpointing.mode": mode,
                "training.lanes_per_micro_batch": group,
                "training.segments_per_decoder_batch": batch,
                "training.wavefront_window": window,
            }
            try:
                run = arrange(_with(config, settings), model, nodes * gpus_per_node)
            except UserError:
                continue
            if group is None:
                whole = run.lanes
            shards_nothing = run.gradient_ranks == 1 and config.parallel.offload_parameters == "none"
            if (group and whole == 1) or (stage > 1 and shards_nothing):  # the same once more
                continue
            if least_memory(run) > capacity_of(hardware):  # what it costs need not be known
                continue
            plan = plan_of(run, device, hardware, gpus_per_node)
            if plan.fits:
                found.append((settings, plan))
    found.sort(key=lambda each: (each[1].step_seconds, _simplicity(each[0]), each[1].device_memory["total"]))
    return found[:keep]


def _with(config: Config, settings: Settings) -> Config:
    values = config.values()
    for name, value in settings.items():
        section, field = name.split(".")
        values[section][field] = value
    parallel = values["parallel"]  # what would say nothing then is refused
    if settings["parallel.pipeline"] == 1:
        parallel["pipeline_layers"] = parallel["segments_in_flight"] = None
    if settings["parallel.zero_stage"] < 3:
        parallel["zero3_gather"] = "rollout"
    return parse_config(values, "search")


def _windows(model: ModelConfig, segments: int) -> list[int]:
    """Windows of a wavefront that are tried, where the model has one."""
    try:
        wavefronts_of(model).check(model, trained=True)
    except ValueError:
        return []
    return _powers(segments)[1:]


def _simplicity(settings: Settings) -> tuple[Any, ...]:
    """Of plans that are equally fast the first has the lower stage of ZeRO, and computes nothing again."""
    return settings["parallel.zero_stage"], settings["activation_checkpointing.mode"] == "full"


def _powers(limit: int) -> list[int]:
    return [2**exponent for exponent in range(limit.bit_length()) if 2**exponent <= limit]
