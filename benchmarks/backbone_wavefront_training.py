# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One rollout of few lanes trained along the diagonals of segments and layers, or one segment after another.

    python benchmarks/backbone_wavefront_training.py                    about 5 minutes on one CPU core
    python benchmarks/backbone_wavefront_training.py --quick --json     some seconds; the last line is one JSON object

The same gradients of the same model, with a matrix at each layer, in these ways:

* replay: `memory_replay_backward`, a segment's graph at a time.
* BPTT: `bptt_backward`, the graphs of all segments.
* windows of W: `windowed_replay_backward` of a `BackboneWavefront`, the graphs of W segments, forward and back along
  diagonals; *again*: their inputs alone are kept, and each diagonal is run once more in the backward.

Then `memformer train` by replay and by one window of all segments (`training.wavefront_window`), turn by turn, as its
metrics have it: all that a step needs.

Times are processor time of one thread on a CPU, medians of interleaved repetitions; quotients are medians over
neighbouring runs. *Kept* is the most that autograd keeps for the backward, without weights and inputs; of *again* it
cannot be seen. What a GPU would make of it is not measured here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.activations import SavedActivations
from benchmarks.common import (
    ROOT,
    add_measuring_options,
    interleaved_seconds,
    markdown_table,
    median_ratio,
    page_head,
    provenance,
    tell,
)
from data_pipeline import build_dataset
from memformer.models.backbone import Backbone, BackboneConfig, MemoryConfig
from memformer.models.backbone.wavefront import BackboneWavefront
from memformer.replay import Carry, Rollout, bptt_backward, memory_replay_backward, windowed_replay_backward

IDS = 512
BASE = {"layers": 8, "width": 256, "segment_length": 64, "segments": 16, "lanes": 1}
CHANGES: list[dict[str, Any]] = [{}, {"segment_length": 16}, {"width": 128, "segment_length": 16}]
QUICK: list[dict[str, Any]] = [{"segment_length": 8, "segments": 4, "width": 64, "layers": 2}]
Way = Callable[[], Any]


def ways_of(model: Backbone, rollout: Rollout, carry: Carry, windows: list[int]) -> dict[str, Way]:
    """What is timed, by name."""
    whole = float(rollout.lengths.sum())
    given = {"rollout": rollout, "carry": carry, "denominator": whole}
    ways: dict[str, Way] = {
        "replay": partial(memory_replay_backward, model, **given),
        "BPTT": partial(bptt_backward, model, **given),
    }
    for window in windows:
        for again in (False, True):
            cell = BackboneWavefront(model, recompute=again)
            name = f"windows of {window}{', again' if again else ''}"
            ways[name] = partial(windowed_replay_backward, cell, window=window, **given)
    return ways


def gradient_of(model: Backbone, way: Way) -> torch.Tensor:
    """Of all parameters, one behind the other."""
    model.zero_grad()
    way()
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def measure(case: dict[str, Any], repetitions: int) -> list[dict[str, Any]]:
    """The rows of one case."""
    torch.manual_seed(0)
    lanes, count, length = case["lanes"], case["segments"], case["segment_length"]
    model = Backbone(config_of(case))
    for name, parameter in model.named_parameters():
        if name.endswith(".value.weight"):  # what is learned is no longer nought
            torch.nn.init.normal_(parameter, std=case["width"] ** -0.5)
    resets = torch.zeros(lanes, count, dtype=torch.bool)
    resets[:, 0] = True
    rollout = Rollout.of(torch.randint(IDS - 1, (lanes, count, length)), torch.full((lanes, count), length), resets)
    carry = Carry.empty(model.initial_memory(lanes), length)
    ways = ways_of(model, rollout, carry, [4, count] if count > 4 else [count])
    expected = gradient_of(model, ways["replay"])
    differences = {
        name: float((gradient_of(model, way) - expected).norm() / expected.norm()) for name, way in ways.items()
    }
    kept = {}
    for name, way in ways.items():
        if not name.endswith("again"):
            with SavedActivations((*model.parameters(), rollout.tokens, carry.memory, carry.tokens)) as saved:
                way()
            kept[name] = saved.peak_bytes
    times = interleaved_seconds(ways, repetitions, torch.device("cpu"), time.process_time)
    return [
        {
            **case,
            "way": name,
            "milliseconds": 1e3 * statistics.median(each),
            "replay_by_way": median_ratio(times["replay"], each),
            "bptt_by_way": median_ratio(times["BPTT"], each),
            "kept_bytes": kept.get(name),
            "difference": differences[name],
        }
        for name, each in times.items()
    ]


def config_of(case: dict[str, Any]) -> BackboneConfig:
    """A Llama with a matrix at each layer."""
    width = case["width"]
    sizes = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": case["layers"],
        "num_attention_heads": max(1, width // 64),
        "num_key_value_heads": max(1, width // 128),
        "max_position_embeddings": 1024,
    }
    ids = {"vocab_size": IDS, "start_token_id": IDS - 1}
    return BackboneConfig(backbone=sizes, memory=MemoryConfig(), segment_length=case["segment_length"], **ids)


def runs(case: dict[str, Any], repetitions: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """`memformer train` by replay and by a window, at ZeRO 1: the median of the steps' tokens/s, but the first."""
    model = {"family": "backbone", **config_of(case).to_dict(), "vocab_size": None, "start_token_id": None}
    found: dict[int, list[float]] = {0: [], case["segments"]: []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = str(root / "data")
        build_dataset([ROOT / "corpora" / "books"], data)
        for repetition in range(repetitions):
            for window, speeds in found.items():
                run = root / f"run-{window}-{repetition}"
                values = {
                    "run_dir": str(run),
                    "tensorboard": False,
                    "model": model,
                    "data": {"path": data, "num_lanes": case["lanes"], "num_segments": case["segments"]},
                    "training": {"max_steps": steps, "eval_interval": 0, "wavefront_window": window},
                    "checkpoint": {"interval": 0},
                }
                values["data"]["segment_length"] = case["segment_length"]  # type: ignore[index]
                (root / "run.yaml").write_text(json.dumps(values))
                command = [sys.executable, "-m", "launch.cli", "train", str(root / "run.yaml")]
                environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
                rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                speeds.append(statistics.median(row["tokens_per_second"] for row in rows[1:]))
    in_turn = found[0]
    return [
        {
            **case,
            "window": window,
            "tokens_per_second": statistics.median(speeds),
            "faster": median_ratio(speeds, in_turn),
        }
        for window, speeds in found.items()
    ]


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    table = [
        [
            *(row[name] for name in BASE),
            row["way"],
            f"{row['milliseconds']:.0f}",
            f"{row['replay_by_way']:.2f}",
            f"{row['bptt_by_way']:.2f}",
            "" if row["kept_bytes"] is None else f"{row['kept_bytes'] / 2**20:.1f}",
            f"{row['difference']:.0e}",
        ]
        for row in values["rows"]
    ]
    columns = ["N", "width", "S", "T", "lanes", "way", "ms", "replay / way", "BPTT / way", "kept (MiB)", "difference"]
    return "\n".join(
        [
            *page_head("A rollout is trained along the diagonals of segments and layers", values),
            "Llamas of N layers with a matrix at each, all of which is trained; a rollout of T segments of S tokens, "
            "float32. Quotients above 1 say that the way is faster than replay, or than BPTT. *Difference* is that of "
            "the gradients from replay's, relative; in float64 it is below 1e-12 (tests).",
            "",
            *([values["notes"], ""] if values.get("notes") else []),
            markdown_table(columns, table),
            "",
            "`memformer train` at ZeRO 1 of one process, with all that a step needs beside its gradients:",
            "",
            markdown_table(
                [*columns[:5], "training.wavefront_window", "tokens/s", "by 0's"],
                [
                    [
                        *(row[name] for name in BASE),
                        row["window"],
                        f"{row['tokens_per_second']:,.0f}",
                        f"{row['faster']:.2f}",
                    ]
                    for row in values["runs"]
                ],
            ),
        ]
    )


def main() -> None:
    """Measures, prints, and writes the results where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_measuring_options(parser, "one tiny model, one repetition")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repetitions = options.repetitions or (1 if options.quick else 2)
    values = {
        **provenance(torch.device("cpu")),
        "base": BASE,
        "repetitions": repetitions,
        "notes": options.notes,
        "rows": [],
        "runs": [],
    }
    for change in QUICK if options.quick else CHANGES:
        values["rows"] += measure({**BASE, **change}, repetitions)
        print(values["rows"][-1], file=sys.stderr, flush=True)
        values["runs"] += runs({**BASE, **change}, repetitions, 3 if options.quick else 8, options.threads)
    tell(values, page(values), options)


if __name__ == "__main__":
    sys.exit(main())
