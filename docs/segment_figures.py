# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes the figures of docs/parallelism.md about rollouts that processes share: what crosses the network, who waits.

python docs/segment_figures.py           rewrites the tables
python docs/segment_figures.py --check   exit code 1 if they are not what the schedule and the formulas give
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table
from docs.marked_tables import rewrite
from memformer import MemformerConfig
from memformer.config.schema import load_config
from memformer.models.memformer.flops import segment_flops
from memformer.parallel.segment.schedule import SegmentCost, SegmentSchedule

PAGE = ROOT / "docs" / "parallelism.md"
RANKS = 64


def seams() -> str:
    """Bytes that a GPU sends in one step for one document, by its length: the model of configs/parallel/1.3b-on-8."""
    model = load_config(ROOT / "configs" / "parallel" / "1.3b-on-8.yaml").model
    slots, width = model.memory_shape
    layers, p = sum(model.layer_counts().values()), RANKS
    # The seams, and the sum at the end that gives every rank the last memory, in a ring; float32.
    shared = 4 * slots * width * (2 * (p - 1) / p + 2 * (p - 1) / p)
    rows = []
    for name, tokens in (("32k", 2**15), ("128k", 2**17), ("1M", 2**20)):
        block = tokens / p * width  # numbers of a rank's keys in a layer
        ring = layers * 2 * block * (2 * (p - 1) + 2 * (p - 1) + 2 * p)
        ulysses = layers * 2 * 8 * block * (p - 1) / p
        rows.append([name, f"{ring / 1e9:,.1f} GB", f"{ulysses / 1e9:,.2f} GB", f"{shared / 1e9:,.4f} GB"])
    return markdown_table(["tokens of the document", "ring attention", "Ulysses", "`parallel.segment: 64`"], rows)


def waiting() -> str:
    """Part of the ranks' time that is work, and their speed in that of one rank: 4+16 layers, width 1024."""
    model = MemformerConfig(num_encoder_layers=4, num_decoder_layers=16, d_model=1024, num_heads=16, vocab_size=32000)
    flops = segment_flops(model, 1024)
    cost = SegmentCost(flops.advance, 3 * (flops.forward - flops.advance), 3 * flops.advance)
    rows = []
    for ranks in (4, 8, 16, 64):
        cells = []
        for share in (math.inf, 8, 4, 2, 1):
            groups = 1 if share == math.inf else ranks // int(share)
            found = SegmentSchedule(ranks, [1] * groups, 1024, cost).efficiency if groups else 0.0
            cells.append(f"{found:.2f} ({ranks * found:.1f}x)" if groups else "")
        rows.append([str(ranks), *cells])
    return markdown_table(["ranks R", "1 group of lanes", "R/8", "R/4", "R/2", "R"], rows)


def main() -> int:
    """Compares or rewrites; returns the exit code."""
    return rewrite(PAGE, {"seams": seams, "waiting": waiting})


if __name__ == "__main__":
    sys.exit(main())
