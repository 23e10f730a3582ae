# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a residual stream in bfloat16 costs: books in precision bf16 with either `model.residual_dtype`, and in fp32.

    python benchmarks/residual_dtype.py                       about ten minutes on one CPU core
    python benchmarks/residual_dtype.py --quick --json        a minute: few steps
    python benchmarks/residual_dtype.py --seeds 0 1 2 --out benchmarks/results/DATE-cpu-residual-dtype

Rows of a seed read the same bytes in the same order and start from the same weights. Each model is tested in the
precision that it was trained in.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, run_cases, seeds_of
from benchmarks.common import page_head
from benchmarks.peers.reader import MemformerReader
from benchmarks.tasks.text import START
from benchmarks.text_runs import add_sizes, parsed, sizes_of, trained, variants_tables
from benchmarks.texts import losses_by_segment, texts
from benchmarks.training import Recipe
from memformer import MemformerConfig

NAMES = {"fp32": "fp32", "float32": "bf16, stream in float32", "compute": "bf16, stream in bfloat16"}
"""Rows of the table by `model.residual_dtype`; fp32: without autocast."""


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains and scores one model."""
    torch.manual_seed(case["seed"])
    stream: Any = case["stream"]
    config = MemformerConfig(
        options.layers[0],
        options.layers[1],
        d_model=options.width,
        num_heads=4,
        d_ff=4 * options.width,
        num_memory_slots=16,
        vocab_size=START + 1,
        start_token_id=START,
        segment_length=options.segment_length,
        residual_dtype="compute" if stream == "compute" else "float32",
    )
    reader = MemformerReader(config, name=NAMES[stream])
    if stream != "fp32":
        reader.precision = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    recipe = Recipe(options.steps, options.learning_rate, "wsd", weight_decay=0.1)
    figures, test = trained(reader, texts("books"), options, recipe, case["seed"])
    losses, _ = losses_by_segment(reader, test, options.segment_length)
    row = {
        **case,
        **figures,
        "test_loss": float(losses.mean()),
        "perplexity": math.exp(float(losses.mean())),
    }
    print(f"{NAMES[stream]}, seed {row['seed']}: {row['perplexity']:.4f}", flush=True)
    return [row]


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    first = rows[0]
    return "\n".join(
        [
            *page_head("A residual stream in bfloat16: books", values),
            f"Bytes; a Memformer of {first['parameters']:,} parameters ({sizes['layers'][0]}+{sizes['layers'][1]} "
            f"layers, width {sizes['width']}, 16 slots); {sizes['steps']} steps of {sizes['lanes']} lanes, "
            f"{sizes['step_segments']} segments of {sizes['segment_length']} bytes, peak rate "
            f"{sizes['learning_rate']:g}; tested on {first['test_bytes']:,} bytes of other books in the precision of "
            f"training; seeds {seeds_of(rows)}. *Difference*: of the test loss in nats a byte to bf16 with a stream in "
            "float32, mean over seeds and seed by seed.",
            "",
            *variants_tables(rows, "stream", NAMES, plain="float32"),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=NAMES, default=list(NAMES), help="rows; default all")
    parser.add_argument("--layers", nargs=2, type=int, default=[2, 10], help="encoder's and decoder's; default 2 10")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak; default 3e-3")
    sizes = {"steps": 250, "lanes": 8, "step_segments": 4, "segment_length": 64, "excerpts": 32, "test_length": 4096}
    add_sizes(parser, "15 steps, short test excerpts", **sizes)
    return parsed(parser, words)


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    cases = [{"stream": stream, "seed": seed} for seed in options.seeds for stream in options.streams]
    sizes = sizes_of(options, "layers", "learning_rate")
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page)
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
