# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Muon against AdamW on books, at equal steps, and what states in bfloat16 cost either.

    python benchmarks/optimizers.py                           about an hour on one CPU core
    python benchmarks/optimizers.py --quick --json            half a minute: one rate each, few steps
    python benchmarks/optimizers.py --seeds 0 1 2 --jobs 2 --out benchmarks/results/DATE-cpu-optimizers

Every row reads the same bytes in the same order, with the same warm-up, schedule, clipping and weight decay, and starts
from the same weights. Each optimizer is trained at every one of the same learning rates, and is judged at the one of
its lowest training loss. States in bfloat16 have the rates of float32, and are judged at that one's.
"""

import argparse
import functools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, at_best_rate, run_cases, seeds_of, spread
from benchmarks.common import markdown_table, page_head
from benchmarks.peers.reader import MemformerReader
from benchmarks.tasks.text import START
from benchmarks.text_runs import add_sizes, parsed, sizes_of, trained
from benchmarks.texts import losses_by_segment, texts
from benchmarks.training import Recipe
from memformer import MemformerConfig

OPTIMIZERS, STATES = ("adamw", "muon"), ("float32", "bfloat16")


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains and scores one model."""
    torch.manual_seed(case["seed"])
    config = MemformerConfig(
        2,
        2,
        d_model=options.width,
        num_heads=4,
        d_ff=2 * options.width,
        num_memory_slots=16,
        vocab_size=START + 1,
        start_token_id=START,
        segment_length=options.segment_length,
    )
    reader = MemformerReader(config, name=label(case))
    recipe = Recipe(
        options.steps,
        case["learning_rate"],
        "wsd",
        weight_decay=options.weight_decay,
        optimizer=case["optimizer"],
        state_dtype=case["states"],
    )
    figures, test = trained(reader, texts("books"), options, recipe, case["seed"])
    losses, _ = losses_by_segment(reader, test, options.segment_length)
    row = {
        **case,
        **figures,
        "perplexity": math.exp(float(losses.mean())),
    }
    print(f"{label(row)} at {row['learning_rate']:g}, seed {row['seed']}: {row['perplexity']:.4f}", flush=True)
    return [row]


def label(row: Case) -> str:
    """A row's name."""
    return f"{row['optimizer']}, states in {row['states']}"


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    best: list[list[Any]] = []
    every: list[list[Any]] = []
    for name in OPTIMIZERS:
        plain = [row for row in rows if row["optimizer"] == name and row["states"] == "float32"]
        if not plain:
            continue
        rate = at_best_rate(plain)[0]["learning_rate"]
        for states in STATES:
            found = [row for row in rows if row["optimizer"] == name and row["states"] == states]
            judged = [row["perplexity"] for row in found if row["learning_rate"] == rate]
            if judged:
                times = statistics.fmean(row["training_seconds"] for row in found)
                best.append([label(found[0]), f"{rate:g}", statistics.fmean(judged), spread(judged), f"{times:.0f}"])
            for other in sorted({row["learning_rate"] for row in found}):
                each = [row for row in found if row["learning_rate"] == other]
                scores = [row["perplexity"] for row in each]
                loss = statistics.fmean(row["training_losses"][-1] for row in each)
                every.append([label(each[0]), f"{other:g}", loss, statistics.fmean(scores), spread(scores)])
    return "\n".join(
        [
            *page_head("Muon and AdamW on books, at equal steps", values),
            f"Bytes; a Memformer of {rows[0]['parameters']:,} parameters (2+2 layers, width {sizes['width']}, 16 "
            f"slots); {sizes['steps']} steps of {sizes['lanes']} lanes, {sizes['step_segments']} segments of "
            f"{sizes['segment_length']} bytes; weight decay {sizes['weight_decay']:g}; tested on "
            f"{rows[0]['test_bytes']:,} bytes of other books; seeds {seeds_of(rows)}. Judged at the learning rate of "
            "the lowest training loss with states in float32; seconds of a processor.",
            "",
            markdown_table(["optimizer", "learning rate", "perplexity", "spread", "seconds"], best),
            "",
            "All rates:",
            "",
            markdown_table(["optimizer", "learning rate", "training loss", "perplexity", "spread"], every),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="default both")
    parser.add_argument("--states", nargs="+", choices=STATES, default=list(STATES), help="default both")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates; default 1e-3 2e-3 4e-3 8e-3 16e-3")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="default 0.1")
    sizes = {"steps": 600, "lanes": 16, "step_segments": 4, "segment_length": 32, "excerpts": 64, "test_length": 4096}
    add_sizes(parser, "one rate, 15 steps, short test excerpts", **sizes)
    options = parsed(parser, words)
    options.rates = options.rates or ([4e-3] if options.quick else [1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    cases = [
        {"optimizer": optimizer, "states": states, "learning_rate": rate, "seed": seed}
        for seed in options.seeds
        for optimizer in options.optimizers
        for states in options.states
        for rate in options.rates
    ]
    sizes = sizes_of(options, "weight_decay")
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page)
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
