# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes the figures of docs/parallelism.md, so that they cannot drift from the plan.

python docs/parallelism_figures.py           rewrites the tables
python docs/parallelism_figures.py --check   exit code 1 if it is not what the plan gives
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table
from docs.marked_tables import rewrite
from memformer.config.schema import load_config
from memformer.planning import make_plan

PAGE = ROOT / "docs" / "parallelism.md"
AXES = ("pipeline", "data", "segment", "tensor")
# (what it is called, file, nodes, settings that differ from the file)
ROWS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("**1.3B on 8**: ZeRO 1", "1.3b-on-8", 1, ()),
    ("**7B on 64**: ZeRO 1, tensor 2", "7b-on-64", 8, ()),
    (
        "7B on 64: ZeRO 3, parameters gathered layer by layer",
        "7b-on-64",
        8,
        ("--parallel.zero_stage=3", "--parallel.tensor=1", "--parallel.zero3_gather=segment"),
    ),
    (
        "7B on 64: ZeRO 1, pipeline 2",
        "7b-on-64",
        8,
        ("--parallel.tensor=1", "--parallel.pipeline=2", "--training.lanes_per_micro_batch=1"),
    ),
    ("**70B on 1,024**: tensor 8, pipeline 4, ZeRO 1", "70b-on-1024", 128, ()),
    ("70B on 1,024: the same, layers recomputed", "70b-on-1024", 128, ("--activation_checkpointing.mode=full",)),
)
MILLION = ("--data.num_segments=1024", "--training.lanes_per_micro_batch=1")
"""Of rollouts of 1,048,576 tokens."""
# (model, file, documents at a time, settings by which they are spread, the first of a group is the one to copy)
LONG_ROWS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("1.3B", "1.3b-on-8", 64, ()),
    ("1.3B", "1.3b-on-8", 64, ("--parallel.segment=64",)),
    ("1.3B", "1.3b-on-8", 16, ("--parallel.segment=64",)),
    ("1.3B", "1.3b-on-8", 16, ("--parallel.pipeline=4",)),
    ("8B, memory", "8b-memory-on-8", 16, ("--parallel.tensor=2", "--parallel.pipeline=2")),
    ("8B, memory", "8b-memory-on-8", 16, ("--parallel.tensor=4",)),
    ("8B, memory", "8b-memory-on-8", 4, ("--parallel.tensor=2", "--parallel.pipeline=8")),
    ("8B, memory", "8b-memory-on-8", 4, ("--parallel.tensor=4", "--parallel.segment=4")),
)


def long_table() -> str:
    """Rollouts of a million tokens on 8 nodes of 8 H100s, and the commands of those that are fastest."""
    rows, commands, seen = [], [], set[tuple[str, int]]()
    for name, file, documents, settings in LONG_ROWS:
        path, first = f"configs/parallel/{file}.yaml", (name, documents) not in seen
        words = (f"--data.num_lanes={documents}", *MILLION, *settings)
        config = load_config(ROOT / path, words)
        plan = make_plan(config, config.model, 8, 8, "h100")
        spread = [f"{axis} {size}" for axis, size in plan.topology.items() if axis in AXES and size > 1]
        sent = ", ".join(
            f"{axis} {seconds:.1f}" for axis, seconds in plan.communication_seconds.items() if seconds >= 0.05
        )
        rows.append(
            [
                f"**{name}**" if first else name,
                str(documents),
                " x ".join(spread),
                f"{plan.device_memory['total'] / 1e9:.1f}",
                f"{plan.step_seconds:.1f}",
                f"{100 * plan.bubble:.1f} %",
                sent or "less than 0.1",
                f"{100 * plan.mfu:.0f} %",
            ]
        )
        if first:
            spoken = " ".join(words).replace("=", " ")
            commands.append(f"memformer plan {path} --nodes 8 --gpus-per-node 8 --device h100 {spoken}")
        seen.add((name, documents))
    columns = ["", "documents", "64 GPUs as", "GB a GPU", "s a step", "waiting", "s of traffic", "MFU"]
    return "\n".join([markdown_table(columns, rows), "", "```sh", *commands, "```"])


def table() -> str:
    """The table of all rows, on H100s in nodes of 8."""
    rows = []
    for name, file, nodes, settings in ROWS:
        config = load_config(ROOT / "configs" / "parallel" / f"{file}.yaml", settings)
        plan = make_plan(config, config.model, nodes, 8, "h100")
        memory = dict(plan.device_memory)
        total = memory.pop("total")
        model = sum(memory.pop(part, 0) for part in ("weights", "master weights", "16-bit weights"))
        states = memory.pop("optimizer states") + memory.pop("gradients") + memory.pop("gradient partition", 0)
        kept = sum(memory.pop(part, 0) for part in ("activations", "logits", "replay buffer"))
        sent = {axis: sum(kinds.values()) for axis, kinds in plan.traffic.items()}
        rows.append(
            [
                name,
                f"{total / 1e9:.1f}" if plan.fits else f"{total / 1e9:.1f} (too much)",
                *(f"{part / 1e9:.1f}" for part in (model, states, kept, sum(memory.values()))),
                *(f"{sent.get(axis, 0) / 1e9:.1f}" for axis in ("data", "tensor", "pipeline")),
                f"{100 * plan.bubble:.1f} %",
                f"{plan.step_seconds:.1f}",
                f"{100 * plan.mfu:.0f} %",
            ]
        )
    columns = ["", "GB a GPU", "weights", "gradients, states", "activations", "buffers"]
    columns += ["sent: data", "tensor", "pipeline", "bubble", "s a step", "MFU"]
    return markdown_table(columns, rows)


def main() -> int:
    """Compares or rewrites; returns the exit code."""
    return rewrite(PAGE, {"plan": table, "long": long_table})


if __name__ == "__main__":
    sys.exit(main())
