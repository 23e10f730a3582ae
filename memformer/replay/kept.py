# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`KeptMemories`: which memories a replay keeps between its passes, and from which it computes the others again.

Pass 2 asks for the memories before the segments T-2, ..., 0 (that before the last segment is at hand when pass 1 ends).
They are grouped k by k from the end. The newest group is kept whole, since pass 2 begins with it; of every other one
the oldest memory is kept, and the group's others are computed from it when pass 2 comes to them:

    T = 8, k = 3    memories before segments   0 | 1  2  3 | 4  5  6      kept by pass 1: 0, 1, 4, 5, 6

`DecoderGroups` is the same question where the decoder takes several segments at once (`grouped_replay_backward`).

No torch here: `memformer plan` counts with both.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class KeptMemories:
    """The memories that are kept of a rollout.

    Attributes:
        segments: T of the rollout.
        interval: k, the memories of a group; 1 keeps all.
    """

    segments: int
    interval: int = 1

    @property
    def count(self) -> int:
        """Memories kept at the end of pass 1, the most there ever are: at most T/k + k."""
        needed = self.segments - 1
        return min(needed, -(-needed // self.interval) + self.interval - 1)

    @property
    def recomputed(self) -> int:
        """Segments that are advanced once more because the memory behind them is not kept."""
        return self.segments - 1 - self.count

    def keeps(self, segment: int) -> bool:
        """Whether pass 1 keeps the memory before a segment."""
        back = self.segments - 2 - segment
        return segment == 0 or back < self.interval or back % self.interval == self.interval - 1

    def missing_from(self, segment: int) -> int | None:
        """Where pass 2 has to begin to compute the group that ends with the memory before `segment`.

        Args:
            segment: Pass 2 comes to it with the groups behind it done.

        Returns:
            The segment before which that group's memory was kept; None: the memory before `segment` is there itself.
        """
        back = self.segments - 2 - segment
        if self.keeps(segment) or back % self.interval:
            return None
        return max(0, segment - self.interval + 1)


@dataclasses.dataclass(frozen=True)
class DecoderGroups:
    """The segments of a rollout in the groups whose decoder runs at once, filled from the end.

    Attributes:
        segments: T of the rollout.
        group: G; the first group has what is left over.
    """

    segments: int
    group: int

    @property
    def spans(self) -> list[range]:
        """Numbers of each group's segments."""
        stops = range(self.segments, 0, -self.group)
        return [range(max(0, stop - self.group), stop) for stop in reversed(stops)]

    @property
    def count(self) -> int:
        """Memories kept at the end of pass 1: the one before each group but the last."""
        return len(self.spans) - 1

    @property
    def recomputed(self) -> int:
        """Encoders that run without a graph beyond the T-1 of a replay that takes one segment at a time."""
        spans = self.spans
        return (self.segments - len(spans[-1])) + (self.segments - len(spans)) - (self.segments - 1)


def kept_memories(segments: int, interval: int = 1, group: int = 1) -> KeptMemories | DecoderGroups:
    """What a replay keeps of T segments: every memory, every k-th, or that before every group of the decoder."""
    return DecoderGroups(segments, group) if group > 1 else KeptMemories(segments, interval)
