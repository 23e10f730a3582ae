# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The plots of docs/results/, from the values of a result file. A script without an entry here has none."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.cases import at_best_rate
from benchmarks.long_text import label as of_horizon
from benchmarks.plots import Level, Plot, Series

MEBI = 2**20


def plots_of(script: str, values: Mapping[str, Any]) -> Sequence[Plot]:
    """The plots of a result file of benchmarks/SCRIPT.py."""
    return PLOTS[script](values) if script in PLOTS else []


def lines(
    rows: Sequence[Mapping[str, Any]], label: Callable[[Mapping[str, Any]], str], x: str, y: str, scale: float = 1
) -> list[Series]:
    """A series for each label; several rows of one x (seeds) become their mean."""
    made = []
    for name in dict.fromkeys(label(row) for row in rows):
        found: dict[float, list[float]] = {}
        for row in rows:
            if label(row) == name and row.get(y) is not None:
                found.setdefault(row[x], []).append(row[y] / scale)
        made.append(Series(name, sorted(found), [statistics.fmean(found[each]) for each in sorted(found)]))
    return made


def replay(values: Mapping[str, Any]) -> list[Plot]:
    """Speed and memory by rollout length."""
    plots = []
    for shape in dict.fromkeys(row["shape"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["shape"] == shape]
        steps = [row["num_segments"] for row in rows]
        name = shape.replace("_", "+")
        named = (
            ("memory replay", "speed_mrbp"),
            ("its limit", "speed_limit"),
            ("checkpointing", "speed_checkpointing"),
        )
        speeds = [Series(label, steps, [row[key] for row in rows]) for label, key in named]
        one = [Level(1, "BPTT, 1x")]
        plots.append(Plot(f"{name}: speed", "T, segments a rollout", "speed, BPTT's is 1", speeds, True, levels=one))
        bytes_ = [
            Series(label, steps, [row[f"allocated_bytes_{key}"] / MEBI for row in rows])
            for label, key in (("memory replay", "mrbp"), ("BPTT", "bptt"), ("checkpointing", "checkpointing"))
        ]
        plots.append(Plot(f"{name}: all tensors", "T, segments a rollout", "MiB", bytes_, log_x=True, log_y=True))
    return plots


def training_peers(values: Mapping[str, Any]) -> list[Plot]:
    """Tokens a second and memory by rollout length."""
    plots = []
    for size in dict.fromkeys(row["size"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["size"] == size]
        if len({row["num_segments"] for row in rows}) > 2:
            for key, word, scale in (
                ("tokens_per_second", "tokens/s", 1),
                ("allocated_bytes", "peak memory, MiB", MEBI),
            ):
                series = lines(rows, lambda row: row["method"], "num_segments", key, scale)
                plots.append(Plot(size, "T, segments a rollout", word, series, log_x=True, log_y=scale > 1))
    return plots


def inference(values: Mapping[str, Any]) -> list[Plot]:
    """Against Transformer-XL by its memory, and by context."""
    plots = []
    for size in dict.fromkeys(row["size"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["size"] == size and row["memory"]]

        def label(row: Mapping[str, Any]) -> str:
            several = f" x {row['batch']}" if row["batch"] > 1 else ""
            return f"{row['model']}, {row['task']}{several}"

        for key, word in (("memory_ratio", "peak memory"), ("time_ratio", "time a token")):
            series = lines(rows, label, "memory", key)
            about = f"{word}, times ours"
            ours = [Level(1, "ours, 1x")]
            plots.append(Plot(size, "memory of Transformer-XL, tokens", about, series, True, True, ours))
    for size in dict.fromkeys(row["size"] for row in values["contexts"]):
        rows = [row for row in values["contexts"] if row["size"] == size]
        for key, word, scale in (("peak_bytes", "peak memory, MiB", MEBI), ("milliseconds_a_token", "ms a token", 1)):
            series = lines(rows, lambda row: row["model"], "context", key, scale)
            plots.append(Plot(f"{size}, reading", "tokens of context", word, series, log_x=True, log_y=True))
    return plots


def memory_tasks(values: Mapping[str, Any]) -> list[Plot]:
    """Accuracy by distance."""
    chances = {row["task"]: row["chance"] for row in values["rows"]}
    plots = []
    for task in dict.fromkeys(row["task"] for row in values["summary"]):
        rows = [row for row in values["summary"] if row["task"] == task]
        series = lines(rows, _trained, "distance", "accuracy")
        chance = [Level(chances[task], "chance")]
        about = "distance in tokens", "share of right answers"
        plots.append(Plot(task, *about, series, log_x=True, levels=chance, share=True))
    return plots


def _trained(row: Mapping[str, Any]) -> str:
    trained, variant = row["trained_as"], row["variant"]
    return variant if variant == trained else f"{trained}, {variant}"


def memory_slots(values: Mapping[str, Any]) -> list[Plot]:
    """What a write leaves of the slots, by write, and how long a moved memory stays moved."""
    columns, moved = values["inspection"]["columns"], values["inspection"]["perturbation"]
    means = [
        Series(words, columns["first_write"], [statistics.fmean(slots) for slots in columns[name]])
        for name, words in (("self_weight", "weight on itself"), ("retention", "left after the write"))
    ]
    start = moved["all_slots"][0]
    left = [
        Series(words, list(range(len(moved[name]))), [each / start for each in moved[name]])
        for name, words in (("all_slots", "measured"), ("expected_all_slots", "by what a write leaves"))
    ]
    half = [Level(0.5, "half")]
    return [
        Plot(
            "What is left of a slot", "write (segment of the document)", "share, mean of the slots", means, share=True
        ),
        Plot("A moved memory", "writes since", "difference / its start", left, log_y=True, levels=half),
    ]


def long_text(values: Mapping[str, Any]) -> list[Plot]:
    """By position in the excerpt, and by horizon."""
    rows = values["rows"]
    places = [{"label": of_horizon(row), **place} for row in rows for place in row["by_position"]]
    by_position = lines(places, lambda place: str(place["label"]), "to", "perplexity")
    with_slots = [row for row in rows if row["slots"]]
    several = len({row.get("forgetting", "paper") for row in with_slots}) > 1

    def kept(row: Mapping[str, Any]) -> str:
        return f", {row['forgetting']}" if several else ""

    by_horizon = [
        *lines(with_slots, lambda row: f"memory carried{kept(row)}", "horizon", "perplexity"),
        *lines(with_slots, lambda row: f"memory reset{kept(row)}", "horizon", "perplexity_memory_reset"),
    ]
    return [
        Plot("By horizon", "T, segments through which the gradient goes", "perplexity", by_horizon, log_x=True),
        Plot("By position", "bytes of the excerpt that have been read", "perplexity", by_position, log_x=True),
    ]


def pixels(values: Mapping[str, Any]) -> list[Plot]:
    """By the size of the memory, each model at its best learning rate."""
    rows = []
    for name in dict.fromkeys(row["name"] for row in values["rows"]):
        model, _, size = name.partition(", memory ")
        memory, _, at = size.partition(", ")
        if memory:
            model = f"{model}, {at}" if at else model
            best = at_best_rate([row for row in values["rows"] if row["name"] == name])
            rows += [{"model": model, "memory": int(memory), "perplexity": row["perplexity"]} for row in best]
    series = lines(rows, lambda row: str(row["model"]), "memory", "perplexity")
    return [Plot("Perplexity", "slots or cached tokens, before the divisor", "perplexity a pixel", series, log_x=True)]


def peers_text(values: Mapping[str, Any]) -> list[Plot]:
    """By position in the excerpt, each model at its best learning rate."""
    rows, length = [], values["sizes"]["segment_length"]
    for variant in dict.fromkeys(row["variant"] for row in values["rows"]):
        for row in at_best_rate([row for row in values["rows"] if row["variant"] == variant]):
            for first, end in pairwise([0, *(2**power for power in range(13) if 2**power <= len(row["by_segment"]))]):
                mean = math.exp(statistics.fmean(row["by_segment"][first:end]))
                rows.append({"variant": variant, "to": end * length, "perplexity": mean})
    series = lines(rows, lambda row: str(row["variant"]), "to", "perplexity")
    return [Plot("By position", "bytes of the excerpt that have been read", "perplexity", series, log_x=True)]


PLOTS: dict[str, Callable[[Mapping[str, Any]], Sequence[Plot]]] = {
    "replay": replay,
    "training_peers": training_peers,
    "inference": inference,
    "memory_tasks": memory_tasks,
    "memory_slots": memory_slots,
    "long_text": long_text,
    "pixels": pixels,
    "peers_text": peers_text,
}
