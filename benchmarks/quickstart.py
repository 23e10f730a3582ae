# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What `make train` reaches: runs it in a directory of its own and keeps its figures.

python benchmarks/quickstart.py [--steps N] [--out benchmarks/results/DATE-cpu-quickstart] [--notes TEXT] [--json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import ROOT, markdown_table, provenance, tell
from launch.quickstart import found_far
from memformer.run import jsonl

SHOWN = (
    "seconds", "steps", "tokens", "first_loss", "last_loss", "perplexity_with_memory", "perplexity_memory_reset",
    "passkeys_with_memory", "passkeys_memory_reset",
)  # fmt: skip


def measure(steps: int | None) -> dict[str, Any]:
    """Runs the quick start and reads what it wrote."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        places = ("--data", f"{directory}/books", "--passkeys", f"{directory}/passkeys", "--run-dir", str(run))
        command = [sys.executable, "-m", "launch.quickstart", *places]
        started = time.perf_counter()
        subprocess.run([*command, *(["--steps", str(steps)] if steps else [])], cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        metrics = jsonl.records(run / "metrics.jsonl")
        evaluation = json.loads((run / "evaluation.json").read_text())
        events = jsonl.records(run / "events.jsonl")
        tasks = json.loads(Path(f"{run}-memory", "tasks", "tasks.json").read_text())
        return {
            **provenance(device),
            "processes": next(event["processes"] for event in events if event["event"] == "start"),
            "seconds": seconds,
            "steps": metrics[-1]["step"],
            "tokens": metrics[-1]["tokens"],
            "first_loss": metrics[0]["loss"],
            "last_loss": metrics[-1]["loss"],
            "held_out_tokens": evaluation["with_memory"]["tokens"],
            "perplexity_with_memory": evaluation["with_memory"]["perplexity"],
            "perplexity_memory_reset": evaluation["memory_reset"]["perplexity"],
            "passkeys_with_memory": found_far(tasks, "with_memory"),
            "passkeys_memory_reset": found_far(tasks, "memory_reset"),
            "memory": next(row["memory"] for row in reversed(metrics) if "memory" in row),
            "sample": (run / "sample.txt").read_text(),
        }


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    # Files of before the demonstration have none.
    table = markdown_table(["figure", "value"], [[name, values[name]] for name in SHOWN if name in values])
    about = f"{values['date']}, {values['hardware']}, torch {values['torch']}, commit {values['commit']}"
    notes = f"\n{values['notes']}\n" if values.get("notes") else ""
    return f"# The quick start\n\n{about}. `{values['command']}`\n\n{table}\n\n    {values['sample']!r}\n{notes}"


def main() -> None:
    """Measures, prints, and writes the results where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the configuration's)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="20 steps")
    parser.add_argument("--notes", default="", help="a remark for the result files")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = 20
    values = measure(arguments.steps) | {"notes": arguments.notes}
    tell(values, page(values), arguments)


if __name__ == "__main__":
    sys.exit(main())
