# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Does replay pay? Perplexity of held-out books by the horizon T, by position, with and without memory.

    python benchmarks/long_text.py                       about half an hour on one CPU core
    python benchmarks/long_text.py --quick --json        about a minute and a half: T = 1 and 4, few steps
    python benchmarks/long_text.py --source DIR          documents of your own, for instance Python packages
    python benchmarks/long_text.py --out benchmarks/results/DATE-cpu-long-text

Runs the real thing, a process each: `memformer data build`, `train`, `export`, `evaluate`. Every run reads the same
number of tokens in the same number of steps: with T segments a rollout, `--segments-a-step` / T lanes. So what differs
is how far the gradient goes back through the memory: at T = 1 not at all, and the writer learns nothing. `T = 1, no
slots` is a model without memory. "Reset" is the same model with its memory reset at every segment.
"""

import argparse
import gzip
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table, page_head, provenance, write_results

BOOKS = ROOT / "corpora" / "books"
CODE_SUFFIX = ".py"


def gather(source: Path, directory: Path) -> Path:
    """The documents of a build: the directory itself, or one text a Python package where it holds packages."""
    packages = sorted(path.parent for path in source.glob("*/__init__.py"))
    if not packages:
        return source
    directory.mkdir()
    for package in packages:
        files = sorted(package.rglob(f"*{CODE_SUFFIX}"))
        text = "".join(f"# {file.relative_to(source)}\n{file.read_text('utf-8', 'replace')}\n" for file in files)
        with gzip.open(directory / f"{package.name}.txt.gz", "wt", encoding="utf-8") as packed:
            packed.write(text)
    return directory


def memformer(*words: object) -> str:
    """Runs a subcommand and returns what it printed; a failed one ends the benchmark with its last lines."""
    command = [sys.executable, "-m", "launch.cli", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def measure(
    horizon: int, slots: int, seed: int, data: Path, scratch: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Trains and scores one model."""
    run = scratch / f"run-{horizon}-{slots}-{seed}"
    lanes = options.segments_a_step // horizon
    settings = {
        "run_dir": run,
        "seed": seed,
        "model.num_encoder_layers": 2,
        "model.num_decoder_layers": 2,
        "model.d_model": options.width,
        "model.d_ff": 2 * options.width,
        "model.num_heads": 4,
        "model.num_memory_slots": slots,
        "model.memory_forgetting": options.forgetting,
        "data.path": data,
        "data.num_lanes": lanes,
        "data.segment_length": options.segment_length,
        "data.num_segments": horizon,
        "training.max_steps": options.steps,
        "training.eval_interval": options.steps,
        "training.eval_segments": 1,
        "optimizer.learning_rate": options.learning_rate,
        "optimizer.warmup_steps": options.steps // 20,
        "optimizer.beta2": 0.98,
        "optimizer.schedule": "wsd",
        "optimizer.decay_fraction": 0.3,
        "optimizer.final_fraction": 0.0,
        "parallel.zero_stage": 0,
        "checkpoint.interval": options.steps,
    }
    words = [
        word for name, value in settings.items() for word in (f"--{name}", json.dumps(value, default=str).strip('"'))
    ]
    started = time.perf_counter()
    memformer("train", ROOT / "configs" / "train" / "example.yaml", *words)
    seconds = time.perf_counter() - started
    memformer("export", run, "--out", run / "model")
    evaluated = memformer(
        "evaluate", run / "model", "--data", data, "--lanes", 16, "--max-segments", options.test_segments, "--json"
    )
    scores = json.loads(evaluated.splitlines()[-1])
    row = {
        "horizon": horizon,
        "slots": slots,
        "seed": seed,
        "lanes": lanes,
        "training_tokens": options.steps * options.segments_a_step * options.segment_length,
        "seconds": seconds,
        "perplexity": scores["with_memory"]["perplexity"],
        "perplexity_memory_reset": scores["memory_reset"]["perplexity"],
        "tokens": scores["with_memory"]["tokens"],
        "by_position": [
            {**ours, "perplexity_memory_reset": theirs["perplexity"]}
            for ours, theirs in zip(
                scores["with_memory"]["by_position"], scores["memory_reset"]["by_position"], strict=True
            )
        ],
    }
    print(
        f"{label(row):>18} seed {seed}: {row['perplexity']:.4f}, reset {row['perplexity_memory_reset']:.4f}", flush=True
    )
    return row


def label(row: dict[str, Any]) -> str:
    """A row's name."""
    return f"T = {row['horizon']}" + ("" if row["slots"] else ", no slots")


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    table, places = [], []
    for name in dict.fromkeys(map(label, rows)):
        found = [row for row in rows if label(row) == name]
        each = [row["perplexity"] for row in found]
        spread = f"{min(each):.3f} to {max(each):.3f}" if len(each) > 1 else ""
        reset = statistics.fmean(row["perplexity_memory_reset"] for row in found)
        table.append((name, statistics.fmean(each), spread, reset, f"{reset / statistics.fmean(each) - 1:+.2%}"))
        for number, place in enumerate(found[0]["by_position"]):
            with_memory = statistics.fmean(row["by_position"][number]["perplexity"] for row in found)
            without = statistics.fmean(row["by_position"][number]["perplexity_memory_reset"] for row in found)
            places.append((name, f"{place['from']:,} to {place['to'] - 1:,}", with_memory, without))
    return "\n".join(
        [
            *page_head("Long text: horizon, memory, position", values),
            f"{values['source']}, bytes; 2+2 layers, width {sizes['width']}, {sizes['slots']} slots, forgetting "
            f"{'on' if sizes['forgetting'] else 'off'}; segments of {sizes['segment_length']}; "
            f"{rows[0]['training_tokens'] / 1e6:.2f} M tokens in {sizes['steps']} steps for every row; "
            f"{rows[0]['tokens']:,} held-out tokens; seeds {', '.join(map(str, sorted({r['seed'] for r in rows})))}. "
            "*Reset*: the same model, its memory reset at every segment; *gain*: how much higher that perplexity is.",
            "",
            markdown_table(("trained with", "perplexity", "spread", "reset", "gain"), table),
            "",
            "By position in the document, in tokens:",
            "",
            markdown_table(("trained with", "position", "perplexity", "reset"), places),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=BOOKS, help="documents; a directory of Python packages is one "
                        "document a package (default: the books)")  # fmt: skip
    parser.add_argument("--horizons", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="T; default 1 2 4 8 16")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--steps", type=int, help="optimizer steps; default 1200")
    parser.add_argument("--segments-a-step", type=int, default=16, help="lanes times T; default 16")
    parser.add_argument("--segment-length", type=int, default=64, help="S in bytes; default 64")
    parser.add_argument("--width", type=int, default=64, help="d_model; default 64")
    parser.add_argument("--slots", type=int, default=16, help="K; default 16")
    parser.add_argument("--no-forgetting", dest="forgetting", action="store_false", help="leave forgetting out")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak; default 3e-3")
    parser.add_argument("--test-segments", type=int, help="segments a held-out document at most; default 600")
    parser.add_argument("--quick", action="store_true", help="T = 1 and 4, 30 steps, 20 segments")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    parser.add_argument("--notes", default="", help="a remark for the result files")
    options = parser.parse_args(words)
    for horizon in options.horizons:
        if options.segments_a_step % horizon:
            parser.error(f"--horizons {horizon}: choose a divisor of --segments-a-step {options.segments_a_step}")
    if options.quick:
        options.horizons = [1, 4]
    options.steps = options.steps or (30 if options.quick else 1200)
    options.test_segments = options.test_segments or (20 if options.quick else 600)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    values: dict[str, Any] = provenance(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    names = ("steps", "segments_a_step", "segment_length", "width", "slots", "forgetting", "learning_rate")
    values["sizes"] = {name: getattr(options, name) for name in names}
    values["source"] = "the books of corpora/books" if options.source == BOOKS else options.source.name
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        source = gather(options.source, scratch / "documents")
        memformer(
            "data", "build", source, "--out", scratch / "data", "--tokenizer", "bytes", "--validation-fraction", 0.15
        )
        cases = [(options.horizons[0], 0), *((horizon, options.slots) for horizon in options.horizons)]
        values["notes"], values["rows"] = options.notes, []
        for seed, (horizon, slots) in itertools.product(options.seeds, cases):
            values["rows"].append(measure(horizon, slots, seed, scratch / "data", scratch, options))
            if options.out:  # as far as it has come
                write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
