# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a trace of a run's steps says: time by part of the step, and by kind of kernel or operator.

A trace is what torch's profiler writes (Chrome's format, times in microseconds). Of a GPU the kernels count, which run
behind the host's back; without one the host's operators, each without those that it calls.
"""

import bisect
import collections
import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from memformer.processes.spans import PREFIX
from memformer.run.directory import RunDirectory

_STEP = re.compile(r"step (\d+)")
_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}
KINDS = (
    ("communication", r"nccl|gloo|c10d|all_?reduce|all_?gather|reduce_?scatter|broadcast"),
    ("attention", r"flash|fmha|attention|sdpa"),
    ("matrix products", r"gemm|cutlass|cublas|nvjet|aten::(add)?(b?mm|baddbmm|linear|matmul)|splitk"),
    ("optimizer", r"adam|multi_tensor|foreach"),
    ("softmax and loss", r"softmax|nll_loss|cross_entropy|log_?sum_?exp"),
    ("normalisation", r"layer_?norm|rms_?norm"),
    ("embedding and indices", r"embedding|index|gather|scatter|take"),
    ("copies and casts", r"memcpy|memset|copy|aten::(_?to|cat|clone|contiguous|fill|zero)|cat_?array|fill"),
    ("sums", r"reduce|aten::(sum|mean|norm|max|min)"),
    ("elementwise", r"elementwise|aten::(add|sub|mul|div|neg|gelu|silu|sigmoid|tanh|exp|where|pow|sqrt|dropout)"),
)
"""The first whose expression is found in a name has it; all else is `other`."""
_PATTERNS = [(kind, re.compile(words, re.IGNORECASE)) for kind, words in KINDS]


@dataclasses.dataclass(frozen=True)
class Share:
    """A part's time in the traced steps.

    Attributes:
        calls: How often it was entered.
        host_seconds: How long the host was in it.
        device_seconds: How long kernels ran that it has launched; 0 without a GPU.
    """

    calls: int
    host_seconds: float
    device_seconds: float


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Where the time of traced steps went, on one process.

    Attributes:
        steps: Their numbers.
        seconds: Of all of them, as the host saw it.
        busy_seconds: In which at least one kernel ran; None without a GPU.
        parts: By name, in the order in which they are first reached; `between the parts` is what no part covers.
        kinds: Seconds of kernels, or of operators without a GPU, by kind, largest first.
    """

    steps: list[int]
    seconds: float
    busy_seconds: float | None
    parts: dict[str, Share]
    kinds: dict[str, float]


def find_traces(run: RunDirectory, place: Path | None = None) -> list[Path]:
    """The traces of a run's last window, one a process that wrote one, in their order.

    Args:
        run: The run.
        place: A window's directory instead; None: that of the latest steps.

    Raises:
        UserError: There is none.
    """
    windows = [place] if place else sorted(run.profile.glob("steps-*-*"), reverse=True)
    for window in windows:  # a life that was killed while it wrote leaves an empty one
        if found := sorted(window.glob("rank-*.json.gz")):
            return found
    raise UserError(
        f"{place or run.profile}: holds no trace: give a run's directory; if it is one, train with --profile.steps "
        "'[FIRST, LAST]' among the steps still to be done"
    )


def read_trace(path: Path) -> StepTimes:
    """Sums a trace up.

    Raises:
        UserError: It cannot be read, or is not of a run.
    """
    try:
        with gzip.open(path, "rb") as file:
            events = json.load(file)["traceEvents"]
        return step_times([each for each in events if each.get("ph") == "X" and "dur" in each], path)
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        words = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: cannot be read as a trace ({words}): train those steps again") from None


def step_times(events: Sequence[dict[str, Any]], path: Path) -> StepTimes:
    """Sums the complete events of a trace up.

    Raises:
        UserError: No step of a run is among them.
    """
    ours = [each for each in events if each.get("cat") == "user_annotation" and each["name"].startswith(PREFIX)]
    steps = [each for each in ours if _STEP.fullmatch(each["name"].removeprefix(PREFIX))]
    if not steps:
        raise UserError(f"{path}: is no trace of a run's steps: give what profile.steps has written")
    inner = _outermost([each for each in ours if each not in steps and any(_inside(each, step) for step in steps)])
    kernels = [each for each in events if each.get("cat") in _KERNELS]
    on_device = _device_seconds(kernels, events, inner)
    parts: dict[str, Share] = {}
    for each in inner:
        name = each["name"].removeprefix(PREFIX)
        before = parts.get(name, Share(0, 0.0, 0.0))
        parts[name] = Share(before.calls + 1, before.host_seconds + each["dur"] / 1e6, on_device[name])
    seconds = sum(each["dur"] for each in steps) / 1e6
    if not 0 < seconds < float("inf"):
        raise ValueError(f"its steps take {seconds} s")
    rest = seconds - sum(part.host_seconds for part in parts.values())
    parts["between the parts"] = Share(len(steps), max(rest, 0.0), on_device[""])
    counted = kernels or _operators(events, steps)
    kinds: collections.Counter[str] = collections.Counter()
    for each in counted:
        kinds[kind_of(each["name"])] += each["self" if "self" in each else "dur"] / 1e6
    return StepTimes(
        sorted(int(each["name"].split()[-1]) for each in steps),
        seconds,
        _union(kernels) / 1e6 if kernels else None,
        parts,
        dict(kinds.most_common()),
    )


def kind_of(name: str) -> str:
    """The kind of a kernel or operator."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")


def _inside(event: dict[str, Any], outer: dict[str, Any]) -> bool:
    return bool(outer["ts"] <= event["ts"] and event["ts"] + event["dur"] <= outer["ts"] + outer["dur"] + 1)


def _outermost(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In their order, without those that lie within another: their time is that one's."""
    found: list[dict[str, Any]] = []
    for each in sorted(parts, key=lambda one: (one["ts"], -one["dur"])):
        if not found or not _inside(each, found[-1]):
            found.append(each)
    return found


def _device_seconds(
    kernels: Sequence[dict[str, Any]], events: Iterable[dict[str, Any]], parts: Sequence[dict[str, Any]]
) -> collections.Counter[str]:
    """Seconds of the kernels by the part (ordered, apart) whose time their launch falls into; "" is none."""
    launches = {
        each["args"]["correlation"]: each["ts"]
        for each in events
        if each.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in each.get("args", {})
    }
    starts = [each["ts"] for each in parts]
    found: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        at = launches.get(kernel.get("args", {}).get("correlation"), -1)
        place = bisect.bisect_right(starts, at) - 1
        hit = place >= 0 and at <= parts[place]["ts"] + parts[place]["dur"]
        found[parts[place]["name"].removeprefix(PREFIX) if hit else ""] += kernel["dur"] / 1e6
    return found


def _operators(events: Iterable[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The host's operators within the steps, each with the time that it did not spend in others (`self`)."""
    begin, end = min(each["ts"] for each in steps), max(each["ts"] + each["dur"] for each in steps)
    by_thread: dict[Any, list[dict[str, Any]]] = {}
    for each in events:
        if each.get("cat") == "cpu_op" and begin <= each["ts"] <= end:
            by_thread.setdefault(each["tid"], []).append({**each, "self": each["dur"]})
    for found in by_thread.values():
        found.sort(key=lambda each: (each["ts"], -each["dur"]))
        around: list[dict[str, Any]] = []
        for each in found:
            while around and each["ts"] >= around[-1]["ts"] + around[-1]["dur"]:
                around.pop()
            if around:
                around[-1]["self"] -= each["dur"]
            around.append(each)
    return [each for found in by_thread.values() for each in found]


def _union(events: Sequence[dict[str, Any]]) -> float:
    """Microseconds in which at least one of the events was going on."""
    total = end = 0.0
    for each in sorted(events, key=lambda one: one["ts"]):
        last = each["ts"] + each["dur"]
        if last > end:
            total, end = total + last - max(end, each["ts"]), last
    return total
