# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay of a language model with a memory against full back-propagation through time.

    python benchmarks/backbone_replay.py                    about 15 minutes on one CPU core
    python benchmarks/backbone_replay.py --quick --json     about 1 minute
    python benchmarks/backbone_replay.py --out benchmarks/results/DATE-cpu-backbone-replay

As `benchmarks/replay.py`, with a Llama of transformers and each kind of memory in place of a Memformer. All of the
model is trained, so a backward costs twice a forward, and the replay's speed is at most 1 / (1 + f/3 * (T-1)/T) of
BPTT's, f being the share of a forward that `advance` runs; the graph is at least one segment's and T memories.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import add_measuring_options, begin_measuring, markdown_table, page_head, write_results
from benchmarks.replay import VOCABULARY, Problem, clock_name, measure, problem_of, summary
from memformer.models.backbone.config import BackboneConfig, MemoryConfig
from memformer.models.backbone.model import Backbone

LAYERS = 8
SHAPES = {
    "associative": MemoryConfig("associative", layers=(1, 3, 5, 7)),
    "slots": MemoryConfig("slots", layers=(1, 3, 5, 7)),
    "slots_half": MemoryConfig("slots", layers=(1, 3, 5, 7), write_layer=LAYERS // 2),
}
SPEED_GOAL, GRAPH_GOAL = 0.95, 1.05


def backbone_of(width: int, length: int, memory: MemoryConfig, overlap: int | None = None) -> Backbone:
    """A Llama with a memory, its weights drawn from seed 0."""
    sizes = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4 * length + 64,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    return Backbone(
        BackboneConfig(
            backbone=sizes,
            memory=memory,
            overlap=overlap,
            vocab_size=VOCABULARY,
            start_token_id=0,
            segment_length=length,
        )
    )


def make_problem(shape: str, segments: int, options: argparse.Namespace, device: torch.device) -> Problem:
    """The model in `shape` and a rollout in the middle of documents."""
    return problem_of(backbone_of(options.width, options.segment_length, SHAPES[shape]), segments, options, device)


def page(values: dict[str, Any]) -> str:
    """The result file for people."""
    sizes = values["sizes"]
    rows = [
        (
            row["shape"].replace("_", ", written at "),
            row["num_segments"],
            row["advance_share"],
            row["speed_mrbp"],
            row["speed_limit"],
            row["speed_mrbp"] / row["speed_limit"],
            row["speed_checkpointing"],
            f"{row['saved_bytes_mrbp'] / 2**20:.1f}",
            f"{row['saved_bytes_bptt'] / 2**20:.1f}",
            row["memory_vs_limit"],
        )
        for row in values["rows"]
    ]
    columns = (
        "memory", "T", "f", "speed of replay", "its limit", "of the limit", "speed of checkpointing",
        "graph, replay (MiB)", "graph, BPTT (MiB)", "replay / limit",
    )  # fmt: skip
    missed = [
        f"{row['shape']} T = {row['num_segments']}"
        for row in values["rows"]
        if row["speed_mrbp"] < SPEED_GOAL * row["speed_limit"] or row["memory_vs_limit"] > GRAPH_GOAL
    ]
    return "\n".join(
        [
            *page_head("A language model with a memory: replay against BPTT", values),
            f"A Llama of {LAYERS} layers, width {sizes['width']}, memory at every second layer; {sizes['lanes']} "
            f"lanes, {sizes['segment_length']} tokens a segment and a quarter of that overlap, fp32, medians of "
            f"{sizes['repetitions']} interleaved repetitions, {sizes['clock']}. Speeds are fractions of BPTT's at the "
            "same T; the limit is 1 / (1 + f/3 * (T-1)/T). *Graph* is the peak of what autograd keeps and of the "
            "replay buffer; its limit is one segment's graph + T memories. Goals: "
            f"{SPEED_GOAL} of the speed's limit, {GRAPH_GOAL} times the graph's; "
            f"{'missed by ' + ', '.join(missed) if missed else 'all met'}.",
            "",
            markdown_table(columns, rows),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--segments", nargs="+", type=int, default=[8, 32], help="T; default 8 32")
    parser.add_argument("--lanes", type=int, default=2, help="B; default 2")
    parser.add_argument("--segment-length", type=int, default=64, help="S in tokens; default 64")
    parser.add_argument("--width", type=int, help="default 256")
    add_measuring_options(parser, "T = 1 and 4, width 64, 2 repetitions")
    options = parser.parse_args(words)
    if options.quick:
        options.segments = [1, 4]
    options.width = options.width or (64 if options.quick else 256)
    options.repetitions = options.repetitions or (2 if options.quick else 5)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    device = torch.device(options.device)
    values = begin_measuring(options, device, clock_name(options))
    for shape in options.shapes:  # each is kept as soon as it is measured
        values["rows"] += measure(shape, options, device, make_problem)
        values["summary"] = summary(values["rows"])
        if options.out:
            write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps({**values["summary"], "hardware": values["hardware"], "commit": values["commit"]}))


if __name__ == "__main__":
    main()
