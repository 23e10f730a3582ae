# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What crosses the network in an optimizer step, whatever the rollout's length; what the replay buffer keeps.

Bytes are counted at the calls of real processes over gloo (2 replicas; 2 tensor-parallel processes for the buffer). The
limit beside them: each gradient crosses once, which is what ZeRO needs for a step of one segment.

python benchmarks/communication.py [--segments 1 2 4 8 16 32] [--quick] [--out STEM] [--json]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import markdown_table, provenance, write_results
from memformer import Memformer, MemformerConfig
from memformer.config import Config, parse_config
from memformer.distributed import World
from memformer.engine import ReplayEngine
from memformer.model.flops import count_parameters
from memformer.replay import Carry, Rollout
from tests.distributed.collectives import counted
from tests.distributed.processes import run_distributed

MODEL = MemformerConfig(
    num_encoder_layers=2,
    num_decoder_layers=4,
    d_model=64,
    num_heads=4,
    d_ff=256,
    num_memory_slots=16,
    vocab_size=257,
    start_token_id=256,
)
PROCESSES, LANES, LENGTH = 2, 4, 16
WAYS = [
    *({"zero_stage": stage, "precision": "fp32"} for stage in range(4)),
    *({"zero_stage": stage, "precision": "bf16"} for stage in (1, 3)),
    *({"zero_stage": stage, "precision": "fp32", "gradient_reduction": "segment"} for stage in (2, 3)),
]
BUFFERS = [
    {"tensor": 1, "partition_activations": False},
    {"tensor": 2, "partition_activations": False},
    {"tensor": 2, "partition_activations": True},
]


def config_of(way: dict[str, Any], segments: int) -> Config:
    """A run with these settings."""
    parallel = {name: way[name] for name in ("zero_stage", "gradient_reduction", "tensor") if name in way}
    return parse_config(
        {
            "run_dir": "unused",
            "precision": way.get("precision", "fp32"),
            "model": MODEL.to_dict(),
            "data": {"path": "unused", "num_lanes": LANES, "segment_length": LENGTH, "num_segments": segments},
            "optimizer": {"warmup_steps": 0},
            "parallel": parallel,
            "activation_checkpointing": {"partition_activations": way.get("partition_activations", False)},
        },
        "benchmark",
    )


def second_step(world: World, config: Config) -> tuple[dict[str, int], int]:
    """(bytes of each kind of call in the second step, most bytes that the replay buffer held) on this process."""
    world = world.arranged(config.parallel.tensor, 1)
    torch.manual_seed(0)
    engine = ReplayEngine(Memformer(MODEL), config, world, config.precision)
    lanes, segments = LANES // world.mesh.data.size, config.data.num_segments
    carry = Carry.empty(engine.initial_memory(lanes), LENGTH)
    tokens = torch.randint(0, 256, (lanes, segments, LENGTH))
    rollout = Rollout.of(tokens, torch.full(tokens.shape[:2], LENGTH), torch.zeros(tokens.shape[:2], dtype=torch.bool))
    for _ in range(2):
        with counted() as calls:
            carry = engine.rollout_backward(rollout, carry, LANES * segments * LENGTH, seed=0).carry
            engine.step(1e-3)
    held = engine.replay_buffer_bytes
    engine.close()
    return {kind: size for kind, (_, size) in calls.items()}, held


def count_all(world: World, lengths: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """All settings at all lengths."""
    traffic, buffers = [], []
    for way in WAYS:
        for segments in lengths:
            calls, _ = second_step(world, config_of(way, segments))
            reduced = sum(size for kind, size in calls.items() if kind in ("all_reduce", "reduce_scatter_tensor"))
            gathered = calls.get("all_gather_into_tensor", 0)
            traffic.append({**way, "T": segments, "gradient_bytes": reduced, "parameter_bytes": gathered})
    for way in BUFFERS:
        for segments in lengths:
            _, held = second_step(world, config_of(way, segments))
            buffers.append({**way, "T": segments, "bytes": held})
    return {"traffic": traffic, "buffers": buffers}


def limit_bytes(way: dict[str, Any]) -> int:
    """Every gradient once, in the type in which it is sent."""
    if way["precision"] == "fp32" or way["zero_stage"] == 0:
        return 4 * count_parameters(MODEL)
    rest = (
        sum(p.numel() for p in Memformer(MODEL).parameters() if p.dim() == 1) + MODEL.num_memory_slots * MODEL.d_model
    )
    return 2 * (count_parameters(MODEL) - rest) + 4 * rest


def measure(lengths: Sequence[int]) -> dict[str, Any]:
    """Runs the processes and sets what they counted beside the limits."""
    found: dict[str, Any] = run_distributed(count_all, PROCESSES, list(lengths))[0]
    for row in found["traffic"]:
        row["gradient_over_limit"] = row["gradient_bytes"] / limit_bytes(row)
    for row in found["buffers"]:
        lanes = LANES if row["tensor"] == 2 else LANES // PROCESSES
        row["whole_bytes"] = 4 * (row["T"] - 1) * lanes * MODEL.num_memory_slots * MODEL.d_model
        row["of_whole"] = row["bytes"] / row["whole_bytes"] if row["whole_bytes"] else None
    once = [row["gradient_over_limit"] for row in found["traffic"] if "gradient_reduction" not in row]
    parts = [row["of_whole"] for row in found["buffers"] if row["partition_activations"] and row["of_whole"]]
    found["summary"] = {
        "largest_gradient_over_limit": max(once),
        "segments": list(lengths),
        "partitioned_buffer_of_whole": max(parts),
    }
    return found


def page(values: dict[str, Any]) -> str:
    """The result file for people."""
    found, longest = values["summary"], max(values["summary"]["segments"])
    lengths = found["segments"]

    def table(rows: list[dict[str, Any]], names: Sequence[str], column: str) -> str:
        kinds: dict[tuple[Any, ...], dict[int, Any]] = {}
        for row in rows:
            kinds.setdefault(tuple(row.get(name, "rollout") for name in names), {})[row["T"]] = row[column]
        shown = [[*kind, *("" if by[t] is None else by[t] for t in lengths)] for kind, by in kinds.items()]
        return markdown_table([*names, *(f"T = {t}" for t in lengths)], shown)

    return "\n".join(
        [
            "# What crosses the network in a step, and what the replay buffer keeps",
            "",
            f"{values['date']}, {values['hardware']}; torch {values['torch']}; commit {values['commit']}.",
            f"`{values['command']}`",
            "",
            f"Counted at the calls of {PROCESSES} processes over gloo, second step; model of "
            f"{count_parameters(MODEL):,} parameters, {LANES} lanes. T segments a rollout. Nothing here depends on the "
            "machine's speed.",
            "",
            "**Gradients: bytes over those of sending each gradient once.** What is above 1 are the norm's sums, 8 to 16 "
            f"bytes. Largest over all T with one reduction a rollout: "
            f"**{found['largest_gradient_over_limit']:.5f}**. The last two rows reduce once a segment, for comparison.",
            "",
            table(values["traffic"], ("zero_stage", "precision", "gradient_reduction"), "gradient_over_limit"),
            "",
            "**Parameters gathered, bytes a process, by T** (stage 3 gathers once a rollout):",
            "",
            table(values["traffic"], ("zero_stage", "precision", "gradient_reduction"), "parameter_bytes"),
            "",
            "**Replay buffer, bytes a process**; with `partition_activations` each tensor-parallel process keeps "
            f"{found['partitioned_buffer_of_whole']:.3f} of what one would keep (T = {longest} and below; the last "
            "segment's memory is not kept):",
            "",
            table(values["buffers"], ("tensor", "partition_activations"), "bytes"),
        ]
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--quick", action="store_true", help="1 and 2 segments")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--out", type=Path, help="write STEM.json and STEM.md")
    options = parser.parse_args(words)
    values = provenance(torch.device("cpu")) | measure([1, 2] if options.quick else options.segments)
    print(page(values))
    if options.out:
        write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps(values["summary"]))


if __name__ == "__main__":
    main()
