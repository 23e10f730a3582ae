# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Benchmarks that train many models: several at a time, each kept as soon as it is done, none measured twice.

A case is what names one model, its seed included, such as {"variant": "rmt", "seed": 1}; the rows that measuring it
gives carry the same items. A run that was stopped goes on where it was, and further seeds join the rows that are
there: rows of the file that `--out` names are kept if they are of the same sizes.
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import provenance, write_results

Case = Mapping[str, Any]
Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """The options that all these scripts share."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one model of each; default 0")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at a time, a process each; default 1")
    parser.add_argument("--threads", type=int, default=1, help="of torch, each process; default 1")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md; rows there are kept")
    parser.add_argument("--notes", default="", help="a remark for the result files; kept where not given again")


def run_cases(
    options: argparse.Namespace,
    sizes: Mapping[str, Any],
    cases: Sequence[Case],
    measure: Callable[[Case], list[Row]],
    page: Callable[[dict[str, Any]], str],
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Measures the cases that OUT.json does not hold yet and writes the files after each.

    Args:
        options: Of `add_options`.
        sizes: What all rows share; rows of other sizes are not mixed with these.
        cases: What is to be measured.
        measure: Gives a case's rows; with more than one job it must be picklable and gets a fresh process.
        page: The page of the values; may add to them.
        device: Where the models are; default the CPU.

    Returns:
        The values: `provenance`, sizes, notes, rows.

    Raises:
        SystemExit: There are no cases, or OUT.json holds rows of other sizes.
    """
    if not cases:
        raise SystemExit("nothing to train: no model of those asked for is known and installed (make peers)")
    torch.set_num_threads(options.threads)
    values = provenance(device or torch.device("cpu"))
    sizes = json.loads(json.dumps(sizes))
    earlier = _earlier(options.out, sizes)
    rows: list[Row] = earlier.get("rows", [])
    open_cases = [case for case in cases if not any(_is_of(row, case) for row in rows)]
    if len(open_cases) < len(cases):
        print(f"{len(cases) - len(open_cases)} of {len(cases)} models are in {options.out}.json and kept", flush=True)
    if not open_cases:
        values |= {key: earlier[key] for key in values}
    commands = list(dict.fromkeys([*earlier.get("commands", []), values["command"]]))
    values |= {"commands": commands, "sizes": sizes, "notes": options.notes or earlier.get("notes", ""), "rows": rows}

    def place(row: Row) -> int:
        return next((at for at, case in enumerate(cases) if _is_of(row, case)), -1)

    def keep(new: list[Row]) -> None:
        rows.extend(row | {"commit": values["commit"], "date": values["date"]} for row in new)
        rows.sort(key=place)
        text = page(values)
        if options.out:
            write_results(options.out, values, text)

    if options.jobs == 1:
        for case in open_cases:
            keep(measure(case))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            options.jobs, context, torch.set_num_threads, (options.threads,), max_tasks_per_child=1
        ) as pool:
            for done in as_completed([pool.submit(measure, case) for case in open_cases]):
                keep(done.result())
    if not open_cases:
        keep([])
    return values


def seeds_of(rows: Sequence[Row]) -> str:
    """The seeds of rows, for a page."""
    return ", ".join(map(str, sorted({row["seed"] for row in rows})))


def at_best_rate(rows: Sequence[Row]) -> list[Row]:
    """The rows of one model at the learning rate of the lowest training loss, so that none is judged at another's.

    The loss is that of the last tenth of the steps, mean over seeds; test scores play no part. Rates that not all of
    the model's seeds have been trained at are left out.
    """
    seeds = {row["seed"] for row in rows}
    by_rate: dict[float, list[Row]] = {}
    for row in rows:
        by_rate.setdefault(row["learning_rate"], []).append(row)
    whole = [found for found in by_rate.values() if {row["seed"] for row in found} == seeds] or list(by_rate.values())
    return min(whole, key=lambda found: statistics.fmean(row["training_losses"][-1] for row in found))


def spread(each: Sequence[float], digits: int = 3) -> str:
    """Least and largest of several seeds, or nothing."""
    return f"{min(each):.{digits}f} to {max(each):.{digits}f}" if len(each) > 1 else ""


def _is_of(row: Row, case: Case) -> bool:
    return all(row.get(key) == value for key, value in case.items())


def _earlier(out: Path | None, sizes: Any) -> dict[str, Any]:
    path = out.with_suffix(".json") if out else None
    if path is None or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    if found["sizes"] != sizes:
        other = {key for key in {*found["sizes"], *sizes} if found["sizes"].get(key) != sizes.get(key)}
        raise SystemExit(
            f"--out {out}: {path} holds rows of other sizes ({', '.join(sorted(other))}); choose another name or "
            "remove the file"
        )
    return found
