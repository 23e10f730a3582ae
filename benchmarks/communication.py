# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What crosses the network in an optimizer step, whatever the rollout's length; what the replay buffer keeps.

Bytes are counted at the calls of real processes over gloo (2 replicas; 2 tensor-parallel processes for the buffer), and
weighed by what each of p processes sends of a call's payload in a ring: (p-1)/p of it for a reduce_scatter or an
all_gather, twice that for an all_reduce. The least beside them, whatever the number of segments: each gradient goes
once to the process that steps it, each weight once back from there; those of linear maps in 16 bits under bf16.

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
from memformer.config.schema import Config, parse_config
from memformer.engine.making import make_engine
from memformer.models.sizes import count_parameters
from memformer.processes.group import World
from memformer.replay import Carry, Rollout
from tests.distributed.collectives import counted
from tests.distributed.processes import run_distributed

MODEL = MemformerConfig(
    num_encoder_layers=1,
    num_decoder_layers=2,
    d_model=64,
    num_heads=4,
    d_ff=128,
    num_memory_slots=16,
    vocab_size=257,
    start_token_id=256,
)
PROCESSES, LANES, LENGTH = 2, 4, 8
RING = {"all_reduce": 2, "reduce_scatter_tensor": 1, "all_gather_into_tensor": 1}
"""How often a call's payload goes round, but for the part of it that each process has."""
WAYS = [
    *({"zero_stage": stage, "precision": "fp32"} for stage in range(4)),
    *({"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)),
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


def count(world: World, way: dict[str, Any], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """For each rollout length, the bytes of the calls of a later step, and the most that the replay buffer held."""
    config = config_of(way, max(lengths))
    world = world.arranged(config.parallel.tensor, 1)
    torch.manual_seed(0)
    engine = make_engine(Memformer(MODEL), config, world, config.precision)
    lanes, rows = LANES // world.mesh.data.size, []
    carry = Carry.empty(engine.initial_memory(lanes), LENGTH)
    for segments in lengths:
        tokens = torch.randint(0, 256, (lanes, segments, LENGTH))
        resets = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        rollout = Rollout.of(tokens, torch.full(tokens.shape[:2], LENGTH), resets)
        for _ in range(2 if not rows else 1):  # the first step of all sets up what lasts
            engine.replay_buffer_bytes = 0
            with counted() as calls:
                carry = engine.rollout_backward(rollout, carry, LANES * segments * LENGTH, seed=0).carry
                engine.step(1e-3)
        sent = (RING[kind] * size for kind, (_, size) in calls.items()) if config.parallel.tensor == 1 else ()
        rows.append(
            {
                **way,
                "T": segments,
                "sent_bytes": sum(sent) * (PROCESSES - 1) // PROCESSES,
                "calls": {kind: size for kind, (_, size) in calls.items()},
                "buffer_bytes": engine.replay_buffer_bytes,
            }
        )
    engine.close()
    return rows


def count_all(world: World, lengths: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """All settings at all lengths."""
    return {
        "traffic": [row for way in WAYS for row in count(world, way, lengths)],
        "buffers": [row for way in BUFFERS for row in count(world, way, lengths)],
    }


def least_bytes(way: dict[str, Any]) -> float:
    """Every gradient and every weight once; a head that is tied to the embedding counts as a linear map."""
    size = 4 * count_parameters(MODEL)
    if way["precision"] == "bf16":
        maps = [module for module in Memformer(MODEL).modules() if isinstance(module, torch.nn.Linear)]
        size -= 2 * sum(module.weight.numel() for module in maps)
    return 2 * size * (PROCESSES - 1) / PROCESSES


def measure(lengths: Sequence[int]) -> dict[str, Any]:
    """Runs the processes and sets what they counted beside the limits."""
    found: dict[str, Any] = run_distributed(count_all, PROCESSES, list(lengths), timeout_seconds=1800)[0]
    for row in found["traffic"]:
        row["over_least"] = row["sent_bytes"] / least_bytes(row)
    for row in found["buffers"]:
        lanes = LANES if row["tensor"] == 2 else LANES // PROCESSES
        row["whole_bytes"] = 4 * (row["T"] - 1) * lanes * MODEL.num_memory_slots * MODEL.d_model
        row["of_whole"] = row["buffer_bytes"] / row["whole_bytes"] if row["whole_bytes"] else None
    once = [row["over_least"] for row in found["traffic"] if "gradient_reduction" not in row]
    parts = [row["of_whole"] for row in found["buffers"] if row["partition_activations"] and row["of_whole"]]
    found["summary"] = {
        "largest_over_least": max(once),
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
            f"Counted at the calls of {PROCESSES} processes over gloo, after a first step; model of "
            f"{count_parameters(MODEL):,} parameters, {LANES} lanes. T segments a rollout. Nothing here depends on the "
            "machine's speed.",
            "",
            "**What a process sends, over the least**: each gradient once to the process that steps it, each weight "
            "once back; those of linear maps in 16 bits under bf16. Of a call's payload a process of p sends (p-1)/p "
            "for a reduce_scatter or an all_gather, and twice that for an all_reduce. Largest over all T with one "
            f"reduction a rollout: **{found['largest_over_least']:.3f}**. Above 1 are, at stages 1 and 2 under bf16, "
            "the embedding, whose float32 numbers are looked up although the head that is tied to it takes 16 bits; "
            "and the norm's sums. The last two rows reduce once a segment, stage 2 by DeepSpeed's all_reduce.",
            "",
            table(values["traffic"], ("zero_stage", "precision", "gradient_reduction"), "over_least"),
            "",
            "**The same in bytes a process:**",
            "",
            table(values["traffic"], ("zero_stage", "precision", "gradient_reduction"), "sent_bytes"),
            "",
            "**Replay buffer, bytes a process**; with `partition_activations` each tensor-parallel process keeps "
            f"{found['partitioned_buffer_of_whole']:.3f} of what one would keep (T = {longest} and below; the last "
            "segment's memory is not kept):",
            "",
            table(values["buffers"], ("tensor", "partition_activations"), "buffer_bytes"),
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
