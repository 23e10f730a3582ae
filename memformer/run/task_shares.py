# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Shares of right answers to tasks that a run was asked, by length, for its metrics, its log and its status.

No torch is needed: `memformer status` reads them from the events of a run.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Shares = dict[str, dict[str, dict[str, float]]]
"""By task, by length in tokens: the share with memory, and with it reset."""


def shares_of(results: Iterable[Mapping[str, Any]]) -> Shares:
    """Shares over all depths.

    Args:
        results: Of each task its name and cells, as `inference.task_report` gives them.
    """
    found: Shares = {}
    for result in results:
        by_length: dict[int, list[Mapping[str, Any]]] = {}
        for cell in result["cells"]:
            by_length.setdefault(cell["length"], []).append(cell)
        found[result["task"]] = {
            str(length): {
                mode: sum(cell[mode]["right"] for cell in cells) / sum(cell["questions"] for cell in cells)
                for mode in ("with_memory", "memory_reset")
            }
            for length, cells in by_length.items()
        }
    return found


def in_words(shares: Shares) -> str:
    """Of each task the share with memory at each length, in brackets with it reset."""
    return "right answers with memory (with it reset): " + "; ".join(
        f"{task} "
        + ", ".join(
            f"{share['with_memory']:.2f} ({share['memory_reset']:.2f}) "
            + (f"at {int(length):,} tokens" if int(length) else "without filler")
            for length, share in by_length.items()
        )
        for task, by_length in shares.items()
    )
