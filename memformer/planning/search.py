# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which settings fit the devices, and which of those are fastest: every combination, planned."""

import itertools
from typing import Any

from data_pipeline.errors import UserError
from memformer.config.schema import Config, parse_config
from memformer.models.configuration import ModelConfig
from memformer.models.registry import family_of
from memformer.planning.cost_model import Plan, make_plan

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
    at once. Combinations that the configuration refuses are left out.

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
    in_time = [(1, ranks, batch) for ranks in _powers(pieces) for batch in batches if ranks * batch <= segments]
    in_time += [(pipeline, 1, 1) for pipeline in _powers(deepest)[1:]]
    found = []
    for tensor, (pipeline, ranks, batch) in itertools.product(_powers(gpus_per_node), in_time):
        for stage, mode, group in itertools.product(range(4), ("none", "full"), (None, 1)):
            settings = {
                "parallel.tensor": tensor,
                "parallel.pipeline": pipeline,
                "parallel.segment": ranks,
                "parallel.zero_stage": stage,
                "activation_checkpointing.mode": mode,
                "training.lanes_per_micro_batch": group,
                "training.segments_per_decoder_batch": batch,
            }
            try:
                plan = make_plan(
                    _with(config, settings), model, nodes, gpus_per_node, device, network_gigabits=network_gigabits
                )
            except UserError:
                continue
            if plan.fits:
                found.append((settings, plan))
    found.sort(key=lambda each: (each[1].step_seconds, each[1].device_memory["total"]))
    return found[:keep]


def _with(config: Config, settings: Settings) -> Config:
    values = config.values()
    for name, value in settings.items():
        section, field = name.split(".")
        values[section][field] = value
    if settings["parallel.pipeline"] == 1:
        values["parallel"]["pipeline_layers"] = None
    return parse_config(values, "search")


def _powers(limit: int) -> list[int]:
    return [2**exponent for exponent in range(limit.bit_length()) if 2**exponent <= limit]
