# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Axes that a person can read: doublings in plain numbers, labels that do not touch, levels with their names."""

import itertools
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from memformer.inference import drawing


def drawn(x: list[float], y: list[float], size: tuple[float, float] = (6.4, 4)) -> Any:
    """A line on axes by doublings."""
    axes = drawing.figure(*size).subplots()
    drawing.lines(axes, [("line", x, y)])
    drawing.doubling(axes, "x", x)
    drawing.doubling(axes, "y", y)
    drawing.name(axes, title="title", x="x", y="y")
    FigureCanvasAgg(axes.figure).draw()
    return axes


def labels(axis: Any) -> list[str]:
    """What stands at the ticks, the minor ones included, within the view."""
    least, largest = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1.get_text() for tick in ticks if least <= tick.get_loc() <= largest]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"]),
        ([56, 224, 784], ["64", "128", "256", "512"]),
        ([8, 640, 100_000], ["8", "32", "128", "512", "2,048", "8,192", "32,768"]),
        ([0.33, 27.0], ["1/2", "1", "2", "4", "8", "16"]),
        ([1.0, 2.0**-10], ["1/1,024", "1/256", "1/64", "1/16", "1/4", "1"]),
    ],
)
def test_ticks_are_plain_doublings(values: list[float], expected: list[str]) -> None:
    assert labels(drawn(values, [1.0, *values[1:]]).xaxis) == expected


def test_what_lies_close_together_is_linear() -> None:
    axes = drawn([1, 2, 3], [5.4, 5.6, 5.7])
    assert axes.get_xscale() == axes.get_yscale() == "linear"
    assert not drawing.doubling(axes, "y", [0.0, 0.0])


@pytest.mark.parametrize("most", [2, 32, 1000, 100_000, 10_000_000])
@pytest.mark.parametrize("size", [(6.4, 4.0), (4.4, 3.6)])
def test_labels_do_not_touch(most: float, size: tuple[float, float]) -> None:
    axes = drawn([1, most], [1, most], size)
    renderer = axes.figure.canvas.get_renderer()
    for axis in (axes.xaxis, axes.yaxis):
        least, largest = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if least <= tick.get_loc() <= largest]
        boxes = [tick.label1.get_window_extent(renderer) for tick in ticks]
        assert len(boxes) >= 2
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_a_level_is_drawn_and_named_and_a_long_legend_stands_beside() -> None:
    axes = drawn([1, 8], [1, 8])
    drawing.compare(axes, 2, "chance")
    assert [text.get_text() for text in axes.texts] == ["chance"]
    assert list(axes.lines[-1].get_ydata()) == [2, 2]
    for names, outside in ((["a", "b"], False), (list("abcde"), True), (["a", 30 * "b"], True)):
        axes = drawing.figure(6.4, 4).subplots()
        drawing.lines(axes, [(name, [1, 2], [1, 2]) for name in names])
        drawing.legend(axes)
        FigureCanvasAgg(axes.figure).draw()
        box = axes.get_legend().get_window_extent()
        assert (box.x0 >= axes.get_window_extent().x1) == outside
