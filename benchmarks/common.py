# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What every benchmark needs: where it ran, on which commit, fair timing, and results in files."""

import argparse
import ctypes
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from memformer.run.directory import write_atomically

ROOT = Path(__file__).resolve().parents[1]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def provenance(device: torch.device) -> dict[str, Any]:
    """Date, hardware, versions, commit and command: what a figure is worthless without."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        # Relative to the checkout: `python -m` gives the whole path, and results may be written anywhere first.
        "command": shlex.join(["python", sys.argv[0].removeprefix(f"{ROOT}/"), *_placed(sys.argv[1:])]),
    }


def _placed(words: Sequence[str]) -> list[str]:
    """A command's words with what `--out` names where results are kept, and without `--notes`, which the page has."""
    before = ["", *words]
    return [
        f"benchmarks/results/{Path(word).name}" if option == "--out" and Path(word).is_absolute() else word
        for option, word in zip(before, words, strict=False)
        if "--notes" not in (option, word)
    ]


def hardware(device: torch.device) -> str:
    """One line: the GPU's name, or the CPU's with the cores and threads that torch uses."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu_name()}, {cores} cores, torch threads: {torch.get_num_threads()}"


def cpu_name() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this checkout, marked where tracked code beside it has changes; "unknown" outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "memformer", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with uncommitted changes" if changed else head


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def interleaved_seconds(
    variants: Mapping[str, Callable[[], object]],
    repetitions: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times each variant once, then each again, and so on, so that a busy moment of the machine hits all alike.

    Args:
        variants: What is timed, by name; each runs once untimed before.
        repetitions: Timed runs of each.
        device: Where the work is done; it is waited for.
        clock: Of seconds. `time.process_time` leaves out the moments in which other processes had the core.

    Returns:
        Every time in seconds, by variant.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions + 1):
        for name, run in variants.items():
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if repetition:
                times[name].append(clock() - start)
    return times


def add_measuring_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """What scripts that time methods side by side have in common."""
    parser.add_argument("--repetitions", type=int, help="timed runs of each method")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU; default 1, the least noisy")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--notes", default="", help="a remark for the result files")


def begin_measuring(options: argparse.Namespace, device: torch.device, clock: str) -> dict[str, Any]:
    """Sets torch and glibc up as asked for; `provenance`, the sizes of rollouts, the notes and no rows yet.

    Args:
        options: Of `add_measuring_options`, with lanes, segment_length and width.
        device: Where it is measured.
        clock: What is measured by, for the page.
    """
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    sizes = {name: getattr(options, name) for name in ("lanes", "segment_length", "width", "repetitions")}
    return {**provenance(device), "sizes": {**sizes, "clock": clock}, "notes": options.notes, "rows": []}


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of neighbouring measurements."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, as PyTorch's allocator does on a GPU.

    Otherwise the variant that needs most memory gives it back and is charged for fresh pages in every run.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; floats are rounded to three digits after the point."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page_head(title: str, values: Mapping[str, Any]) -> list[str]:
    """The first lines of a result page: what it is, and `provenance`, of rows that were added later too."""
    commits = dict.fromkeys([*(row["commit"] for row in values.get("rows", ()) if "commit" in row), values["commit"]])
    return [
        f"# {title}",
        "",
        f"{values['date']}; {values['hardware']}; torch {values['torch']}; commit {', '.join(commits)}.",
        "  \n".join(f"`{command}`" for command in values.get("commands", [values["command"]])),
        "",
    ]


def tell(values: Mapping[str, Any], page: str, options: argparse.Namespace) -> None:
    """Prints a page, writes it where `--out` says, and ends with one JSON object where `--json` is given."""
    print(page)
    if options.out:
        write_results(options.out, values, page)
    if options.json:
        print(json.dumps(values))


def write_results(stem: Path, values: Mapping[str, Any], page: str) -> None:
    """Writes STEM.json and, made from the same values, STEM.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Whole or as it was: some scripts go on from the file that they find.
    write_atomically(stem.with_suffix(".json"), json.dumps(values, indent=1) + "\n")
    write_atomically(stem.with_suffix(".md"), page + "\n")
