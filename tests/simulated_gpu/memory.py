# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A program that takes a step of wide, shallow models on a simulated GPU, and writes what was allocated and planned.

    python -m tests.simulated_gpu.memory OUT.json

Layers have the sizes of those of 1.3B; there is one of each kind. The numbers of segments and of groups
of lanes are the least, since one segment's graph is held at a time.
"""

from benchmarks.simulated_gpu import library

library.load()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from benchmarks.simulated_gpu import training  # noqa: E402
from benchmarks.simulated_step import planned, step_of  # noqa: E402
from memformer.config.files import read_values  # noqa: E402
from memformer.config.schema import parse_config  # noqa: E402
from tests import ROOT  # noqa: E402

WORLD = 8
CASES: dict[str, dict[str, dict[str, Any]]] = {
    **{f"zero{stage}": {"parallel": {"zero_stage": stage}} for stage in (1, 3)},
    "recomputed": {"activation_checkpointing": {"mode": "full"}},
    "sums in bfloat16": {"training": {"gradient_accumulation_dtype": "bfloat16"}},
    "tensor": {"parallel": {"zero_stage": 1, "tensor": 2}},
    "pipeline": {
        "parallel": {"pipeline": 2},
        "model": {"num_decoder_layers": 2},
        "data": {"num_lanes": 8 * WORLD // 2},
    },
}


def config_of(name: str) -> Any:
    """A case: the shipped file with fewer layers and lanes."""
    values = read_values(ROOT / "configs" / "parallel" / "1.3b-on-8.yaml", [])
    values["model"] |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
    values["data"] |= {"num_segments": 2, "num_lanes": 4 * WORLD // CASES[name].get("parallel", {}).get("tensor", 1)}
    values["compile"] = False  # it takes seconds, and docs/results/simulated-step.md has its figures
    for section, settings in CASES[name].items():
        values[section] = values.get(section, {}) | settings
    return parse_config(values, name)


def main(out: Path) -> None:
    """Plans all cases, and then runs them."""
    torch.set_num_threads(1)
    said = {name: planned(config_of(name), WORLD) for name in CASES}
    device = training.start(WORLD, track_memory=True)
    found = {name: step_of(config_of(name), device)[1]["allocated_bytes"] for name in CASES}
    out.write_text(json.dumps({"planned": said, "allocated": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
