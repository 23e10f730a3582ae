# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What this process last did with the others: number, name and size of the collective it is in, or came out of.

When a run hangs, the process that has entered fewer collectives than the others is the one they wait for.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

_WATCHED = (
    "all_reduce",
    "broadcast",
    "reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "all_to_all_single",
    "barrier",
    "broadcast_object_list",
    "all_gather_object",
)


@dataclasses.dataclass
class CollectiveLog:
    """Counters of this process.

    Attributes:
        count: Collectives entered so far.
        last: The last one, e.g. `all_reduce of 4,096 float32`.
        inside: Whether it has not returned yet.
        seconds: Time spent inside; on GPUs, where most return at once, a lower bound.
        moved_at: time.monotonic() of the last entry or return.
        messages: Number and bytes of the messages sent to other pipeline stages or segment ranks, by kind.
    """

    count: int = 0
    last: str = "none"
    inside: bool = False
    seconds: float = 0.0
    moved_at: float = 0.0
    messages: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """The collective, noted."""

        @functools.wraps(original)
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.inside:  # one that is made of others counts once
                return original(*arguments, **keywords)
            payload = next((each for each in (*arguments, *keywords.values()) if torch.is_tensor(each)), None)
            size = "" if payload is None else f" of {payload.numel():,} {str(payload.dtype).removeprefix('torch.')}"
            self.count, self.last, self.inside = self.count + 1, name + size, True
            self.moved_at = began = time.monotonic()
            try:
                return original(*arguments, **keywords)
            finally:
                self.moved_at = time.monotonic()
                self.inside, self.seconds = False, self.seconds + self.moved_at - began

        call.__dict__["watched"] = True
        return call

    @contextlib.contextmanager
    def waiting(self, words: str) -> Iterator[None]:
        """Within the block the process waits for one other process; not a collective, but its time counts as one's."""
        self.last, self.inside = words, True
        self.moved_at = began = time.monotonic()
        try:
            yield
        finally:
            self.moved_at = time.monotonic()
            self.inside, self.seconds = False, self.seconds + self.moved_at - began

    def sent(self, kind: str, payload: torch.Tensor) -> None:
        """Counts a message to one other process."""
        entry = self.messages.setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += payload.numel() * payload.element_size()

    def describe(self) -> str:
        """One line for a report."""
        return f"{'inside' if self.inside else 'after'} collective {self.count} ({self.last})"


LOG = CollectiveLog()


def install() -> None:
    """Watches torch's collectives, DeepSpeed's among them, from now on. May be called again."""
    for name in _WATCHED:
        original = getattr(dist, name, None)
        if original is not None and not hasattr(original, "watched"):
            setattr(dist, name, LOG.watched(name, original))
