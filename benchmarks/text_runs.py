# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Models trained on excerpts of documents and tested on those of others: options, the run, and a table of variants."""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Row, add_options, spread
from benchmarks.common import markdown_table
from benchmarks.peers.reader import Reader, parameters
from benchmarks.texts import Texts, excerpts, rollouts
from benchmarks.training import Recipe, train

SIZES = ("steps", "step_segments", "lanes", "segment_length", "length", "excerpts", "test_length", "width")
TEST_SEED = 1_000_000  # of the excerpts that are tested
QUICK = {"steps": 15, "test_length": 512}
QUICK_EXCERPTS = 8


def add_sizes(parser: argparse.ArgumentParser, quick: str, **defaults: int) -> None:
    """The options that are called as in `SIZES`, and those of `cases.add_options`.

    Args:
        parser: Of a script.
        quick: What --quick changes.
        defaults: Of steps, step_segments, lanes, segment_length, excerpts and test_length.
    """
    words = {
        "steps": "optimizer steps",
        "step_segments": "segments of a lane in a step",
        "lanes": "B",
        "segment_length": "S in bytes",
        "length": "bytes of a training excerpt",
        "excerpts": "of the test",
        "test_length": "bytes of each",
        "width": "d_model",
    }
    defaults = {"length": 2048, "width": 64} | defaults
    for name in SIZES:
        value = defaults[name]
        option = f"--{name.replace('_', '-')}"
        # What --quick gives another value has its own only once it is known whether that was asked for.
        parser.add_argument(
            option, type=int, default=None if name in QUICK else value, help=f"{words[name]}; default {value}"
        )
    add_options(parser, quick)
    parser.set_defaults(usual={name: defaults[name] for name in QUICK})


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The options of a parser with `add_sizes`."""
    options = parser.parse_args(words)
    if options.quick:
        options.excerpts = QUICK_EXCERPTS
    for name, usual in options.usual.items():
        setattr(options, name, getattr(options, name) or (QUICK[name] if options.quick else usual))
    return options


def sizes_of(options: argparse.Namespace, *more: str) -> dict[str, int]:
    """The sizes for the result file, and other options."""
    return {name: getattr(options, name) for name in (*SIZES, *more)}


def trained(
    reader: Reader, documents: Texts, options: argparse.Namespace, recipe: Recipe, seed: int
) -> tuple[Row, torch.Tensor]:
    """Trains a model; what a row says of that, and the excerpts to test it on, int64 [excerpts, test_length].

    Args:
        reader: The model.
        documents: Those to train on, and the others.
        options: With the sizes.
        recipe: How.
        seed: Of the excerpts that are trained on.
    """
    data = rollouts(
        documents.trained, options.lanes, options.length, options.step_segments, options.segment_length, seed
    )
    history = train(reader, data, recipe, lambda line: print(line, flush=True))
    test = excerpts(documents.held_out, options.excerpts, options.test_length, np.random.default_rng(TEST_SEED))
    row = {
        "parameters": parameters(reader),
        "training_bytes": options.steps * options.lanes * options.step_segments * options.segment_length,
        "test_bytes": test.numel(),
        "training_seconds": history.seconds,
        "training_losses": history.losses,
    }
    return row, test


def variants_tables(rows: Sequence[Mapping[str, Any]], key: str, names: Mapping[str, str], plain: str) -> list[str]:
    """Two tables in Markdown of variants of a precision, with a line between: test losses, and losses in training.

    Args:
        rows: With `test_loss`, `perplexity`, `training_losses` and `seed`.
        key: What tells the variants apart.
        names: Of each variant, in their order.
        plain: The variant that the others are compared with, seed by seed.
    """
    table, curves = [], []
    usual = {row["seed"]: row["test_loss"] for row in rows if row[key] == plain}
    for variant, name in names.items():
        found = [row for row in rows if row[key] == variant]
        if not found:
            continue
        scores = [row["perplexity"] for row in found]
        differences = [row["test_loss"] - usual[row["seed"]] for row in found if row["seed"] in usual]
        mean = f"{statistics.fmean(differences):+.4f}" if differences else ""
        each = ", ".join(f"{difference:+.4f}" for difference in differences)
        table.append([name, statistics.fmean(scores), spread(scores), mean, each])
        tenths = zip(*(row["training_losses"] for row in found), strict=True)
        curves.append([name, *(statistics.fmean(tenth) for tenth in tenths)])
    return [
        markdown_table(["precision", "perplexity", "spread", "difference", "by seed"], table),
        "",
        "Training loss of each tenth of the steps, means over seeds:",
        "",
        markdown_table(["precision", *map(str, range(1, len(curves[0])))], curves),
    ]
