# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The pictures of an inspected memory (`memformer.inference.inspection`): files of the command, images of TensorBoard.

All of them tell of one quantity, `retention`: what a write leaves of a slot, forgetting included. It colours the slots,
it is the heat map, and its product is drawn beside the moved memory that was measured.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline import UserError
from memformer.inference import drawing
from memformer.inference.drawing import available as available

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_COLOURS = {"kept": "#0072b2", "mixed": "#8a8a8a", "overwritten": "#d55e00"}
KIND_WORDS = {"kept": "kept (over 0.8)", "mixed": "mixed", "overwritten": "overwritten (below 0.2)"}
MOST_ROWS = 24  # slots whose tokens are shown
MOST_NAMED = 40  # slots that have a tick each
LEAST_SHOWN = 2.0**-12  # of a difference
TEXT_WIDTH = 16  # characters of context shown on either side of a token


def pictures(report: dict[str, Any]) -> dict[str, "Figure"]:
    """Every picture of a report, by name.

    Args:
        report: What `MemoryInspector.report` returned.

    Returns:
        self_weight, kinds, similarity and tokens; perturbation, where one was made.

    Raises:
        UserError: matplotlib is missing.
    """
    if not available():
        raise UserError("pictures need matplotlib: pip install 'memformer-train[plots]', or give --no-pictures")
    if "recall" in report:
        return {"recall": recall(report)} if report["recall"] else {}
    drawn = {
        "self_weight": self_weight(report),
        "kinds": kinds(report),
        "similarity": similarity(report),
        "tokens": tokens(report),
    }
    if report["perturbation"]:
        drawn["perturbation"] = perturbation(report)
    return drawn


def recall(report: dict[str, Any]) -> "Figure":
    """What keys still read of what a segment wrote, by layer and by segments since; below, the norm by write."""
    found, columns = report["recall"], report["columns"]
    figure = drawing.figure(9, 7)
    above, below = figure.subplots(2, 1)
    layers = np.array(found["distinct"]).shape[1]
    for layer in range(layers):
        shade = str(0.8 * layer / max(1, layers - 1))  # from black, the first, to light grey, the last
        above.plot(found["distance"], np.array(found["distinct"])[:, layer], color=shade)
        below.plot(columns["first_write"], np.array(columns["norm"])[:, layer], color=shade)
    title = "What is still read of what sets the values of a segment apart, by layer"
    drawing.name(above, title=title, y="distinct", x="segments since")
    drawing.name(below, title="Norm of the memory (black: the first layer)", y="norm", x="write")
    return figure


def self_weight(report: dict[str, Any]) -> "Figure":
    """Each slot's weight on itself by write, and what is left of it with forgetting; below, the shares of the kinds."""
    columns, writes = report["columns"], report["document"]["writes"]
    retained_KC = np.array(columns["retention"]).T
    order = np.argsort(-retained_KC.mean(1), kind="stable")
    figure = drawing.figure(9, 8)
    *maps, below = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 1])
    for axes, values_KC, title in (
        (maps[0], np.array(columns["self_weight"]).T, "What the writer keeps: each slot's weight on itself"),
        (maps[1], retained_KC, "What is left of each slot after the write: the same, less what is forgotten"),
    ):
        image = axes.imshow(
            values_KC[order],
            vmin=0,
            vmax=1,
            aspect="auto",
            extent=(-0.5, writes - 0.5, len(order), 0),
            interpolation="nearest",
        )
        step = -(-len(order) // MOST_NAMED)
        axes.set_yticks(np.arange(0, len(order), step) + 0.5, [str(slot) for slot in order[::step]])
        drawing.name(axes, title=title, y="slot")
        axes.tick_params(axis="y", labelsize=7)
    colours = figure.colorbar(image, ax=maps, label="share of the slot", aspect=40)
    colours.ax.tick_params(labelsize=drawing.SMALL)
    edges = np.append(columns["first_write"], writes) - 0.5
    shares = [np.append(columns[kind], columns[kind][-1]) for kind in KIND_COLOURS]
    below.stackplot(edges, shares, colors=list(KIND_COLOURS.values()), labels=list(KIND_WORDS.values()), step="post")
    below.set_xlim(-0.5, writes - 0.5)
    below.set_ylim(0, 1)
    drawing.whole(below.xaxis)
    drawing.name(
        below, title="Kinds of slots, by what is left", x="write (segment of the document)", y="share of slots"
    )
    below.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=drawing.SMALL)
    return figure


def kinds(report: dict[str, Any]) -> "Figure":
    """The histogram of what is left of the slots, beside that of their weights; and the norm of the bias against it."""
    figure = drawing.figure(9.5, 3.8)
    left, right = figure.subplots(1, 2)
    histogram = report["histogram"]
    edges = np.array(histogram["edges"])
    for name, words, style in (
        ("slots_times_writes", "what is left (retention)", {"color": drawing.COLOURS[0], "fill": True}),
        ("slots_times_writes_by_self_weight", "weight on itself", {"color": drawing.COLOURS[6], "linewidth": 1.2}),
    ):
        counts = np.array(histogram[name])
        left.stairs(counts / max(1, counts.sum()), edges, label=words, **style)
    left.set_xlim(-0.02, 1.02)
    drawing.name(left, title="What a write leaves of a slot", x="share of the slot", y="share of slots x writes")
    drawing.legend(left)
    for kind, colour in KIND_COLOURS.items():
        chosen = [slot for slot in report["slots"] if slot["kind"] == kind and slot["bias_norm"] is not None]
        if chosen:
            kept = [slot["retention_middle"] for slot in chosen]
            right.scatter(kept, [slot["bias_norm"] for slot in chosen], s=20, color=colour, label=KIND_WORDS[kind])
    right.set_xlim(-0.02, 1.02)
    if report["bias_norm_by_kind"] is None:
        right.text(0.5, 0.5, "sharded (ZeRO 3)", ha="center", transform=right.transAxes)
    elif report["model"].get("memory_forgetting") == "paper":
        norms = np.linspace(max(0, right.get_ylim()[0]), right.get_ylim()[1], 100)
        right.plot(1 / (1 + norms), norms, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)), label="1/(1 + norm)")
    about = "left of a slot after a write, middle of the document"
    drawing.name(right, title="Norm of a slot's bias", x=about)
    if right.get_legend_handles_labels()[1]:
        drawing.legend(right)
    return figure


def similarity(report: dict[str, Any]) -> "Figure":
    """Cosines between the slots at the end, and their mean by write."""
    figure = drawing.figure(9.5, 3.8)
    left, right = figure.subplots(1, 2)
    image = left.imshow(report["similarity"]["cosine"], vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    figure.colorbar(image, ax=left, label="cosine")
    drawing.whole(left.xaxis)
    drawing.whole(left.yaxis)
    drawing.name(left, title="Slots at the end of the document", x="slot", y="slot")
    columns = report["columns"]
    for name, words, colour in (
        ("slot_cosine", "mean cosine of two slots", drawing.COLOURS[0]),
        ("change", "change a write (1 - cosine)", drawing.COLOURS[1]),
    ):
        right.plot(columns["first_write"], columns[name], label=words, color=colour, linewidth=1.2)
    right.set_ylim(min(-0.05, *columns["slot_cosine"]), 1.02)
    right.grid(alpha=0.25)
    drawing.whole(right.xaxis)
    drawing.name(right, title="By write", x="write (segment of the document)")
    right.legend(fontsize=drawing.SMALL)
    return figure


def perturbation(report: dict[str, Any]) -> "Figure":
    """How much is left of a moved memory, by writes since: as measured, and as the retention of each write has it."""
    moved = report["perturbation"]
    figure = drawing.figure(8.6, 4.2)
    axes: Axes = figure.subplots()
    start = moved["all_slots"][0]
    shown: list[float] = []
    for slot, distances in zip(report["slots"], moved["each_slot"], strict=True):
        if distances:
            left = np.array(distances) / distances[0]
            axes.plot(left, color=KIND_COLOURS[slot["kind"]], linewidth=0.8, alpha=0.7)
            shown.extend(left)
    present = {slot["kind"] for slot in report["slots"]}
    for kind in (each for each in KIND_COLOURS if each in present):
        axes.plot([], [], color=KIND_COLOURS[kind], label=f"one slot, {KIND_WORDS[kind]}")
    measured, expected = np.array(moved["all_slots"]) / start, np.array(moved["expected_all_slots"]) / start
    axes.plot(measured, color="black", linewidth=2, label="all slots")
    axes.plot(
        expected,
        color="#e69f00",
        linewidth=1.6,
        linestyle="--",
        label="all slots, expected from what each write leaves",
    )
    shown.extend([*measured, *expected])
    drawing.doubling(axes, "y", [each for each in shown if each > LEAST_SHOWN])
    drawing.compare(axes, 0.5, "half")
    drawing.whole(axes.xaxis)
    axes.grid(alpha=0.25)
    about = f"writes since the memory was moved (write {moved['at_write']:,})"
    drawing.name(axes, title="What is left of a moved memory", x=about, y="difference / its start")
    drawing.legend(axes)
    return figure


def tokens(report: dict[str, Any]) -> "Figure":
    """For each slot the token it took with most weight, and the one it holds most of, in their text."""
    shown = report["slots"][:MOST_ROWS]
    figure = drawing.figure(11, 0.9 + 0.24 * len(shown))
    axes: Axes = figure.subplots()
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shown) + 0.5, -1.2)
    titles = (
        (0.0, "slot"),
        (0.05, "left a write"),
        (0.2, "took with most weight"),
        (0.6, "holds most of at the end"),
    )
    for x, title in titles:
        axes.text(x, -0.7, title, fontweight="bold", fontsize=9)
    for row, slot in enumerate(shown):
        axes.text(0.0, row, str(slot["slot"]), fontsize=8, color=KIND_COLOURS[slot["kind"]], fontweight="bold")
        axes.text(0.05, row, f"{slot['retention']:.3f} {slot['kind']}", fontsize=8, family="monospace")
        for x, found in ((0.2, slot["took"]), (0.6, slot["holds"])):
            line = excerpt(found[0]) if found else ""
            axes.text(x, row, line, fontsize=8, family="monospace", parse_math=False)
    left_out = len(report["slots"]) - len(shown)
    if left_out:
        axes.text(0, len(shown) + 0.2, f"and {left_out} more slots", fontsize=8)
    return figure


def excerpt(token: dict[str, Any]) -> str:
    """A token in its text, with its weight: what cannot be seen is shown as a dot."""
    before, text, after = (
        "".join(c if c.isprintable() and c.isascii() else "·" for c in token[part])
        for part in ("before", "text", "after")
    )
    return f"{token['weight']:<7.2g} {before[-TEXT_WIDTH:]:>{TEXT_WIDTH}}[{text}]{after[:TEXT_WIDTH]}"
