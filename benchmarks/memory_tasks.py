# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the memory keeps: accuracy by distance, trained on short documents and tested on long ones.

    python benchmarks/memory_tasks.py                                about an hour on one CPU core
    python benchmarks/memory_tasks.py --quick --json                 about 1 minute: one task, few steps
    python benchmarks/memory_tasks.py --tasks copy --variants paper off --seeds 0 1 2
    python benchmarks/memory_tasks.py --tasks needle --variants off-threshold --steps 850 --schedule cosine \\
        --num-segments '{0: 5, 400: 10, 450: 20, 500: 40, 550: 80}'  documents that grow; 8 minutes of a core a seed
    python benchmarks/memory_tasks.py --out benchmarks/results/DATE-cpu-memory-tasks

Tasks (`benchmarks/tasks/`): copy after delay and key-value recall among noise; a needle in real text, as the
document's first sentence or inside the text; counting facts inside books. Trained on documents of T segments, tested
with the same questions at distances up to `--longest` tokens. Each trained model is also tested with its memory taken
away at every segment, and a model without memory slots is trained beside it: both must come down to chance as soon as
the facts are out of the segment before.

Variants of the memory: the modes of `model.memory_forgetting` (`off`, `written`, `paper`); two of them with
`model.memory_write_threshold` at 0.2 (`off-threshold`, `written-threshold`); `no-slots` has no memory. With
`--num-segments` they are trained on documents of another number of segments, or on growing ones, through all of which
the gradient goes; the rows say to how many: `off-threshold to 80`.
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

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, add_options, run_cases, seeds_of, spread
from benchmarks.common import markdown_table, page_head
from benchmarks.peers.reader import MemformerReader, parameters
from benchmarks.tasks.documents import Task, training_rollouts
from benchmarks.tasks.probe import accuracy_by_distance, until_chance
from benchmarks.tasks.symbols import Copy, KeyValueRecall
from benchmarks.tasks.text import Counting, Needle
from benchmarks.training import Recipe, train
from data_pipeline.segment_schedule import SegmentSchedule
from memformer import MemformerConfig
from memformer.models.configuration import FORGETTING

PROBE_SEED = 1_000_000  # documents of the probe; training documents have the seeds 0, 1, ...


@dataclasses.dataclass(frozen=True)
class Setup:
    """A task and the model and documents it is learned with."""

    task: Task
    model: MemformerConfig
    segment_length: int
    num_segments: int
    documents: int
    recipe: Recipe
    max_lead: int = 0
    """Filler before the facts: uniform up to this in training, half of it in the probe."""

    @property
    def training_length(self) -> int:
        """Tokens of a training document."""
        return self.segment_length * self.num_segments


def tiny(encoder_layers: int, decoder_layers: int, width: int, slots: int) -> MemformerConfig:
    """A model for the tasks; vocabulary and start token follow from the task."""
    return MemformerConfig(
        encoder_layers, decoder_layers, d_model=width, num_heads=4, d_ff=2 * width, num_memory_slots=slots
    )


SETUPS = {
    "copy": Setup(Copy(), tiny(1, 1, 64, 8), 16, 4, 32, Recipe(1500, 3e-3, "wsd")),
    "recall": Setup(KeyValueRecall(), tiny(1, 1, 64, 8), 16, 4, 32, Recipe(2000, 3e-3, "wsd")),
    "needle": Setup(Needle(), tiny(1, 1, 64, 8), 32, 5, 16, Recipe(600, 3e-3, "wsd")),
    "needle-inside": Setup(Needle(), tiny(1, 1, 64, 8), 32, 8, 16, Recipe(600, 3e-3, "wsd"), max_lead=96),
    "counting": Setup(Counting(), tiny(1, 1, 64, 8), 32, 8, 16, Recipe(1000, 3e-3, "wsd")),
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{mode: {"memory_forgetting": mode} for mode in FORGETTING},
    "off-threshold": {"memory_forgetting": "off", "memory_write_threshold": 0.2},
    "written-threshold": {"memory_forgetting": "written", "memory_write_threshold": 0.2},
    "no-slots": {"num_memory_slots": 0},
}


def make_reader(setup: Setup, variant: str, seed: int) -> MemformerReader:
    """An untrained model of a variant."""
    torch.manual_seed(seed)
    config = dataclasses.replace(
        setup.model,
        vocab_size=setup.task.vocab_size,
        start_token_id=setup.task.start_token_id,
        segment_length=setup.segment_length,
        **VARIANTS[variant],
    )
    return MemformerReader(config, name=variant)


def segments_from(text: str) -> SegmentSchedule:
    """`--num-segments`, in YAML's words as on the command line of a training run."""
    try:
        return SegmentSchedule.of(yaml.safe_load(text))
    except (ValueError, yaml.YAMLError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def label_of(variant: str, segments: SegmentSchedule | None) -> str:
    """A variant, and where it is not trained on the task's own documents, the segments of the longest."""
    return variant if segments is None else f"{variant} to {segments.most}"


def distances(setup: Setup, longest: int, trained: int) -> list[int]:
    """Powers of 2 from the question's length to `longest`, and 10 times the task's and the `trained` length."""
    least = len(setup.task.story(np.random.default_rng(0)).questions[0].tokens)
    powers = {2**i for i in range(3, 18)}
    wanted = powers | {setup.training_length * 10, trained * 10, 100_000}
    return sorted(d for d in wanted if least <= d <= longest)


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains one model; rows of accuracy by distance, with the memory and with it reset at every segment."""
    name, trained_as, seed = case["task"], case["trained_as"], case["seed"]
    setup = SETUPS[name]
    variant = next(each for each in options.variants if label_of(each, options.num_segments) == trained_as)
    schedule = options.num_segments or SegmentSchedule.of(setup.num_segments)
    training_length = schedule.most * setup.segment_length
    given = {"steps": options.steps, "schedule": options.schedule}
    recipe = dataclasses.replace(setup.recipe, **{key: value for key, value in given.items() if value})
    reader = make_reader(setup, variant, seed)
    rollouts = training_rollouts(
        setup.task,
        setup.documents,
        dict(schedule.starts),
        setup.segment_length,
        seed,
        curriculum=(schedule.until_change(0) or recipe.steps) // 3,
        max_lead=setup.max_lead,
    )
    history = train(reader, rollouts, recipe, lambda line: print(f"{name} seed {seed} {line}", flush=True))
    rows = []
    for reset in (False, True) if variant != "no-slots" else (False,):
        reader.memory_reset = reset
        asked = distances(setup, options.longest, training_length)
        points = accuracy_by_distance(
            reader,
            setup.task,
            asked,
            setup.segment_length,
            options.documents,
            PROBE_SEED + seed,
            lead=setup.max_lead // 2,
        )
        curve = until_chance(points, setup.task.chance)
        row = {
            **case,
            "variant": "memory reset" if reset else trained_as,
            "chance": setup.task.chance,
            "parameters": parameters(reader),
            "training_length": training_length,
            "num_segments": dict(schedule.starts),
            "segment_length": setup.segment_length,
            "training_tokens": schedule.total(recipe.steps) * setup.documents * setup.segment_length,
            "recipe": dataclasses.asdict(recipe),
            "model": reader.module.config.to_dict(),
            "training_losses": history.losses,
            "training_seconds": history.seconds,
            "by_distance": [dataclasses.asdict(point) | {"accuracy": point.share} for point in curve],
        }
        if reader.module.writer is not None:
            row["bias_norm"] = reader.module.forget.bias.norm(dim=-1).mean().item()
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One line for people."""
    curve = "  ".join(f"{point['distance']}:{point['accuracy']:.2f}" for point in row["by_distance"])
    return f"{row['task']:>9} {row['variant']:<14} seed {row['seed']}  {curve}"


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, least and largest accuracy over the seeds, by task, variant and distance."""
    cells: dict[tuple[str, str, str, int], list[float]] = {}
    for row in rows:
        for point in row["by_distance"]:
            key = (row["task"], row["trained_as"], row["variant"], point["distance"])
            cells.setdefault(key, []).append(point["accuracy"])
    return [
        {
            "task": task,
            "trained_as": trained,
            "variant": variant,
            "distance": distance,
            "accuracy": statistics.fmean(found),
            "least": min(found),
            "most": max(found),
            "seeds": len(found),
        }
        for (task, trained, variant, distance), found in cells.items()
    ]


def share(cell: dict[str, Any]) -> str:
    """The mean of the seeds, and the worst where it is another."""
    mean, least = f"{cell['accuracy']:.2f}", f"{cell['least']:.2f}"
    return mean if mean == least else f"{mean} ({least})"


def page(values: dict[str, Any]) -> str:
    """Sums the rows up in the values, and the result page in Markdown."""
    values["summary"] = summary(values["rows"])
    parts = [
        *page_head(f"What the memory keeps: {', '.join(dict.fromkeys(row['task'] for row in values['rows']))}", values),
        "Share of right answer tokens by distance between the last fact and the answer, in tokens; mean over the "
        "seeds, the worst seed's in brackets where it is another. A curve that has come down to chance is "
        "not followed further. *Memory reset*: the same model, its memory taken away at every segment.",
    ]
    for task in dict.fromkeys(row["task"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["task"] == task]
        cells = [cell for cell in values["summary"] if cell["task"] == task]
        columns = sorted({cell["distance"] for cell in cells})
        first = rows[0]
        table = []
        for trained, variant in dict.fromkeys((cell["trained_as"], cell["variant"]) for cell in cells):
            found = {
                cell["distance"]: share(cell)
                for cell in cells
                if (cell["trained_as"], cell["variant"]) == (trained, variant)
            }
            label = variant if variant == trained else f"{trained}, {variant}"
            table.append([label, *(found.get(distance, "") for distance in columns)])
        parts += [
            "",
            f"## {task}",
            "",
            f"Trained on documents of {first['training_length']} tokens ({first['segment_length']} a segment), "
            f"{first['training_tokens'] / 1e6:.1f} M tokens; {first['parameters']:,} parameters; chance "
            f"{first['chance']:.3f}; seeds {seeds_of(rows)}.",
            "",
            markdown_table(["distance", *map(str, columns)], table),
            *grown(rows),
        ]
    if values["notes"]:
        parts += ["", values["notes"]]
    return "\n".join(parts)


def grown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What models were trained on that were not trained on as many tokens as the first of the rows, a line each."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["training_tokens"] != rows[0]["training_tokens"]:
            found.setdefault(row["trained_as"], {})[row["seed"]] = row
    lines = []
    for trained, by_seed in found.items():
        one, seconds = next(iter(by_seed.values())), [row["training_seconds"] for row in by_seed.values()]
        lines.append(
            f"- `{trained}`: trained on documents of {SegmentSchedule.of(one['num_segments']).words()} segments, up to "
            f"{one['training_length']:,} tokens each, {one['training_tokens'] / 1e6:.1f} M tokens in all; "
            f"{spread(seconds, 0) or round(seconds[0])} s of a core; seeds {seeds_of(list(by_seed.values()))}."
        )
    return ["", *lines] if lines else []


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=SETUPS, default=list(SETUPS), help="default: all")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the task's)")
    parser.add_argument(
        "--num-segments",
        type=segments_from,
        help="segments of a training document, or as of data.num_segments '{0: 5, 400: 10}' (default: the task's)",
    )
    parser.add_argument("--schedule", choices=("cosine", "wsd"), help="of the learning rate (default: the task's)")
    parser.add_argument("--longest", type=int, default=100_000, help="largest distance in tokens; default 100000")
    parser.add_argument("--documents", type=int, default=64, help="documents of a probe; default 64")
    add_options(parser, "copy alone, 150 steps, distances up to 1024")
    options = parser.parse_args(words)
    if options.quick:
        options.tasks, options.variants, options.seeds = ["copy"], ["paper", "no-slots"], [0]
        options.steps, options.longest = options.steps or 150, 1024
    if options.num_segments and (last := options.num_segments.starts[-1][0]) and (options.steps or 0) <= last:
        parser.error(f"--num-segments changes after {last} steps: give --steps, more than that")
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    cases = [
        {"task": task, "trained_as": label_of(variant, options.num_segments), "seed": seed}
        for task, variant, seed in itertools.product(options.tasks, options.variants, options.seeds)
    ]
    sizes = {"longest": options.longest, "documents": options.documents}
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page)
    if options.json:
        print(json.dumps({"summary": values["summary"], "hardware": values["hardware"], "commit": values["commit"]}))


if __name__ == "__main__":
    main()
