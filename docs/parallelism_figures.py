# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes the figures of docs/parallelism.md, so that they cannot drift from the plan.

python docs/parallelism_figures.py           rewrites the table
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
    return rewrite(PAGE, {"plan": table})


if __name__ == "__main__":
    sys.exit(main())
