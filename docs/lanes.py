# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Draws docs/lanes.svg: what a real plan gives to five lanes, and what becomes of it with three.

python docs/lanes.py            (needs matplotlib: pip install -e '.[plots]')
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline import LanePlan
from memformer.inference import drawing

LENGTHS = [90, 34, 58, 21, 110, 47, 70, 15, 64, 38, 82, 29]
SEGMENT, SEGMENTS, FIRST, LATER = 10, 4, 3, 4
LANES, LANES_LATER = 5, 3


def draw(axes: Axes, plan: LanePlan, rollouts: int, first_column: int) -> None:
    """One bar a segment, as wide as its tokens; a bold edge where a document begins, an arrow where a carry comes.

    A document's number stands where a lane takes it up.
    """
    colours = matplotlib.colormaps["tab20"]
    named: dict[int, int] = {}
    for number in range(rollouts):
        rollout = plan.next_rollout(SEGMENTS)
        assert rollout is not None
        for lane in range(plan.num_lanes):
            if rollout.carry_from[lane] >= 0:
                column = (first_column + number * SEGMENTS) * SEGMENT
                axes.text(column - 1, lane, "▸", ha="right", va="center", fontsize=11)
            for segment in range(SEGMENTS):
                length = int(rollout.lengths[lane, segment])
                if not length:
                    continue
                document = int(rollout.documents[lane, segment])
                left = (first_column + number * SEGMENTS + segment) * SEGMENT
                colour = colours(document % 20)
                axes.barh(lane, length - 0.6, left=left, height=0.72, color=colour, edgecolor="none")
                if rollout.resets[lane, segment]:
                    axes.plot([left, left], [lane - 0.42, lane + 0.42], color="black", linewidth=2.4)
                if named.get(lane) != document:
                    ink = "white" if np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.5 else "black"
                    axes.text(left + 1, lane, str(document), va="center", fontsize=drawing.SMALL, color=ink)
                named[lane] = document
    for number in range(rollouts + 1):
        axes.axvline((first_column + number * SEGMENTS) * SEGMENT - 0.3, color="grey", linewidth=0.6, linestyle=":")


def main() -> None:
    """Draws the picture."""
    matplotlib.rcParams["svg.hashsalt"] = "lanes"  # the same bytes each time
    figure = drawing.figure(9, 4.3)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[LANES, LANES_LATER])
    plan = LanePlan(LENGTHS, num_lanes=LANES, segment_length=SEGMENT, seed=1)
    draw(above, plan, FIRST, 0)
    fewer = LanePlan(LENGTHS, num_lanes=LANES_LATER, segment_length=SEGMENT, seed=1)
    fewer.load_state_dict(plan.state_dict())
    draw(below, fewer, LATER, FIRST * SEGMENTS)
    drawing.name(above, title="5 lanes: each reads one document after another, segment by segment")
    resumed = "stopped and resumed with 3 lanes: ▸ a document that lost its lane is taken up with its memory"
    legend = (
        "time →   (number: the document that the lane takes up;  bold edge: the memory starts anew\n"
        "dotted: rollouts of 4 segments;  gap: padding or idle)"
    )
    drawing.name(below, title=resumed, x=legend)
    for axes, lanes in ((above, LANES), (below, LANES_LATER)):
        axes.set_yticks(range(lanes), [f"lane {lane}" for lane in range(lanes)], fontsize=drawing.SMALL)
        axes.invert_yaxis()
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
    below.set_xticks([])
    figure.savefig(Path(__file__).with_name("lanes.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
