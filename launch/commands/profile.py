# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Where the time of a run's optimizer steps went: by part of a step (data, pass 1, segments forward and backward,
reduction, optimizer, save) and by kind of kernel, from the traces that profile.steps has written.

    memformer train CONFIG.yaml --profile.steps '[10, 12]'
    memformer profile RUN

Needs neither a GPU nor torch. The traces themselves are opened by ui.perfetto.dev."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.answers import answer
from launch.reports import check_out, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from memformer.run.traces import StepTimes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `memformer profile`."""
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="run directory, or one of its profile/steps-... (default of a run: the latest steps)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write DIR/profile.json and a picture, profile.png"
    )
    parser.add_argument("--no-pictures", action="store_true", help="profile.json alone (pictures need matplotlib)")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> None:
    """Reads the traces, prints the tables, writes the report."""
    from data_pipeline import UserError
    from memformer.inference.drawing import available
    from memformer.run.directory import RunDirectory
    from memformer.run.traces import find_traces, read_trace

    place: Path = arguments.run
    if not place.is_dir():
        what = "is a file" if place.exists() else "there is no such directory"
        raise UserError(f"{place}: {what}: give a run directory")
    if arguments.out is not None:
        check_out(arguments.out)
        if not arguments.no_pictures and not available():
            raise UserError("pictures need matplotlib: pip install 'memformer-train[plots]', or give --no-pictures")
    traces = find_traces(RunDirectory(place), place if place.name.startswith("steps-") else None)
    found = {path.name.removesuffix(".json.gz"): read_trace(path) for path in traces}
    report: dict[str, Any] = {
        "directory": str(traces[0].parent),
        "processes": {name: dataclasses.asdict(times) for name, times in found.items()},
    }
    if arguments.out is not None:
        pictures = {} if arguments.no_pictures else {"profile": picture(found)}
        report["files"] = write_report(arguments.out, "profile.json", report, pictures)
    if arguments.json:
        answer(report)
        return
    print(report["directory"])
    for name, times in found.items():
        print("\n".join(["", *describe(name, times)]))
    if arguments.out is not None:
        print(f"\nwrote {', '.join(str(arguments.out / each) for each in report['files'])}")


def describe(name: str, times: "StepTimes") -> list[str]:
    """Two tables for people: parts of a step, kinds of kernels."""
    count, seconds = len(times.steps), times.seconds or 1e-9
    device = times.busy_seconds is not None
    busy = f", the device was busy {times.busy_seconds / seconds:.0%} of it" if times.busy_seconds is not None else ""
    lines = [
        f"{name}: steps {times.steps[0]} to {times.steps[-1]}, {seconds / count:.4g} s a step{busy}",
        f"  {'part of a step':<24}{'calls':>8}{'s a step':>12}{'share':>8}{'  s on the device' if device else ''}",
    ]
    for part, share in times.parts.items():
        on_device = f"{share.device_seconds / count:>17.4g}" if device else ""
        lines.append(
            f"  {part:<24}{share.calls / count:>8g}{share.host_seconds / count:>12.4g}"
            f"{share.host_seconds / seconds:>8.1%}{on_device}"
        )
    whole = sum(times.kinds.values()) or 1e-9
    lines += ["", f"  {'kernels' if device else 'operators':<24}{'':>8}{'s a step':>12}{'share':>8}"]
    lines += [f"  {kind:<24}{'':>8}{took / count:>12.4g}{took / whole:>8.1%}" for kind, took in times.kinds.items()]
    return lines


def picture(found: "dict[str, StepTimes]") -> "Figure":
    """Two bars a process: parts of a step, kinds of kernels or operators, in seconds a step."""
    from memformer.inference.drawing import COLOURS, figure, name

    drawn = figure(9, 5 + 0.5 * len(found))
    upper, lower = drawn.subplots(2, 1)
    for axes, title, shares in (
        (upper, "parts of a step", [{n: s.host_seconds for n, s in t.parts.items()} for t in found.values()]),
        (lower, "kernels or operators", [t.kinds for t in found.values()]),
    ):
        entries = list(dict.fromkeys(part for each in shares for part in each))
        left = [0.0] * len(found)
        for number, entry in enumerate(entries):
            widths = [
                each.get(entry, 0.0) / len(times.steps) for each, times in zip(shares, found.values(), strict=True)
            ]
            hatch = "//" if number >= len(COLOURS) else None
            axes.barh(list(found), widths, left=left, label=entry, color=COLOURS[number % len(COLOURS)], hatch=hatch)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        name(axes, title=title, x="seconds a step")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn
