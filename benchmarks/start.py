# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Processor seconds of commands that do no work on a model: help, refusals, looks at files.

    python benchmarks/start.py [--repetitions 5] [--json]

Each command is run once to fill caches, then several times; the least is shown, user and system time together. None of
them may import torch, to which tests/launch/test_start.py holds the same list.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HELP: dict[str, tuple[list[str], int]] = {
    " ".join([*words, "--help"]): ([*words, "--help"], 0)
    for words in (
        [],
        *(
            [name]
            for name in "init data train config plan evaluate generate inspect-memory checkpoint export doctor "
            "status profile completion".split()
        ),
        ["launch"],
        *(["launch", mode] for mode in ("local", "slurm", "submitit")),
    )
}
WRONG = ["{root}/config.yaml", "--training.max_stepz", "3"]
UNFIT = ["{root}/config.yaml", "--data.num_lanes", "3"]
COMMANDS: dict[str, tuple[list[str], int]] = HELP | {
    "unknown command": (["no-such-command"], 2),
    "train, unknown setting": (["train", *WRONG], 2),
    "train, no such file": (["train", "{root}/nowhere.yaml"], 2),
    "train, no data": (["train", "{root}/config.yaml"], 2),
    "config show, unknown setting": (["config", "show", *WRONG], 2),
    "config schema": (["config", "schema", "--family", "backbone"], 0),
    "init, in the way": (["init", "{root}/config.yaml"], 2),
    "completion": (["completion", "bash"], 0),
    "plan, unknown setting": (["plan", *WRONG], 2),
    "plan, unfit lanes": (["plan", *UNFIT, "--gpus-per-node", "2"], 2),
    "plan, unknown device": (["plan", "{root}/config.yaml", "--device", "tpu"], 2),
    "plan, no data": (["plan", "{root}/config.yaml", "--gpus-per-node", "2"], 2),
    "launch local, unknown setting": (["launch", "local", *WRONG], 2),
    "launch local, unfit lanes": (["launch", "local", *UNFIT, "--nproc", "2", "--device", "cpu"], 2),
    "launch local --dry-run": (["launch", "local", "{root}/config.yaml", "--nproc", "2", "--dry-run"], 0),
    "launch slurm, unknown setting": (["launch", "slurm", *WRONG], 2),
    "launch slurm, unfit lanes": (["launch", "slurm", *UNFIT, "--nodes", "2"], 2),
    "launch slurm --dry-run": (["launch", "slurm", "{root}/config.yaml", "--nodes", "2", "--dry-run"], 0),
    "launch submitit, unfit lanes": (["launch", "submitit", *UNFIT, "--nodes", "2"], 2),
    "evaluate, no model": (["evaluate", "{root}/nowhere", "--data", "{root}"], 2),
    "evaluate, a run": (["evaluate", "{root}/run", "--data", "{root}"], 2),
    "generate, no model": (["generate", "{root}/nowhere", "--prompt", "a"], 2),
    "generate, wrong value": (["generate", "{root}/nowhere", "--prompt", "a", "--top-p", "2"], 2),
    "generate, no wavefront": (["generate", "{root}/model", "--prompt", "a", "--wavefront"], 2),
    "evaluate, no wavefront": (["evaluate", "{root}/model", "--data", "{root}", "--wavefront"], 2),
    "inspect-memory, no model": (
        [
            "inspect-memory",
            "{root}/nowhere",
            "--text-file",
            "{root}/config.yaml",
            "--out",
            "{root}/out",
            "--no-pictures",
        ],
        2,
    ),
    "export, no run": (["export", "{root}/nowhere", "--out", "{root}/out"], 2),
    "export, no checkpoint": (["export", "{root}/run", "--out", "{root}/out"], 2),
    "checkpoint list": (["checkpoint", "list", "{root}/run"], 0),
    "checkpoint list, no run": (["checkpoint", "list", "{root}/nowhere"], 2),
    "status": (["status", "{root}/run"], 0),
    "status, no run": (["status", "{root}/nowhere"], 2),
    "data inspect, no data": (["data", "inspect", "{root}/nowhere"], 2),
}
"""Name -> words of the command, with {root} for the directory that `prepare` fills, and its exit code."""


def prepare(root: Path) -> None:
    """Makes what the commands are given: a configuration whose data is missing, a run that has not saved, and what
    describes a Memformer without its weights."""
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text('{"format": 1, "model": {}}\n')
    (root / "run" / "checkpoints").mkdir(parents=True)
    (root / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5, "step_seconds": 0.1}\n')
    (root / "config.yaml").write_text(f"run_dir: {root}/new\ndata:\n  path: {root}/nowhere\n  num_lanes: 4\n")


def processor_seconds(words: list[str], code: int) -> float:
    """User and system time of one run of `memformer WORDS`.

    Raises:
        SystemExit: It ended with another exit code.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise SystemExit(f"memformer {' '.join(words)}: ended with {process.returncode}, not {code}")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Measures every command and prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="timed runs of each (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory))
        for name, (words, code) in COMMANDS.items():
            filled = [word.format(root=directory) for word in words]
            processor_seconds(filled, code)
            found[name] = min(processor_seconds(filled, code) for _ in range(max(1, arguments.repetitions)))
            if not arguments.json:
                print(f"{found[name]:6.2f} s  {name}", flush=True)
    if arguments.json:
        print(json.dumps({"processor_seconds": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
