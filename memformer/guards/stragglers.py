# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which process is slow: every step takes as long as the slowest, so only a process's own time tells.

A step's time splits into data (waiting for the next batch), compute (the rollout, up to the reduction of its
gradients) and the rest, in which a fast process waits for the slow ones.
"""

import dataclasses
import logging
import socket
import statistics
from typing import Any

from memformer.processes import group

LOG = logging.getLogger("memformer")
PARTS = ("step", "data", "compute", "communication")


@dataclasses.dataclass
class StepTimes:
    """Times of this process since the last report, in seconds.

    Attributes:
        step: Whole steps.
        data: Waiting for batches.
        compute: Rollouts without the waiting for others.
    """

    step: list[float] = dataclasses.field(default_factory=list)
    data: list[float] = dataclasses.field(default_factory=list)
    compute: list[float] = dataclasses.field(default_factory=list)

    def add(self, step: float, data: float, compute: float) -> None:
        """One step."""
        self.step.append(step)
        self.data.append(data)
        self.compute.append(compute)

    def summary(self) -> dict[str, Any]:
        """Median and 95th percentile of each part, in seconds, and the host."""
        rest = [max(0.0, s - d - c) for s, d, c in zip(self.step, self.data, self.compute, strict=True)]
        columns = (self.step, self.data, self.compute, rest)
        found: dict[str, Any] = {"host": socket.gethostname()}
        for name, values in zip(PARTS, columns, strict=True):
            ordered = sorted(values)
            found[name] = {"p50": statistics.median(ordered), "p95": ordered[int(0.95 * (len(ordered) - 1))]}
        busy = [d + c for d, c in zip(self.data, self.compute, strict=True)]
        found["busy"] = statistics.median(busy)
        return found


def report(times: StepTimes, factor: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Compares all processes; called by all of them.

    Args:
        times: This process's, of at least one step.
        factor: How many times the median process's busy time makes a process slow.

    Returns:
        The processes' summaries by rank, and a line for each slow one.
    """
    ranks: list[dict[str, Any]] = group.gather(times.summary())
    if len(ranks) < 2:
        return ranks, []
    slow = []
    for number, each in enumerate(ranks):
        # Without the process itself: of two, neither may hide in the median.
        usual = statistics.median(other["busy"] for other in ranks[:number] + ranks[number + 1 :])
        if each["busy"] > factor * usual:
            part = "data" if each["data"]["p50"] > each["compute"]["p50"] else "compute"
            slow.append(
                f"rank {number} on {each['host']} is slow: busy {each['busy']:.3f} s a step, the others {usual:.3f} s; "
                f"most of it in {part} (median {each[part]['p50']:.3f} s)"
            )
    return ranks, slow
