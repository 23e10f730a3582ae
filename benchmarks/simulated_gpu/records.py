# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a simulated device has seen, and where in the project each of it was asked for."""

import dataclasses
import functools
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_OURS = ("memformer/", "data_pipeline/", "launch/")
_PASSED_OVER = ("memformer/processes/collective_log.py", "memformer/engine/compilation.py")
"""What wraps every collective, or every compiled layer."""


class Place(NamedTuple):
    """A line of the project; empty where none of its frames was on the stack.

    Attributes:
        file: Relative to the repository.
        line: Number of the line.
        function: The function that it is in.
        through: The line of DeepSpeed that was called from there, if there is one.
    """

    file: str = ""
    line: int = 0
    function: str = ""
    through: str = ""

    def __str__(self) -> str:
        words = f"{self.file}:{self.line} ({self.function})" if self.file else "outside the project"
        return words + (f" through {self.through}" if self.through else "")


class Kernel(NamedTuple):
    """What kernels that count as one have in common.

    Attributes:
        phase: The part of the step that launched it (the names of `memformer.processes.spans`).
        name: torch's name of the operation.
        kind: Its class in the table (`roofline.kind_of`).
        dtypes: Of its tensors on the device, inputs first, each once.
        place: Where it was asked for; of a backward, where the forward was.
    """

    phase: str
    name: str
    kind: str
    dtypes: tuple[str, ...]
    place: Place


class Collective(NamedTuple):
    """What calls to other processes have in common.

    Attributes:
        phase: As of a kernel.
        kind: The name of torch.distributed.
        dtype: Of the payload; empty for objects.
        ranks: The processes that take part; None: all.
        place: Where it was asked for.
    """

    phase: str
    kind: str
    dtype: str
    ranks: tuple[int, ...] | None
    place: Place


class Wait(NamedTuple):
    """What moments in which the host stands still until the device has done its work have in common.

    Attributes:
        phase: As of a kernel.
        kind: What makes it wait.
        place: Where.
    """

    phase: str
    kind: str
    place: Place


@dataclasses.dataclass
class Work:
    """What a class of kernels amounts to.

    Attributes:
        count: Kernels.
        bytes: Read and written.
        flops: Of matrix products and attention.
        seconds: By the roofline.
    """

    count: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0

    def add(self, other: "Work") -> None:
        """Adds another to it."""
        self.count, self.bytes = self.count + other.count, self.bytes + other.bytes
        self.flops, self.seconds = self.flops + other.flops, self.seconds + other.seconds


@dataclasses.dataclass
class Records:
    """Of some stretch of a run.

    Attributes:
        kernels: Work by kernel.
        collectives: [calls, bytes] by collective.
        waits: How often the host waited, by place.
        host_work: Elements that the host itself computed in operations on more than a few, by phase and place.
        most_allocated: Bytes by phase, where memory is followed.
        pinned: Bytes of pinned memory that were made, since none of that size was free.
    """

    kernels: dict[Kernel, Work] = dataclasses.field(default_factory=dict)
    collectives: dict[Collective, list[int]] = dataclasses.field(default_factory=dict)
    waits: Counter[Wait] = dataclasses.field(default_factory=Counter)
    host_work: Counter[tuple[str, str, Place]] = dataclasses.field(default_factory=Counter)
    most_allocated: Counter[str] = dataclasses.field(default_factory=Counter)
    pinned: int = 0


@functools.cache
def _named(file: str) -> tuple[str, str]:
    """(path of the project, path of DeepSpeed) of a source file, each empty where it is none."""
    if "/site-packages/" in file:
        return "", file.partition("/deepspeed/")[2]
    path = Path(file)
    own = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    return (own if own.startswith(_OURS) and own not in _PASSED_OVER else ""), ""


def here() -> Place:
    """The innermost line of the project on the stack, and the innermost of DeepSpeed below it."""
    through, frame = "", sys._getframe(1)
    while frame is not None:
        ours, deepspeed = _named(frame.f_code.co_filename)
        if ours:
            return Place(ours, frame.f_lineno, frame.f_code.co_name, through)
        if deepspeed and not through:
            through = f"{deepspeed}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return Place(through=through)
