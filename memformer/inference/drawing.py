# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The one style of the project's pictures: figures, axes that a person can read, lines to compare with, legends.

Needs matplotlib, an extra: `pip install 'memformer-train[plots]'`. Figures are made without pyplot, which would keep
them alive and choose a display. Logarithmic axes are in powers of two, written out plainly: sizes and lengths here are
doubled from row to row, and a memory is spoken of in halves.
"""

import importlib.util
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Told apart with any kind of colour vision (Okabe and Ito); lines are told apart by their markers, too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "os^Dv<>ph*"
TITLE, TEXT, SMALL = 10, 9, 8  # sizes in points
MOST_INSIDE, LONGEST_INSIDE = 4, 24  # entries of a legend inside the axes, and their letters; else it stands beside
MOST_MARKED = 60  # points of a line that has a marker at each
FEW = 4.0  # largest through smallest value, up to which an axis is better off linear


def available() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def name(axes: "Axes", *, title: str = "", x: str = "", y: str = "") -> None:
    """Title and axes in the project's sizes, and numbers as people write them."""
    from matplotlib.ticker import ScalarFormatter, StrMethodFormatter

    axes.set_title(title, loc="left", fontsize=TITLE)
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), ScalarFormatter) and max(map(abs, axis.get_view_interval())) >= 1000:
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def whole(axis: "Axis") -> None:
    """Ticks at whole numbers alone, and not too many of them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def doubling(axes: "Axes", which: Literal["x", "y"], values: Iterable[float]) -> bool:
    """A logarithmic axis with its ticks at powers of two; linear, where all values are near each other.

    Args:
        axes: The plot.
        which: The axis.
        values: All that is drawn along it, the lines to compare with included.

    Returns:
        Whether it is logarithmic.
    """
    from matplotlib.ticker import NullLocator

    found = [value for value in values if value > 0]
    if not found or max(found) <= FEW * min(found):
        return False
    least, largest = math.log2(min(found)), math.log2(max(found))
    exponents = range(math.ceil(least - 0.1), math.floor(largest + 0.1) + 1)
    stride = -(-len(exponents) // _most_ticks(axes, which, len(plain(max(found)))))
    first = 0 if 0 in exponents else exponents[0]  # 1 has a tick where it is drawn
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_minor_locator(NullLocator())
    ticks = [2.0**exponent for exponent in exponents if (exponent - first) % stride == 0]
    axis.set_ticks(ticks, [plain(tick) for tick in ticks])
    margin = 0.04 * (largest - least)
    axes.set(**{f"{which}lim": (2 ** (least - margin), 2 ** (largest + margin))})
    return True


def _most_ticks(axes: "Axes", which: str, letters: int) -> int:
    """How many labels of so many letters there is room for, side by side or one above the other."""
    if which == "y":
        return 8
    inches = 0.95 * axes.bbox.width / axes.figure.dpi
    return max(2, min(8, int(inches / (0.12 + 0.075 * letters))))


def plain(value: float) -> str:
    """A power of two as people write it: 1,024 or 1/8."""
    return f"{value:,.0f}" if value >= 1 else f"1/{1 / value:,.0f}"


def compare(axes: "Axes", y: float, words: str) -> None:
    """A horizontal line to compare with, named at its right end."""
    axes.axhline(y, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        words,
        (0.99, y),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
        color="#444444",
    )


def beside(labels: Sequence[str]) -> bool:
    """Whether a legend would cover what is drawn, so that it stands beside the axes."""
    return len(labels) > MOST_INSIDE or max(map(len, labels), default=0) > LONGEST_INSIDE


def legend(axes: "Axes") -> None:
    """The legend, within the axes or beside them."""
    _, labels = axes.get_legend_handles_labels()
    outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0.0, "frameon": False}
    axes.legend(fontsize=SMALL, **(outside if beside(labels) else {}))


def lines(axes: "Axes", series: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> None:
    """A line for each (label, x, y), told apart by colour and marker."""
    for number, (label, x, y) in enumerate(series):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        marker = marker if len(x) <= MOST_MARKED else ""
        broken = (0, (6, 2)) if number % 2 else "-"  # a line is seen through the one that it coincides with
        axes.plot(x, y, color=colour, marker=marker, linestyle=broken, markersize=4, linewidth=1.3, label=label)
    axes.grid(alpha=0.25)
