# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes docs/results/ from the result files of benchmarks/results/, so that no table and no plot can drift from them.

    python benchmarks/results_pages.py             (plots need matplotlib: pip install -e '.[plots]')
    python benchmarks/results_pages.py --check     exit code 1 if a page is not what the files give; draws nothing

A result file is DATE-KIND.json. The newest of each kind becomes docs/results/KIND.md: the `page(values)` of the script
that its command names, and the plots of `benchmarks/results_plots.py`. README.md there lists them, and what was not
run on a GPU. A plot names the digest of the data that it was drawn from, which --check compares.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table
from benchmarks.plots import DIGEST, Plot
from benchmarks.results_plots import plots_of

RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "results"
SCRIPT = re.compile(r"benchmarks/(\w+)\.py")
MADE = "<!-- Written by benchmarks/results_pages.py from {source}: change that, not this page. -->"


def newest() -> dict[str, Path]:
    """The newest result file of each kind, such as cpu-replay; the date stands first in its name."""
    return {path.stem[11:]: path for path in sorted(RESULTS.glob("????-??-??-*.json"))}


def script_of(values: Mapping[str, Any]) -> str:
    """The name of the script that wrote a result file, by its command."""
    found = SCRIPT.search(origin_of(values)["command"])
    if found is None:
        raise SystemExit(f"{values}: its command names no script of benchmarks/")
    return found[1]


def origin_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a file keeps its date, hardware, commit and command."""
    origin: Mapping[str, Any] = values.get("provenance", values)
    return origin


def pages() -> tuple[dict[str, str], dict[str, Plot]]:
    """The pages and the plots of docs/results/, by file name."""
    texts, drawn, rows = {}, {}, []
    files = newest()
    for kind, path in files.items():
        values = json.loads(path.read_text())
        script = script_of(values)
        body = importlib.import_module(f"benchmarks.{script}").page(values).strip()
        parts = [MADE.format(source=path.relative_to(ROOT)), "", body]
        for number, plot in enumerate(plots_of(script, values), start=1):
            name = f"{kind}-{number}.svg"
            drawn[name] = plot
            parts += ["", f"![{plot.title}: {plot.y} by {plot.x}]({name})"]
        parts += ["", f"[The numbers](../../{path.relative_to(ROOT).as_posix()})."]
        texts[f"{kind}.md"] = "\n".join(parts) + "\n"
        origin = origin_of(values)
        title = body.partition("\n")[0].removeprefix("# ")
        gpu = kind.removeprefix("cpu-")
        on_gpu = f"[{files[f'gpu-{gpu}'].stem[:10]}](gpu-{gpu}.md)" if f"gpu-{gpu}" in files else "not run"
        command, alone = f"`python benchmarks/{script}.py`", f"[{origin['date']}]({kind}.md)"
        if not kind.startswith("gpu-"):
            rows.append([title, alone, on_gpu, command, origin["commit"][:12]])
        elif not {gpu.removeprefix("gpu-"), f"cpu-{gpu.removeprefix('gpu-')}"} & set(files):
            rows.append([title, "GPU alone", alone, command, origin["commit"][:12]])
    table = markdown_table(["result", "on CPUs", "on a GPU", "script", "commit"], sorted(rows))
    texts["README.md"] = (
        f"{MADE.format(source='benchmarks/results/')}\n\n# Results\n\nEach page has its date, hardware, commit and "
        "command, and what did not come out as hoped. *Not run*: a GPU was to be had for minutes.\n"
        "`make bench-quick` runs a small version of all of them. What the paper claims stands beside as its own.\n\n"
        f"{table}\n"
    )
    return texts, drawn


def drifted(texts: Mapping[str, str], drawn: Mapping[str, Plot]) -> list[str]:
    """Names of what is missing, not up to date, or of no result file."""
    wrong = [name for name, text in texts.items() if not (PAGES / name).is_file() or (PAGES / name).read_text() != text]
    for name, plot in drawn.items():
        found = DIGEST.search((PAGES / name).read_text()) if (PAGES / name).is_file() else None
        if found is None or found[1] != plot.digest:
            wrong.append(name)
    return wrong + [path.name for path in PAGES.glob("*") if path.name not in texts and path.name not in drawn]


def main() -> int:
    """Writes or checks the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page is not up to date")
    arguments = parser.parse_args()
    texts, drawn = pages()
    wrong = drifted(texts, drawn)
    if arguments.check:
        if wrong:
            print(f"docs/results: not what the result files give: {', '.join(sorted(wrong))}", file=sys.stderr)
        return 1 if wrong else 0
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in wrong:
        if name in texts:
            (PAGES / name).write_text(texts[name], encoding="utf-8")
        elif name in drawn:
            (PAGES / name).write_text(drawn[name].svg(), encoding="utf-8")
        else:
            (PAGES / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
