# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Plot`: lines over one pair of axes, drawn as SVG that names the data it was drawn from."""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Sequence

DIGEST = re.compile(r"drawn from data of SHA-256 ([0-9a-f]{64})")


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
