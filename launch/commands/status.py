# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run is doing, from its files alone: state, step, loss, speed, ETA, checkpoint, jobs, restarts, last events.

Works for a run that is pending, running, requeued, failed or finished, from any machine that sees its files."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from launch.answers import answer
from launch.event_words import describe_event
from memformer.run.lock import duration
from memformer.run.task_shares import in_words

SETTLED = ("finished", "failed", "stopped", "empty")  # states that nothing leaves by itself


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `memformer status`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory")
    parser.add_argument("--follow", action="store_true", help="show it again and again until the run has ended")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between two looks (--follow)")
    parser.add_argument("--events", type=int, default=5, metavar="N", help="how many of the last events to show")
    parser.add_argument(
        "--json", action="store_true", help="JSON alone on stdout (one a look with --follow), the rest on stderr"
    )


def run(arguments: argparse.Namespace) -> int:
    """Shows the run's state; 0 whatever the state is."""
    from data_pipeline import UserError
    from launch.status import read_status

    if arguments.events < 0:
        raise UserError(f"--events is {arguments.events}: give 0 or more")
    terminal = sys.stdout.isatty()
    while True:
        status = read_status(arguments.run, arguments.events)
        if arguments.json:
            answer(dataclasses.asdict(status))
        else:
            # At a terminal the picture is drawn over the last one; in a file, one line a look is enough.
            lines = describe(dataclasses.asdict(status))
            if arguments.follow and terminal:
                print("\033[H\033[J" + "\n".join(lines), flush=True)
            elif arguments.follow:
                print(" | ".join(line.strip() for line in lines[:3]), flush=True)
            else:
                print("\n".join(lines))
        if not arguments.follow or status.state in SETTLED:
            return 0
        time.sleep(max(0.1, arguments.interval))


def describe(status: dict[str, object]) -> list[str]:
    """The status for people: what it does, how far it is, then the rest, one thing a line."""
    step, last = status["step"], status["max_steps"]
    progress = f"step {step}/{last}" if last else f"step {step}"
    if isinstance(last, int) and isinstance(step, int) and last:
        progress += f" ({100 * step / last:.0f} %)"
    if isinstance(status["loss"], float):
        progress += f", loss {status['loss']:.4f}"
    speed = "no step yet"
    if isinstance(status["step_seconds"], float):
        speed = f"{status['step_seconds']:.3g} s a step, {status['tokens_per_second'] or 0:,.0f} tokens/s"
    if isinstance(status["eta_seconds"], float):
        speed += f", done in {duration(status['eta_seconds'])}"
    silence = status["seconds_since_news"]
    news = "" if not isinstance(silence, float) else f" (last news {duration(silence)} ago)"
    failure = f": {status['failure']}" if status["failure"] else ""
    jobs, nodes, tasks = status["jobs"], status["nodes"], status["tasks"]
    lines = [f"{status['state']}{failure}{news}", progress, speed]
    rows = {
        "tasks": f"step {tasks['step']}: {in_words(tasks['shares'])}" if isinstance(tasks, dict) else "",
        "checkpoint": status["checkpoint"] or "none yet",
        "restarts": status["restarts"],
        "jobs": ", ".join(map(str, jobs)) if isinstance(jobs, list) else "",
        "nodes": ", ".join(map(str, nodes)) if isinstance(nodes, list) else "",
        "processes": status["processes"] or "",
        "trained by": status["process"] or "",
    }
    lines += [f"{name:<12}{value}" for name, value in rows.items() if value != ""]
    events = status["events"]
    lines += [f"  {line}" for line in map(describe_event, events if isinstance(events, list) else [])]
    if status["state"] in ("failed", "stopped"):
        point = f"goes on from {status['checkpoint']}" if status["checkpoint"] else "starts afresh: nothing was saved"
        lines.append(f"next: the command that started it {point}")
    return lines
