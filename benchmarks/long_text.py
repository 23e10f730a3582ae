# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Does replay pay? Perplexity of held-out documents by the horizon T, by position, with and without memory.

    python benchmarks/long_text.py                            books, about 35 minutes on one CPU core
    python benchmarks/long_text.py --documents packages       code: an installed Python package is a document
    python benchmarks/long_text.py --documents DIR            packages or *.txt(.gz) files of your own
    python benchmarks/long_text.py --quick --json             about a minute: T = 1 and 4, few steps
    python benchmarks/long_text.py --jobs 2 --out benchmarks/results/DATE-cpu-long-text

All rows read the same bytes in the same lanes and the same optimizer steps, `--step-segments` segments each. They
differ in nothing but how far the gradient goes back: a step's segments are replayed T at a time, the memory is carried
over every bound, its gradient is not. At T = 1 there is none, and the writer learns nothing. `no slots` is a model
without memory. *Reset* is the same model with its memory reset at every segment; the segment before stays in view.

Segments are short so that there is something to remember: a model without memory sees at most 2 S bytes.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, run_cases, seeds_of, spread
from benchmarks.common import markdown_table, page_head
from benchmarks.peers.reader import MemformerReader
from benchmarks.tasks.text import START
from benchmarks.text_runs import add_sizes, parsed, sizes_of, trained
from benchmarks.texts import losses_by_segment, texts
from benchmarks.training import Recipe
from memformer import MemformerConfig
from memformer.models.configuration import FORGETTING


def make_reader(options: argparse.Namespace, case: Case) -> MemformerReader:
    """An untrained model."""
    torch.manual_seed(case["seed"])
    config = MemformerConfig(
        2,
        2,
        d_model=options.width,
        num_heads=4,
        d_ff=2 * options.width,
        num_memory_slots=case["slots"],
        memory_forgetting=case["forgetting"] or "off",
        vocab_size=START + 1,
        start_token_id=START,
        segment_length=options.segment_length,
    )
    return MemformerReader(config, name=label(case))


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains and scores one model."""
    reader = make_reader(options, case)
    recipe = Recipe(options.steps, options.learning_rate, "wsd", horizon=case["horizon"])
    figures, test = trained(reader, texts(options.documents), options, recipe, case["seed"])
    kept, _ = losses_by_segment(reader, test, options.segment_length)
    reader.memory_reset = True
    reset, _ = losses_by_segment(reader, test, options.segment_length)
    row = {
        **case,
        **figures,
        "perplexity": math.exp(float(kept.mean())),
        "perplexity_memory_reset": math.exp(float(reset.mean())),
        "by_position": bands(kept, reset, options.segment_length),
    }
    print(f"{label(row)} seed {row['seed']}: {row['perplexity']:.3f}, reset {row['perplexity_memory_reset']:.3f}")
    return [row]


def bands(kept: torch.Tensor, reset: torch.Tensor, segment_length: int) -> list[dict[str, Any]]:
    """Perplexity in both modes of segments 0, 1, 2-3, 4-7, ... from their mean losses [segments]."""
    bounds = [0, 1]
    while bounds[-1] < len(kept):
        bounds.append(min(2 * bounds[-1], len(kept)))
    return [
        {
            "from": first * segment_length,
            "to": end * segment_length,
            "perplexity": math.exp(float(kept[first:end].mean())),
            "perplexity_memory_reset": math.exp(float(reset[first:end].mean())),
        }
        for first, end in itertools.pairwise(bounds)
    ]


def label(row: Case) -> str:
    """A row's name."""
    if not row["slots"]:
        return "no slots"
    return f"T = {row['horizon']}, {row.get('forgetting', 'paper')}"  # rows of before there was a choice have none


def means_by_position(rows: Sequence[Row], key: str) -> list[str]:
    """Means over seeds."""
    return [
        f"{statistics.fmean(place[key] for place in places):.2f}"
        for places in zip(*(row["by_position"] for row in rows), strict=True)
    ]


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    table, places = [], []
    for name in dict.fromkeys(map(label, rows)):
        found = [row for row in rows if label(row) == name]
        each = [row["perplexity"] for row in found]
        reset = statistics.fmean(row["perplexity_memory_reset"] for row in found)
        gain = f"{100 * (reset / statistics.fmean(each) - 1):+.1f} %" if found[0]["slots"] else ""
        table.append([name, statistics.fmean(each), spread(each), reset if gain else "", gain])
        places.append([name, *means_by_position(found, "perplexity")])
    with_slots = [row for row in rows if row["slots"]]
    longest = [row for row in with_slots if row["horizon"] == max(each["horizon"] for each in with_slots)]
    if longest:
        places.append([f"{label(longest[0])}, reset", *means_by_position(longest, "perplexity_memory_reset")])
    heads = [f"{place['from']:,} to {place['to'] - 1:,}" for place in rows[0]["by_position"]]
    first = rows[0]
    return "\n".join(
        [
            *page_head(f"Long text by horizon: {sizes['name']}", values),
            f"Bytes; 2+2 layers, width {sizes['width']}, {sizes['slots']} slots; segments of "
            f"{sizes['segment_length']} bytes, {sizes['lanes']} lanes, {sizes['step_segments']} segments of each a "
            f"step, {sizes['steps']} steps, {first['training_bytes'] / 1e6:.1f} M bytes of {sizes['trained']} "
            f"documents in excerpts of {sizes['length']:,}; tested on {first['test_bytes']:,} bytes of "
            f"{sizes['held_out']} other documents in excerpts of {sizes['test_length']:,}; seeds {seeds_of(rows)}. "
            "Every row has read the same bytes in the "
            "same order. *Reset*: the same model, its memory reset at every segment; *gain*: how much higher that "
            "perplexity is.",
            "",
            markdown_table(["gradient through, forgetting", "perplexity", "spread", "reset", "gain"], table),
            "",
            "Perplexity by position in the excerpt, in bytes:",
            "",
            markdown_table(["gradient through, forgetting", *heads], places),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", default="books", metavar="SOURCE", help="books, packages or a directory")
    parser.add_argument("--horizons", nargs="+", type=int, help="T; default 1 2 4 8 16")
    parser.add_argument("--slots", type=int, default=16, help="memory slots; default 16")
    parser.add_argument("--forgetting", nargs="+", choices=FORGETTING, default=["off"], help="modes; default off")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak; default 4e-3")
    sizes = {"steps": 1200, "lanes": 16, "step_segments": 16, "segment_length": 16, "excerpts": 64, "test_length": 8192}
    add_sizes(parser, "T = 1 and 4, 15 steps, short test excerpts", **sizes)
    options = parsed(parser, words)
    options.horizons = options.horizons or ([1, 4] if options.quick else [1, 2, 4, 8, 16])
    for horizon in options.horizons:
        if horizon < 1 or options.step_segments % horizon:
            parser.error(f"--horizons {horizon}: choose a divisor of --step-segments {options.step_segments}")
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    documents = texts(options.documents)
    sizes = {"name": documents.name, "trained": len(documents.trained), "held_out": len(documents.held_out)}
    if options.documents != "books":
        sizes["digest"] = documents.digest
    sizes |= sizes_of(options, "slots", "learning_rate")
    cases = [
        {"horizon": horizon, "slots": slots, "forgetting": forgetting, "seed": seed}
        for seed in options.seeds
        for horizon, slots, forgetting in [
            (options.step_segments, 0, None),
            *((each, options.slots, mode) for each in options.horizons for mode in options.forgetting),
        ]
    ]
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page)
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
