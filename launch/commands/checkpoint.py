# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""List and verify the checkpoints of a run, or fetch one from a mirror (checkpoint.mirror).

After a fetch every way to start the run goes on from there, on a cluster as well.
"""

import argparse
import os
from typing import Any

from launch.answers import answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """list, verify or fetch, and the run."""
    parser.add_argument(
        "action",
        choices=("list", "verify", "fetch"),
        help="list: names, steps and sizes; verify: read every file; fetch: from a mirror into RUN",
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--from", dest="mirror", metavar="ADDRESS", help="fetch: a mirror, or a checkpoint in one")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Prints one line a checkpoint; 1 when one of them cannot be used. What can be done without is told beside it."""
    from data_pipeline import UserError
    from memformer.checkpoints import directory as files
    from memformer.run.directory import RunDirectory

    if (arguments.action == "fetch") != (arguments.mirror is not None):
        raise UserError(
            "--from ADDRESS belongs to fetch, and fetch needs it: memformer checkpoint fetch RUN --from s3://…"
        )
    if arguments.action == "fetch":
        return fetched(arguments)
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


def fetched(arguments: argparse.Namespace) -> int:
    """Fetches a checkpoint into a run directory in which nobody trains."""
    from memformer.checkpoints import mirrored
    from memformer.checkpoints.fetching import fetch, wanted
    from memformer.config.schema import CheckpointConfig
    from memformer.run.directory import RunDirectory
    from memformer.run.lock import RunLock

    run, settings = RunDirectory(arguments.run), CheckpointConfig()
    run.refuse_unwritable()
    what = wanted(run, arguments.mirror, settings)
    held = RunLock.take(run)
    try:
        found = fetch(run, what, settings)
        if what.name is not None:
            mirrored.adopt(what.store, run)
    finally:
        held.withdraw()
    said = "has newer checkpoints of its own: nothing was fetched" if what.name is None else f"goes on from {found}"
    print(f"{arguments.run} {said}")
    if arguments.json:
        answer({"run": str(arguments.run), "checkpoint": None if what.name is None else found})
    return 0
