# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Runs a small version of every benchmark, two at a time: `make bench-quick`, at most ten minutes.

    python benchmarks/quick.py [--out runs/bench-quick] [--only WORD ...]

Each writes OUT/NAME.json and NAME.md. The figures show that everything runs and what a result looks like; they are too
small, short and crowded to be quoted. A benchmark whose data or peer is not installed is not run, with the reason.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import pixels
from benchmarks.common import ROOT
from benchmarks.simulated_gpu import library

SCRIPTS = (
    "replay", "training_peers", "inference", "reading", "memory_tasks", "pixels", "long_text", "peers_text",
    "memory_slots", "data", "overhead", "checkpoint", "quickstart", "bubble", "communication", "backbone_needle",
    "backbone_replay", "decoder_batches", "backbone_books", "backbone_peers", "backbone_generation",
    "backbone_wavefront", "backbone_wavefront_training", "logits_and_writer", "task_evaluation", "simulated_step",
    "optimizers", "residual_dtype", "gradient_accumulation", "zero_host_time",
)  # fmt: skip
BUDGET_SECONDS = 600
AT_ONCE = 2


def last_line(log: Path) -> str:
    """What a script that failed said last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"


def lacks(name: str) -> str:
    """What a script cannot do without and is not installed, with the mend, or nothing."""
    if name == "data" and importlib.util.find_spec("wids") is None:
        return "wids is not installed (make peers)"
    if name == "backbone_books" and not (ROOT / "models" / "smollm2-135m").is_dir():
        return "there is no pretrained model (make backbone)"
    if name == "simulated_step":
        return library.missing() or ""
    if name == "pixels" and not pixels.PACKAGE.is_dir():
        return "Fashion-MNIST is not installed (make images)"
    return ""


def run(name: str, out: Path, seconds: float) -> str:
    """Runs one script; returns "", or why there is no result."""
    missing = lacks(name)
    if missing:
        return f"not run: {missing}"
    for earlier in (out / f"{name}.json", out / f"{name}.md"):
        earlier.unlink(missing_ok=True)  # some scripts keep the rows they find
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--out", str(out / name)]
    log = out / f"{name}.log"
    # Threads that wait for a core which the other one has burn theirs.
    threads = max(1, len(os.sched_getaffinity(0)) // AT_ONCE)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return f"failed: took more than the {seconds:.0f} s that were left"
    if done.returncode:
        return f"failed: {last_line(log)} ({log})"
    return ""


def main() -> int:
    """Runs all, prints one line each; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-quick", help="default runs/bench-quick")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="default: all")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def timed(name: str) -> bool:
        started = time.monotonic()
        problem = run(name, out, max(1.0, BUDGET_SECONDS - (started - began)))
        where = problem or f"{out / name}.md"
        print(f"{name:<16} {time.monotonic() - started:6.0f} s  {where}", flush=True)
        return problem.startswith("failed")

    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        failed = sum(pool.map(timed, arguments.only))
    print(f"{'all':<16} {time.monotonic() - began:6.0f} s  of {BUDGET_SECONDS}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
