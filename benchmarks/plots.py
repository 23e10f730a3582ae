# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Plot`: lines over one pair of axes, drawn as SVG that names the data it was drawn from."""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memformer.inference import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGEST = re.compile(r"drawn from data of SHA-256 ([0-9a-f]{64})")


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Level:
    """A height to compare with: chance, or what a ratio is 1 of."""

    y: float
    words: str


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines over one pair of axes.

    Attributes:
        log_x: By doublings, where the values lie far enough apart.
        share: The heights are shares, shown from 0 to 1.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    levels: Sequence[Level] = ()
    share: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of all that is drawn."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def figure(self) -> "Figure":
        """The picture. Needs matplotlib."""
        beside = len(self.series) > 1 and drawing.beside([line.label for line in self.series])
        figure = drawing.figure(8.8 if beside else 6.4, 4)
        axes = figure.subplots()
        drawing.lines(axes, [(line.label, line.x, line.y) for line in self.series])
        heights = [*(y for line in self.series for y in line.y), *(level.y for level in self.levels)]
        if self.share:
            axes.set_ylim(-0.02, 1.02)
        elif not self.log_y or not drawing.doubling(axes, "y", heights):
            least, largest = min(heights), max(heights)
            margin = 0.06 * (largest - least or 1)
            axes.set_ylim(0 if 0 <= least < 0.3 * largest else least - margin, largest + margin)
        if self.log_x:
            drawing.doubling(axes, "x", [x for line in self.series for x in line.x])
        for level in self.levels:
            drawing.compare(axes, level.y, level.words)
        drawing.name(axes, title=self.title, x=self.x, y=self.y)
        if len(self.series) > 1:
            drawing.legend(axes)
        return figure

    def svg(self) -> str:
        """The picture's file; it names the data that it was drawn from."""
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
            file = io.StringIO()
            description = f"drawn from data of SHA-256 {self.digest}"
            self.figure().savefig(file, format="svg", metadata={"Date": None, "Description": description})
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
