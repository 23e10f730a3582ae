# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run will cost, before a GPU is asked for: parameters, memory of a process by part, bytes that it sends in a
step by kind, time a step, the pipeline's bubble, MFU.

Needs neither GPUs nor other processes; nor the data set, where model.vocab_size is given. Bytes follow from the run's
own code. Times are estimates: a step computes at --efficiency of the device's peak, traffic is not hidden behind it.

exit codes: 0 the plan fits the device; 1 it does not; 2 bad usage."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from data_pipeline.errors import UserError
from launch.answers import answer
from launch.overrides import SettingsParser
from memformer.config.files import read_values
from memformer.config.schema import Config, load_config
from memformer.config.topology import replicas_of
from memformer.planning.devices import DEVICES, device_of

Parser = SettingsParser

NO_DATA = "data.path is not given"
"""Stands for the data set of a configuration that names none."""
LATENCY_SHOWN = 0.001
"""Part of a step from which on the latency of an axis's calls is told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configuration file and the hardware; settings follow as --section.field VALUE."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="G", help="processes of each, one a GPU")
    parser.add_argument("--device", default="h100", metavar="NAME", help=f"GPU: {', '.join(DEVICES)}")
    parser.add_argument(
        "--network-gigabits",
        type=float,
        metavar="X",
        help="Gb/s in one direction of a GPU's adapter (default: of the device's usual network, where it has one)",
    )
    parser.add_argument("--efficiency", type=float, default=0.3, metavar="E", help="part of the peak, 0 to 1")
    parser.add_argument("--search", action="store_true", help="also the fastest settings that fit (takes longer)")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Plans, prints, and tells by the exit code whether it fits."""
    unneeded = _unneeded(arguments.config, arguments.overrides)
    config = load_config(arguments.config, [*arguments.overrides, *unneeded])
    for name in ("nodes", "gpus_per_node"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: give 1 or more")
    if not 0 < arguments.efficiency <= 1:
        raise UserError(f"--efficiency is {arguments.efficiency:g}: give a part of the peak above 0, at most 1")
    nodes, gpus, network = arguments.nodes, arguments.gpus_per_node, arguments.network_gigabits
    if network is not None and not network > 0:
        raise UserError(f"--network-gigabits is {network:g}: give more than 0")
    hardware = device_of(arguments.device, nodes, network)
    replicas_of(config, nodes * gpus, f"--nodes {nodes} x --gpus-per-node {gpus} = {nodes * gpus}")
    model = _model(config)
    from memformer.planning import make_plan  # and torch: only for what can be planned
    from memformer.planning.search import search

    place = (nodes, gpus, arguments.device)
    plan = make_plan(config, model, *place, efficiency=arguments.efficiency, network_gigabits=network)
    result = vars(plan) | {"hardware": dataclasses.asdict(hardware)}
    found = search(config, model, *place, network_gigabits=network) if arguments.search else []
    if arguments.search:
        result = result | {"search": [{"settings": settings} | vars(each) for settings, each in found]}
    if arguments.json:
        answer(result)
    else:
        print("\n".join(describe(result, arguments.device)))
    for line in plan.warnings:
        print(f"memformer plan: warning: {line}", file=sys.stderr)
    return 0 if plan.fits else 1


def _unneeded(path: str, overrides: Sequence[str]) -> list[str]:
    """Overrides for settings without a default that are not given: sizes alone can be planned."""
    values = read_values(path, overrides)
    data = values.get("data", {})
    found = [] if "run_dir" in values else ["--run_dir", "planned"]
    return found if not isinstance(data, dict) or "path" in data else [*found, "--data.path", NO_DATA]


def _model(config: Config) -> Any:
    """The model with its vocabulary: as set, or from the data set."""
    if config.model.vocab_size is not None:
        return config.model
    if config.data.path == NO_DATA:
        raise UserError(
            "model.vocab_size and data.path are missing: set one of the two, the first where there is no data"
        )
    from memformer.run.data import TrainingData

    try:
        data = TrainingData.open(config.data)
        model = data.complete(config.model, config.data.segment_length)
    except UserError as error:
        raise UserError(f"{error}; or set model.vocab_size, then no data set is needed") from None
    data.asking(config.evaluation)
    return model


def describe(plan: dict[str, Any], device: str) -> list[str]:
    """The plan for people."""
    places = plan["topology"]
    axes = " x ".join(f"{name} {places[name]}" for name in ("pipeline", "data", "segment", "tensor"))
    lines = [
        f"{plan['parameters']:,} parameters on {places['nodes']} x {places['gpus_per_node']} {device}: {axes}",
        f"{device}: {plan['hardware']['source']}",
        f"{plan['tokens']:,} tokens a step, {plan['flops']:.3g} FLOPs",
        "",
        f"memory of a process: {_gigabytes(plan['device_memory']['total'])} of {_gigabytes(plan['capacity'])}",
    ]
    for name, size in sorted(plan["device_memory"].items(), key=lambda item: -item[1]):
        if name != "total":
            lines.append(f"  {name:<24}{_gigabytes(size):>12}")
    lines += [f"  {name:<24}{_gigabytes(size):>12}  host" for name, size in plan["host_memory"].items()]
    lines += ["", "bytes that a process sends in a step"]
    for axis, kinds in plan["traffic"].items():
        lines += [f"  {axis + ', ' + kind:<24}{_gigabytes(size):>12}" for kind, size in sorted(kinds.items())]
    lines += ["", f"time a step: {plan['step_seconds']:.4g} s (an estimate)"]
    lines.append(f"  {'computation':<24}{plan['compute_seconds']:>10.4g} s  bubble {plan['bubble']:.1%}")
    for axis, seconds in plan["communication_seconds"].items():
        if seconds:
            latency = plan["latency_seconds"].get(axis, 0.0)
            said = f"  latency {latency:.4g} s" if latency >= LATENCY_SHOWN * plan["step_seconds"] else ""
            lines.append(f"  {axis + ' traffic':<24}{seconds:>10.4g} s{said}")
    lines.append(f"{plan['tokens_per_second']:,.0f} tokens/s, MFU {plan['mfu']:.1%}")
    for number, each in enumerate(plan.get("search", []), start=1):
        if number == 1:
            lines += ["", "the fastest that fit"]
        settings = "  ".join(
            f"--{name} {'null' if value is None else value}" for name, value in each["settings"].items()
        )
        lines.append(f"  {each['step_seconds']:10.4g} s  {_gigabytes(each['device_memory']['total']):>9}  {settings}")
    return lines


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3f} GB" if size >= 1e6 else f"{size / 1e3:.3f} kB"
