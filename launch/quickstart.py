# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make train`: the main job on the books that ship with the project, by the commands that a user would type.

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

from launch.cli import HelpFormatter
from launch.machine import visible_gpus
from memformer.run import jsonl

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "train" / "quickstart.yaml"
PROMPT = "It is a truth universally acknowledged, that "


def main() -> int:
    """Builds the data set, trains, exports, evaluates, writes a sample; says where each result lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/books"), help="data set, built if it is not there")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quickstart"), help="run directory")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: what the configuration says)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if not (arguments.data / "train" / "manifest.json").exists():
        say("the text of 17 books, as shards of tokens")
        books = [str(path) for path in sorted((ROOT / "corpora" / "books").glob("*.txt.gz"))]
        memformer("data", "build", *books, "--out", str(arguments.data), "--validation-fraction", "0.15")
    say("training; stop it whenever you like, the same command goes on")
    gpus = visible_gpus()
    processes = 1 << (min(gpus, 8).bit_length() - 1) if gpus else 2
    settings = ["--run_dir", str(arguments.run_dir), "--data.path", str(arguments.data)]
    if arguments.steps:
        settings += ["--training.max_steps", str(arguments.steps)]
    memformer("launch", "local", str(CONFIG), "--nproc", str(processes), *settings)
    model = arguments.run_dir / "model"
    say("the sharded checkpoint as single-GPU weights")
    shutil.rmtree(model, ignore_errors=True)
    memformer("export", str(arguments.run_dir), "--out", str(model))
    say("held-out text: perplexity with the memory, and with it reset at every segment")
    output = memformer("evaluate", str(model), "--data", str(arguments.data), "--max-segments", "96", "--json")
    (arguments.run_dir / "evaluation.json").write_text(output.splitlines()[-1] + "\n")
    say("a sample")
    sample = memformer("generate", str(model), "--prompt", PROMPT, "--max-new-tokens", "400")
    (arguments.run_dir / "sample.txt").write_text(PROMPT + sample)
    report(arguments.run_dir, arguments.data, time.perf_counter() - started)
    return 0


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


def report(run: Path, data: Path, seconds: float) -> None:
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
    }
    for name, place in rows.items():
        print(f"  {name:<20} {place}")


if __name__ == "__main__":
    sys.exit(main())
