# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make train`: the main job on the books that ship with the project, by the commands that a user would type.

Then a demonstration of what the memory is for: a smaller model learns from documents that tell a digit once, and is
asked for it ten times as far on, with its memory and with the memory reset at every segment.

Repeated, it goes on where it was: a data set that is there is kept, a run that stopped is resumed, a run that finished
is only exported and shown again.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launch.cli import HelpFormatter
from launch.machine import visible_gpus
from memformer.inference.drawing import available
from memformer.run import jsonl

CONFIG = "builtin:train/quickstart.yaml"
PASSKEY_CONFIG = "builtin:train/quickstart-memory.yaml"
PASSKEY = "passkey:digits=1"
LENGTHS = (160, 1600)
"""Bytes of a document that the digit is asked for in: the longest of training, and ten times that."""
PROMPT = "It is a truth universally acknowledged, that "


def main() -> int:
    """Builds the data set, trains, exports, evaluates, writes a sample; says where each result lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/books"), help="data set, built if it is not there")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quickstart"), help="run directory")
    parser.add_argument("--passkeys", type=Path, default=Path("data/passkey"), help="data set of the demonstration")
    parser.add_argument("--no-passkeys", action="store_true", help="leave the demonstration out")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: what the configurations say)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if not (arguments.data / "train" / "manifest.json").exists():
        say("the text of 17 books, as shards of tokens")
        memformer("data", "build", "builtin:books", "--out", str(arguments.data), "--validation-fraction", "0.15")
    say("training; stop it whenever you like, the same command goes on")
    model = trained(CONFIG, arguments.run_dir, arguments.data, arguments.steps)
    say("held-out text: perplexity with the memory, and with it reset at every segment")
    output = memformer("evaluate", str(model), "--data", str(arguments.data), "--max-segments", "96", "--json")
    (arguments.run_dir / "evaluation.json").write_text(output.splitlines()[-1] + "\n")
    say("a sample")
    sample = memformer("generate", str(model), "--prompt", PROMPT, "--max-new-tokens", "400")
    (arguments.run_dir / "sample.txt").write_text(PROMPT + sample)
    kept = {}
    if not arguments.no_passkeys:
        kept = demonstrate(Path(f"{arguments.run_dir}-memory"), arguments.passkeys, arguments.steps)
    report(arguments.run_dir, arguments.data, kept, time.perf_counter() - started)
    return 0


def trained(config: str, run: Path, data: Path, steps: int | None) -> Path:
    """Trains to the end, or goes on to it, and exports; the directory of the exported model."""
    gpus = visible_gpus()
    processes = 1 << (min(gpus, 8).bit_length() - 1) if gpus else 2
    settings = ["--run_dir", str(run), "--data.path", str(data)]
    if steps:  # with the warm-up of a configuration that names none
        settings += ["--optimizer.warmup_steps", str(min(100, steps // 10)), "--training.max_steps", str(steps)]
    memformer("launch", "local", config, "--nproc", str(processes), *settings)
    say("the sharded checkpoint as single-GPU weights")
    shutil.rmtree(run / "model", ignore_errors=True)
    memformer("export", str(run), "--out", str(run / "model"))
    return run / "model"


def demonstrate(run: Path, data: Path, steps: int | None) -> dict[str, str]:
    """Trains a model to remember and asks it; names and places of the results."""
    say("what the memory is for: documents that tell a digit once and ask for it")
    if not (data / "manifest.json").exists():
        lengths = f"0,96,128,{LENGTHS[0]}"
        memformer("data", "synthesise", PASSKEY, "--lengths", lengths, "--documents", "12000", "--out", str(data))
    model = trained(PASSKEY_CONFIG, run, data, steps)
    say(f"the digit asked for in documents of {LENGTHS[0]} and {LENGTHS[1]:,} bytes, by its place in them")
    out = run / "tasks"
    asked = f"{LENGTHS[0]},{LENGTHS[1]} --depths 0,0.25,0.5,0.75 --documents 64 --lanes 64".split()
    pictures = [] if available() else ["--no-pictures"]
    memformer("evaluate", str(model), "--tasks", PASSKEY, "--lengths", *asked, "--out", str(out), *pictures)
    tasks = json.loads((out / "tasks.json").read_text())
    kept, reset = (found_far(tasks, mode) for mode in ("with_memory", "memory_reset"))
    told = f"in {LENGTHS[1]:,} bytes {kept:.0%} right with memory, {reset:.0%} with it reset, chance 10%"
    return {"what is remembered": f"{out} ({told})"}


def found_far(tasks: dict[str, Any], mode: str) -> float:
    """Share of the digits that were found in the longest documents, by the report of `memformer evaluate --tasks`."""
    far = [cell for cell in tasks["tasks"][0]["cells"] if cell["length"] == LENGTHS[1]]
    return float(sum(cell[mode]["right"] for cell in far) / sum(cell["questions"] for cell in far))


def memformer(*words: str) -> str:
    """Shows and runs one command of the project; its output is shown as it comes, and returned.

    Raises:
        SystemExit: The command failed; its exit code is passed on.
    """
    print("$ memformer " + shlex.join(words), flush=True)
    command = [sys.executable, "-m", "launch.cli", *words]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd(), errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(process.returncode)
    return "".join(lines)


def say(what: str) -> None:
    """A heading."""
    print(f"\n== {what}", flush=True)


def report(run: Path, data: Path, more: dict[str, str], seconds: float) -> None:
    """Where each result lies."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    metrics = jsonl.records(run / "metrics.jsonl")
    with_memory, reset = (evaluation[mode]["perplexity"] for mode in ("with_memory", "memory_reset"))
    say(f"done in {seconds:.0f} s")
    rows = {
        "data set": data,
        "metrics": f"{run}/metrics.jsonl (loss {metrics[0]['loss']:.2f} -> {metrics[-1]['loss']:.2f} nats a byte)",
        "TensorBoard": f"{run}/tensorboard (tensorboard --logdir {run}/tensorboard)",
        "checkpoints": f"{run}/checkpoints",
        "exported model": f"{run}/model",
        "held-out perplexity": f"{run}/evaluation.json ({with_memory:.4f} with memory, {reset:.4f} with it reset)",
        "sample": f"{run}/sample.txt",
        **more,
    }
    for name, place in rows.items():
        print(f"  {name:<20} {place}")


if __name__ == "__main__":
    sys.exit(main())
