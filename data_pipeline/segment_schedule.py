# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentSchedule`: how many segments a rollout has, by the number of rollouts before it.

A longer rollout trains the memory over a longer way and costs as much more, so a run may begin with short ones:
`{0: 1, 1000: 2, 3000: 4}` is 1 segment in rollouts 1 to 1000, 2 in the next 2000, and 4 from then on. The plan of what
is read does not ask how it is cut into rollouts: lanes, documents and memories go on across a change.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

MOST = 1_000_000
"""The largest T: of segments as short as a token each, a step of one lane would read a million."""

_MEND = "give a number of segments, or by the steps done before, {0: 1, 1000: 2} with a blank behind each colon"


@dataclass(frozen=True)
class SegmentSchedule:
    """Segments T of a rollout.

    Attributes:
        starts: (rollouts done before, segments from then on), in ascending order; the first begins at 0.
    """

    starts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, value: object) -> "SegmentSchedule":
        """The schedule that a number, or a mapping from rollouts done to segments, stands for.

        Raises:
            ValueError: It stands for none; one line says why, without naming the setting.
        """
        given = {0: value} if not isinstance(value, Mapping) else value
        try:
            starts = {_whole(done): _whole(segments) for done, segments in given.items()}
        except ValueError:
            raise ValueError(f"is {_shown(value)}: {_MEND}") from None
        if len(starts) < len(given):
            raise ValueError(f"is {_shown(value)}: names a step twice, leave one of the two")
        if 0 not in starts:
            raise ValueError(f"is {_shown(value)}: does not say with how many segments to begin, add 0: 1 to it")
        for done, segments in starts.items():
            if not 1 <= segments <= MOST or done < 0:
                raise ValueError(f"is {_shown(value)}: give 1 to {MOST:,} segments, from step 0 or a later one")
        return cls(tuple(sorted(starts.items())))

    @property
    def most(self) -> int:
        """The largest T."""
        return max(segments for _, segments in self.starts)

    def at(self, done: int) -> int:
        """T of the rollout after so many."""
        return next(segments for start, segments in reversed(self.starts) if start <= done)

    def until_change(self, done: int) -> int | None:
        """Rollouts after so many, that one included, before T changes; None: it does not change any more."""
        return next((start - done for start, _ in self.starts if start > done), None)

    def total(self, rollouts: int) -> int:
        """Segments of a lane in the first rollouts."""
        ends = [*(start for start, _ in self.starts[1:]), rollouts]
        return sum(
            segments * max(0, min(end, rollouts) - start)
            for (start, segments), end in zip(self.starts, ends, strict=True)
        )

    def words(self) -> str:
        """As a user may read it: 1, from step 1,001 on 2."""
        first, *later = self.starts
        parts = (f"from step {start + 1:,} on {segments}" for start, segments in later)
        return ", ".join(itertools.chain([str(first[1])], parts))


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(value)
    return int(value)


def _shown(value: object) -> str:
    """A value in YAML's words, cut where it is long."""
    if isinstance(value, Mapping):
        text = f"{{{', '.join(f'{done}: {_shown(segments)}' for done, segments in value.items())}}}"
    else:
        text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
