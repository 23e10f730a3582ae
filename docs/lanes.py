# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Draws docs/lanes.svg: what a real plan gives to five lanes, and what becomes of it with three.

python docs/lanes.py            (needs matplotlib: pip install -e '.[plots]')
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline import LanePlan

LENGTHS = [90, 34, 58, 21, 110, 47, 70, 15, 64, 38, 82, 29]
SEGMENT, SEGMENTS, FIRST, LATER = 10, 4, 3, 4
LANES, LANES_LATER = 5, 3


def draw(axes: plt.Axes, plan: LanePlan, rollouts: int, first_column: int) -> None:
    """One bar a segment, as wide as its tokens; a darker edge where a document begins, an arrow where a carry comes."""
    colours = plt.get_cmap("tab20")
    for number in range(rollouts):
        rollout = plan.next_rollout(SEGMENTS)
        assert rollout is not None
        for lane in range(plan.num_lanes):
            if rollout.carry_from[lane] >= 0:
                column = (first_column + number * SEGMENTS) * SEGMENT
                axes.text(column - 1, lane + 0.5, "▸", ha="right", va="center", fontsize=11)
            for segment in range(SEGMENTS):
                length = int(rollout.lengths[lane, segment])
                if not length:
                    continue
                document = int(rollout.documents[lane, segment])
                left = (first_column + number * SEGMENTS + segment) * SEGMENT
                axes.barh(lane, length - 0.6, left=left, height=0.72, color=colours(document % 20), edgecolor="none")
                if rollout.resets[lane, segment]:
                    axes.plot([left, left], [lane - 0.42, lane + 0.42], color="black", linewidth=2.4)
                    axes.text(left + 1, lane, str(document), va="center", fontsize=8)
    for number in range(rollouts + 1):
        axes.axvline((first_column + number * SEGMENTS) * SEGMENT - 0.3, color="grey", linewidth=0.6, linestyle=":")


def main() -> None:
    """Draws the picture."""
    plt.rcParams["svg.hashsalt"] = "lanes"  # the same bytes each time
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 4.3), sharex=True, gridspec_kw={"height_ratios": [LANES, LANES_LATER]}
    )
    plan = LanePlan(LENGTHS, num_lanes=LANES, segment_length=SEGMENT, seed=1)
    draw(above, plan, FIRST, 0)
    fewer = LanePlan(LENGTHS, num_lanes=LANES_LATER, segment_length=SEGMENT, seed=1)
    fewer.load_state_dict(plan.state_dict())
    draw(below, fewer, LATER, FIRST * SEGMENTS)
    above.set_title("5 lanes: each reads one document after another, segment by segment", fontsize=10, loc="left")
    resumed = "stopped and resumed with 3 lanes: ▸ a document that lost its lane is taken up with its memory"
    below.set_title(resumed, fontsize=10, loc="left")
    for axes, lanes in ((above, LANES), (below, LANES_LATER)):
        axes.set_yticks(range(lanes), [f"lane {lane}" for lane in range(lanes)], fontsize=8)
        axes.invert_yaxis()
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
    below.set_xticks([])
    legend = "time →   (dotted: rollouts of 4 segments;  bold edge: the memory starts anew;  gap: padding or idle)"
    below.set_xlabel(legend, fontsize=9)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("lanes.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
