# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Draws docs/memory_replay.svg: what a real replay does, call by call, and how many segments' graphs are alive.

python docs/memory_replay.py    (needs matplotlib: pip install -e '.[plots]')
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from memformer import Memformer, MemformerConfig
from memformer.inference import drawing
from memformer.replay import Carry, Rollout, bptt_backward, memory_replay_backward

SEGMENTS, LANES, LENGTH = 6, 1, 8
COLOURS = {"memory alone": "#8fb7d8", "forward with a graph": "#0072b2", "backward": "#d55e00"}
Call = tuple[str, int, int]
"""What was done, of which segment, and the segments whose graphs are alive then."""


class Watched:
    """A model as a `Cell`, whose calls are noted."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Memformer(
            MemformerConfig(
                1, 1, d_model=16, num_heads=2, d_ff=32, num_memory_slots=2, vocab_size=20, start_token_id=19
            )
        )
        self.calls: list[Call] = []
        self.alive = self.segment = 0

    def advance(self, segment: Any, memory: torch.Tensor) -> torch.Tensor:
        """The memory alone, without a graph."""
        self.calls.append(("memory alone", self.segment, self.alive))
        self.segment += 1
        return self.model.advance(segment, memory)

    def __call__(self, segment: Any, memory: torch.Tensor) -> Any:
        """With a graph."""
        self.alive += 1
        self.calls.append(("forward with a graph", self.segment, self.alive))
        self.segment += 1
        return self.model(segment, memory)

    def backward(self, objective: torch.Tensor, remaining: int) -> None:
        """Of replay the objective is one segment's, and its graph goes; of full back-propagation it is all of them."""
        objective.backward()  # type: ignore[no-untyped-call]
        last = self.segment - 1
        for segment in range(last, last - self.alive, -1):
            self.calls.append(("backward", segment, self.alive))
        self.alive, self.segment = 0, remaining - 1


def calls_of(algorithm: Callable[..., Any]) -> list[Call]:
    """The calls of a rollout."""
    cell = Watched()
    starts = torch.zeros(LANES, SEGMENTS, dtype=torch.bool)
    lengths = torch.full((LANES, SEGMENTS), LENGTH)
    rollout = Rollout.of(torch.randint(19, (LANES, SEGMENTS, LENGTH)), lengths, starts)
    carry = Carry.empty(cell.model.initial_memory(LANES).detach(), LENGTH)
    algorithm(cell, rollout, carry, cell.backward, denominator=1.0, seed=0)
    return cell.calls


def draw(axes: Axes, calls: list[Call], columns: int) -> None:
    """A cell a call: time to the right, the segment downward."""
    for column, (what, segment, _) in enumerate(calls):
        axes.barh(segment, 0.9, left=column, height=0.8, color=COLOURS[what], edgecolor="none")
    axes.set_xlim(0, columns)
    axes.set_yticks(range(SEGMENTS), [f"segment {number + 1}" for number in range(SEGMENTS)], fontsize=drawing.SMALL)
    axes.invert_yaxis()
    axes.set_xticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)


def main() -> None:
    """Draws the picture."""
    matplotlib.rcParams["svg.hashsalt"] = "memory replay"  # the same bytes each time
    replayed, whole = calls_of(memory_replay_backward), calls_of(bptt_backward)
    columns = max(len(replayed), len(whole))
    figure = drawing.figure(9, 5.6)
    above, middle, below = figure.subplots(3, 1, height_ratios=[SEGMENTS, SEGMENTS, 3])
    draw(above, replayed, columns)
    drawing.name(
        above, title="memory replay: the memories forward, then the segments again, from the last to the first"
    )
    draw(middle, whole, columns)
    drawing.name(middle, title="full back-propagation through time, the reference")
    for calls, words, line in ((replayed, "memory replay", "-"), (whole, "full back-propagation", "--")):
        below.step(range(len(calls)), [alive for *_, alive in calls], line, where="post", label=words, color="black")
    below.set_xlim(0, columns)
    below.set_ylim(0, SEGMENTS + 0.5)
    drawing.whole(below.yaxis)
    drawing.name(below, title="segments whose graphs are kept", x="calls →")
    below.legend(fontsize=drawing.SMALL, loc="center right")
    patches = [Patch(color=colour, label=words) for words, colour in COLOURS.items()]
    above.legend(handles=patches, fontsize=drawing.SMALL, loc="lower left")
    figure.savefig(Path(__file__).with_name("memory_replay.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
