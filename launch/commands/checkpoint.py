# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""List and verify the checkpoints of a run."""

import argparse
import os
from typing import Any

from launch.answers import answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """list or verify, and the run."""
    parser.add_argument(
        "action", choices=("list", "verify"), help="list: names, steps and sizes; verify: read every file"
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Prints one line a checkpoint; 1 when one of them cannot be used. What can be done without is told beside it."""
    from data_pipeline import UserError
    from memformer.checkpoints import directory as files
    from memformer.run.directory import RunDirectory

    if not os.path.isdir(arguments.run):
        raise UserError(f"{arguments.run}: is no directory: give a run directory")
    directory = RunDirectory(arguments.run)
    paths = files.candidates(directory)
    if not paths and not os.path.isdir(directory.checkpoints):
        raise UserError(f"{arguments.run}: holds no checkpoints: give a run directory")
    rows: list[dict[str, Any]] = []
    for path in paths:
        row: dict[str, Any] = {"checkpoint": str(path), "step": files.step_of(path), "problem": None, "lost": []}
        try:
            manifest = files.verify(path, sums=arguments.action == "verify")
            row["bytes"] = sum(entry["bytes"] for entry in manifest["files"].values())
            row["lost"] = files.lost(path)
        except files.CheckpointDamaged as damage:
            row["problem"] = str(damage)
        rows.append(row)
        state = row["problem"] or f"{row['bytes']:,} bytes" + (", verified" if arguments.action == "verify" else "")
        print(f"step {row['step']:>10,}  {path}  {'; a run can go on without: '.join([state, *row['lost']])}")
    if not rows:
        print("no checkpoints yet")
    damaged = [row for row in rows if row["problem"]]
    if arguments.json:
        answer({"checkpoints": rows, "damaged": len(damaged)})
    return 1 if damaged else 0
