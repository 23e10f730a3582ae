# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The pictures of an inspected memory (`memformer.inference.inspection`): files of the command, images of TensorBoard.

Needs matplotlib, an extra: `pip install 'memformer-train[plots]'`. Figures are made without pyplot, which would keep
them alive and choose a display.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"kept": "#3b6fb6", "mixed": "#b9b9b9", "overwritten": "#d2692e"}
MOST_ROWS = 24  # slots whose tokens are shown
TEXT_WIDTH = 16  # characters of context shown on either side of a token


def available() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


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
    drawn = {
        "self_weight": self_weight(report),
        "kinds": kinds(report),
        "similarity": similarity(report),
        "tokens": tokens(report),
    }
    if report["perturbation"]:
        drawn["perturbation"] = perturbation(report)
    return drawn


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def self_weight(report: dict[str, Any]) -> "Figure":
    """Each slot's weight on itself by write, slots in the order of their mean; below, the shares of the kinds."""
    columns, writes = report["columns"], report["document"]["writes"]
    weight_KC = np.array(columns["self_weight"]).T
    order = np.argsort(-weight_KC.mean(1), kind="stable")
    figure = _figure(9, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    extent = (0, writes, len(order), 0)
    image = above.imshow(weight_KC[order], vmin=0, vmax=1, aspect="auto", extent=extent, interpolation="nearest")
    figure.colorbar(image, ax=above, label="weight on itself")
    if len(order) <= 40:
        above.set_yticks(np.arange(len(order)) + 0.5, [str(slot) for slot in order], fontsize=7)
    above.set_ylabel("slot")
    above.set_title("Each slot's weight on itself", loc="left", fontsize=10)
    edges = np.append(columns["first_write"], writes)
    shares = [np.append(columns[kind], columns[kind][-1]) for kind in COLOURS]
    below.stackplot(edges, shares, colors=list(COLOURS.values()), labels=list(COLOURS), step="post")
    below.set_ylim(0, 1)
    below.set_xlim(0, writes)
    below.set_xlabel("write (segment of the document)")
    below.set_ylabel("share of slots")
    below.legend(loc="upper right", fontsize=8)
    return figure


def kinds(report: dict[str, Any]) -> "Figure":
    """The histogram of the weights, and the norm of the bias against them."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    edges = np.array(report["histogram"]["edges"])
    counts = np.array(report["histogram"]["slots_times_writes"])
    left.bar(edges[:-1], counts / max(1, counts.sum()), width=np.diff(edges), align="edge", color="#3b6fb6")
    left.set_xlabel("weight of a slot on itself")
    left.set_ylabel("share of slots x writes")
    left.set_title("Three kinds of slots?", loc="left", fontsize=10)
    right.set_xlabel("mean weight on itself, middle of the document")
    right.set_xlim(-0.02, 1.02)
    right.set_title("Norm of a slot's bias", loc="left", fontsize=10)
    for kind, colour in COLOURS.items():
        chosen = [slot for slot in report["slots"] if slot["kind"] == kind and slot["bias_norm"] is not None]
        if chosen:
            weights = [slot["self_weight_middle"] for slot in chosen]
            right.scatter(weights, [slot["bias_norm"] for slot in chosen], s=18, color=colour, label=kind)
    if report["bias_norm_by_kind"] is None:
        right.text(0.5, 0.5, "sharded (ZeRO 3)", ha="center", transform=right.transAxes)
    else:
        right.legend(fontsize=8)
    return figure


def similarity(report: dict[str, Any]) -> "Figure":
    """Cosines between the slots at the end, and their mean by write."""
    figure = _figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    image = left.imshow(report["similarity"]["cosine"], vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    figure.colorbar(image, ax=left, label="cosine")
    left.set_title("Slots at the end of the document", loc="left", fontsize=10)
    left.set_xlabel("slot")
    left.set_ylabel("slot")
    columns = report["columns"]
    right.plot(columns["first_write"], columns["slot_cosine"], label="mean cosine of two slots")
    right.plot(columns["first_write"], columns["change"], label="change a write (1 - cosine)")
    right.set_xlabel("write")
    right.set_ylim(min(-0.05, *columns["slot_cosine"]), 1.02)
    right.legend(fontsize=8)
    return figure


def perturbation(report: dict[str, Any]) -> "Figure":
    """How much is left of a moved memory, by writes since."""
    moved = report["perturbation"]
    figure = _figure(7, 3.8)
    axes: Axes = figure.subplots()
    for slot, distances in zip(report["slots"], moved["each_slot"], strict=True):
        axes.plot(np.array(distances) / distances[0], color=COLOURS[slot["kind"]], linewidth=0.7, alpha=0.7)
    for kind, colour in COLOURS.items():
        axes.plot([], [], color=colour, label=f"one slot ({kind})")
    everything = np.array(moved["all_slots"])
    axes.plot(everything / everything[0], color="black", linewidth=2, label="all slots")
    axes.axhline(0.5, color="grey", linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel(f"writes since the memory was moved (write {moved['at_write']})")
    axes.set_ylabel("difference / its start")
    axes.legend(fontsize=8)
    return figure


def tokens(report: dict[str, Any]) -> "Figure":
    """For each slot the token it took with most weight, and the one it holds most of, in their text."""
    shown = report["slots"][:MOST_ROWS]
    figure = _figure(11, 0.9 + 0.24 * len(shown))
    axes: Axes = figure.subplots()
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shown) + 0.5, -1.2)
    for x, title in ((0.0, "slot"), (0.05, "took with most weight"), (0.53, "holds most of at the end")):
        axes.text(x, -0.7, title, fontweight="bold", fontsize=9)
    for row, slot in enumerate(shown):
        axes.text(0.0, row, str(slot["slot"]), fontsize=8, color=COLOURS[slot["kind"]], fontweight="bold")
        for x, found in ((0.05, slot["took"]), (0.53, slot["holds"])):
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
    return f"{token['weight']:.3f} {before[-TEXT_WIDTH:]:>{TEXT_WIDTH}}[{text}]{after[:TEXT_WIDTH]}"
