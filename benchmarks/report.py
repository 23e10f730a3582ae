# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Report`: the page of a benchmark's result file, as text, tables and plots; written as Markdown and SVG.

A benchmark gives the report of its values, or puts one into its result file as plain JSON under "report", in the form
of `Report.of_json`.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import markdown_table

DIGEST = re.compile(r"drawn from data of SHA-256 ([0-9a-f]{64})")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines over one pair of axes."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of all that is drawn."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def svg(self) -> str:
        """The picture; it names the data that it was drawn from. Needs matplotlib."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
            figure = Figure(figsize=(6.4, 4), layout="constrained")
            axes = figure.subplots()
            markers = "os^Dv<>ph*"
            for number, line in enumerate(self.series):
                axes.plot(line.x, line.y, marker=markers[number % len(markers)], markersize=4, label=line.label)
            if self.log_x:
                axes.set_xscale("log")
            if self.log_y:
                axes.set_yscale("log")
            axes.set_title(self.title, loc="left", fontsize=10)
            axes.set_xlabel(self.x)
            axes.set_ylabel(self.y)
            axes.grid(alpha=0.3)
            if len(self.series) > 1:
                axes.legend(fontsize=7)
            file = io.StringIO()
            description = f"drawn from data of SHA-256 {self.digest}"
            figure.savefig(file, format="svg", metadata={"Date": None, "Description": description})
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


@dataclasses.dataclass(frozen=True)
class Report:
    """A page: paragraphs, then tables, then plots."""

    title: str
    text: Sequence[str]
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Report":
        """A report from a result file.

        {"title": str, "text": [paragraph], "notes": [paragraph], "tables": [{"title", "columns", "rows"}],
        "plots": [{"title", "x", "y", "log_x", "log_y", "series": [{"label", "x", "y"}]}]}; all but the title may be
        left out.
        """
        plots = [
            Plot(**{**plot, "series": [Series(**line) for line in plot["series"]]}) for plot in values.get("plots", [])
        ]
        tables = [Table(**table) for table in values.get("tables", [])]
        return cls(values["title"], [*values.get("text", []), *values.get("notes", [])], tables, plots)

    def markdown(self, origin: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
        """The page.

        Args:
            origin: Date, hardware, torch, commit and command of the result file.
            pictures: File names of the plots, beside the page; without them the page has none.
        """
        lines = [f"# {self.title}", "", about(origin), "", f"    {origin['command']}", ""]
        for paragraph in self.text:
            lines += [paragraph, ""]
        for table in self.tables:
            lines += [f"## {table.title}", "", markdown_table(table.columns, table.rows), ""]
        for plot, name in zip(self.plots, pictures, strict=False):
            lines += [f"![{plot.title}: {plot.y} by {plot.x}]({name})", ""]
        return "\n".join(lines).rstrip()


def about(origin: Mapping[str, Any]) -> str:
    """One line: when, where and of what."""
    return f"{origin['date']}; {origin['hardware']}; torch {origin['torch']}; commit {origin['commit']}."
