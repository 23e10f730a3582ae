# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Models trained on excerpts of documents and tested on those of others: the options of such scripts, and the run."""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.cases import Row, add_options
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
