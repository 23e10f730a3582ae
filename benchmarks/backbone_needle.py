# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A needle far beyond the training length, found by a pretrained backbone with a memory.

    python benchmarks/backbone_needle.py --seeds 0 1 2           about 15 minutes on one CPU core
    python benchmarks/backbone_needle.py --quick --json          under a minute: few steps
    python benchmarks/backbone_needle.py --device cuda --seeds 0 1 2 --out benchmarks/results/DATE-gpu-backbone-needle

A byte-level Llama of 181,000 parameters reads books first. A memory is then added and all of it is trained on
documents of 160 bytes (5 segments of 32) that tell a digit once and ask for it (`benchmarks/tasks`), and asked at the
training length, 10 and 30 times that. Beside each: the same model with its memory taken away at every segment, and the
plain backbone, trained alike; both see a quarter of the segment before, and must be at chance. `slots` are written
behind the last layer, `slots-half` half-way up.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, add_options, run_cases, seeds_of
from benchmarks.common import markdown_table, page_head
from benchmarks.memory_tasks import PROBE_SEED, SETUPS, share
from benchmarks.peers import backbone
from benchmarks.peers.reader import parameters
from benchmarks.tasks.documents import training_rollouts
from benchmarks.tasks.probe import accuracy_by_distance
from benchmarks.training import train

SETUP = SETUPS["needle"]
STEPS = {"associative": 300, "slots": 600, "slots-half": 600, "plain": 300, "tokens": 600}
TIMES = (1, 10, 30)
MODEL = ("kind", "learning_rate", "reset")
"""What rows of several seeds have in common."""


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains one model; a row with its memory and one with it reset."""
    kind, seed = case["kind"], case["seed"]
    weights = backbone.pretrained(options.pretraining_steps, options.device)
    reader = backbone.reader_of(kind, weights, SETUP.segment_length, seed)
    recipe = dataclasses.replace(SETUP.recipe, steps=options.steps or STEPS[kind], learning_rate=case["learning_rate"])
    rollouts = training_rollouts(
        SETUP.task, SETUP.documents, SETUP.num_segments, SETUP.segment_length, seed, curriculum=recipe.steps // 3
    )
    history = train(reader, rollouts, recipe, lambda line: print(f"seed {seed} {line}", flush=True))
    rows_k, width = reader.module.config.memory_shape
    rows = []
    for reset in (False, True) if kind != "plain" else (True,):
        reader.memory_reset = reset
        asked = [times * SETUP.training_length for times in options.times]
        probed = accuracy_by_distance(
            reader, SETUP.task, asked, SETUP.segment_length, options.documents, PROBE_SEED + seed
        )
        row = {
            **case,
            "reset": reset,
            "steps": recipe.steps,
            "parameters": parameters(reader),
            "memory_numbers": 0 if kind == "plain" else rows_k * width,
            "training_losses": history.losses,
            "training_seconds": history.seconds,
            "by_distance": [dataclasses.asdict(point) | {"accuracy": point.share} for point in probed],
        }
        rows.append(row)
        found = "  ".join(f"{point['distance']}:{point['accuracy']:.2f}" for point in row["by_distance"])
        print(f"{kind:>12} {'reset' if reset else 'kept':<6} seed {seed}  {found}", flush=True)
    return rows


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean and least accuracy over the seeds, by model, mode and distance."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        for point in row["by_distance"]:
            key = (*(row[name] for name in MODEL), point["distance"])
            cells.setdefault(key, []).append(point["accuracy"])
    return [
        dict(zip((*MODEL, "distance"), key, strict=True)) | {"accuracy": statistics.fmean(found), "least": min(found)}
        for key, found in cells.items()
    ]


def page(values: dict[str, Any]) -> str:
    """Sums the rows up in the values, and the result page in Markdown."""
    values["summary"] = summary(values["rows"])
    sizes, table = values["sizes"], []
    for key in dict.fromkeys(tuple(row[name] for name in MODEL) for row in values["rows"]):
        kind, rate, reset = key
        rows = [row for row in values["rows"] if tuple(row[name] for name in MODEL) == key]
        name = kind if kind == "plain" or not reset else f"{kind}, reset"
        found = [share(cell) for cell in values["summary"] if tuple(cell[name] for name in MODEL) == key]
        table.append([name, f"{rate:g}", seeds_of(rows), rows[0]["steps"], f"{rows[0]['memory_numbers']:,}", *found])
    asked = [f"{point['distance']:,} bytes" for point in values["rows"][0]["by_distance"]]
    return "\n".join(
        [
            *page_head("A needle far beyond the training length, with a pretrained backbone", values),
            f"A Llama of 4 layers, width 64, on bytes, pretrained for {sizes['pretraining_steps']} steps on books; "
            f"then trained with its memory on documents of {SETUP.training_length} bytes, {SETUP.documents} a step, "
            f"{SETUP.segment_length} a segment, overlap a quarter of that. "
            f"Share of right digits of {sizes['documents']} documents by distance between "
            "telling and asking; mean over the seeds, the worst in brackets where it is another; chance "
            f"{SETUP.task.chance:.2f}. *Reset*: the same model, its memory taken "
            "away at every segment. *Plain*: the backbone alone, trained alike.",
            "",
            markdown_table(["memory", "peak rate", "seeds", "steps", "numbers a lane", *asked], table),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=STEPS, help="default: associative, slots-half, plain")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 600 of slots and tokens, 300 of others)")
    parser.add_argument("--learning-rate", nargs="+", type=float, default=[1e-3], help="peaks; default 1e-3")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    parser.add_argument("--pretraining-steps", type=int, help=f"default {backbone.PRETRAINING.steps}")
    parser.add_argument("--times", nargs="+", type=int, default=list(TIMES), help="of the training length; 1 10 30")
    parser.add_argument("--documents", type=int, default=64, help="documents of a probe; default 64")
    add_options(parser, "associative and plain, 10 steps, up to 10 times the training length")
    options = parser.parse_args(words)
    options.kinds = options.kinds or (
        ["associative", "plain"] if options.quick else ["associative", "slots-half", "plain"]
    )
    if options.quick:
        options.steps, options.documents, options.times = options.steps or 10, 16, [1, 10]
    options.pretraining_steps = options.pretraining_steps or (10 if options.quick else backbone.PRETRAINING.steps)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    cases = [
        {"kind": kind, "learning_rate": rate, "seed": seed}
        for kind, rate, seed in itertools.product(options.kinds, options.learning_rate, options.seeds)
    ]
    names = ("pretraining_steps", "times", "documents")
    sizes = {name: getattr(options, name) for name in names}
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page, torch.device(options.device))
    if options.json:
        print(json.dumps({"summary": values["summary"], "hardware": values["hardware"], "commit": values["commit"]}))


if __name__ == "__main__":
    main()
