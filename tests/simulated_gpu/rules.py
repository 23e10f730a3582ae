# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What may be in a step on a GPU, and why: every place where the host waits, every number of another precision.

A list is a promise. What is not on it fails the tests, and so does an entry that no run has any more.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROLLOUT = ("rollout", "pass 1", "segment forward", "segment backward", "reduction")
STEP = (*ROLLOUT, "optimizer", "step")
"""The phases of a step without evaluation and saving."""

OPTIMIZER, LOOKING = "the optimizer's step", "at the steps that a setting names"


class Allowed(NamedTuple):
    """A place that may do what others may not.

    Attributes:
        file: Of the project.
        function: In it.
        through: The file of DeepSpeed that it calls; empty: none.
        most: Times a step.
        why: For what.
    """

    file: str
    function: str
    through: str
    most: int
    why: str


WAITS = (
    Allowed("memformer/engine/fetching.py", "fetch", "", 1, "whether the gradient is finite, and all that is measured: "
            "the only wait of a step"),
    Allowed("memformer/inference/diagnostics.py", "pooled", "", 1, LOOKING),
    Allowed("memformer/guards/replicas.py", "different_replicas", "", 2, LOOKING),
    Allowed("memformer/guards/replicas.py", "_differs", "", 4, LOOKING),
    Allowed("memformer/guards/faulty_steps.py", "first_bad", "", 2, "a step that is skipped is looked into"),
    Allowed("memformer/guards/faulty_steps.py", "healed_carry", "", 1, "the same"),
    Allowed("memformer/engine/base.py", "bad_parameters", "", 1, "the same"),
)  # fmt: skip

FLOAT32_PRODUCTS = (
    Allowed("memformer/models/backbone/associative.py", "forward", "", 999, "what is written to a matrix memory, which "
            "is float32 from segment to segment"),
    Allowed("memformer/models/backbone/associative.py", "written", "", 999, "the same: the delta rule"),
)  # fmt: skip

FLOAT64 = (
    Allowed("memformer/training/measuring.py", "sums", "", 9, "sums of a few losses, which must not depend on the "
            "number of processes"),
    Allowed("memformer/engine/fetching.py", "fetch", "", 9, "these and the norm, put together"),
    Allowed("memformer/inference/diagnostics.py", "sums", "", 24, "the same"),
    Allowed("memformer/inference/diagnostics.py", "pooled", "", 9, "the same"),
    Allowed("memformer/engine/zero.py", "group_norms", "", 99, "ZeRO 3: the norm of the gradient, as DeepSpeed takes "
            "it: a read of the shard"),
)  # fmt: skip


def unlisted(found: Sequence[Sequence[Any]], allowed: Sequence[Allowed]) -> list[str]:
    """A line for each place that is not on the list, or was there too often.

    Args:
        found: Rows of a record that end in a place and a count.
        allowed: The list.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    words: dict[tuple[str, str, str], set[str]] = {}
    for *what, (file, line, function, through), count in found:
        key = file, function, through
        counts[key] += count
        words.setdefault(key, set()).add(f"{' '.join(map(str, what))} at line {line}")
    most = {(each.file, each.function, each.through): each.most for each in allowed}
    return [
        f"{' '.join(filter(None, key))}: {count} times a step, {most.get(key, 0)} allowed: "
        + ", ".join(sorted(words[key]))
        for key, count in counts.items()
        if count > most.get(key, 0)
    ]


def waits(record: Mapping[str, Any], phases: Sequence[str] = STEP) -> list[list[Any]]:
    """The rows of `waits` in these phases."""
    return [row for row in record["waits"] if row[0] in phases]


def float64_kernels(record: Mapping[str, Any]) -> list[list[Any]]:
    """Kernels of a step with a float64 tensor."""
    return [row for row in record["kernels"] if row[0] in STEP and "float64" in row[3]]


def float32_products(record: Mapping[str, Any], phases: Sequence[str] = (*ROLLOUT, "optimizer")) -> list[list[Any]]:
    """Matrix products that are not in 16 bits; the memory's diagnostics, beside the step, are in float32 on purpose."""
    return [row for row in record["kernels"] if row[0] in phases and row[2] == "matrix products, float32"]


def collectives(record: Mapping[str, Any]) -> Counter[tuple[Any, ...]]:
    """Calls and bytes of a step, by phase, kind, dtype, processes and file."""
    found: Counter[tuple[Any, ...]] = Counter()
    for phase, kind, dtype, ranks, (file, *_), calls, size in record["collectives"]:
        key = (phase, kind, dtype, tuple(ranks or ()), file)
        found[(*key, "calls")] += calls
        found[(*key, "bytes")] += size
    return found


def sent(record: Mapping[str, Any], phases: Sequence[str]) -> Counter[str]:
    """Bytes between devices by kind of collective, by the names of `plan`."""
    found: Counter[str] = Counter()
    for phase, kind, _, _, _, _, size in record["collectives"]:
        if phase in phases and size and not kind.startswith("gloo "):
            found[kind.removesuffix("_into_tensor").removesuffix("_tensor")] += size
    return found
