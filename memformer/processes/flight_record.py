# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""torch's flight recorder: the last collectives of every process group, read when a run stands still.

Whoever launches a collective notes it in a ring of TORCH_FR_BUFFER_SIZE entries, which `switch_on` sets; it costs
nothing that can be measured. Of NCCL it tells what has been launched from what has begun and ended on the device.
"""

import json
from collections.abc import MutableMapping
from typing import Any

ENTRIES = 2000
"""Of each process; a step of a large model has some hundred."""
SHOWN = 3
"""Collectives of a group that are named, the last ones."""


def switch_on(environment: MutableMapping[str, str]) -> None:
    """Before the process group is made; what somebody has set stays, 0 switches it off."""
    if not {"TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"} & environment.keys():
        environment["TORCH_FR_BUFFER_SIZE"] = str(ENTRIES)


def read() -> dict[str, Any] | None:
    """The record as torch has it, JSON-ready; None where there is none."""
    try:
        from torch._C import _distributed_c10d as c10d
    except ImportError:  # a torch without distributed
        return None
    dump: Any = getattr(c10d, "_dump_fr_trace_json", None)
    if dump is None:  # an older one
        return None
    found: dict[str, Any] = json.loads(dump())
    return found if found.get("entries") else None


def in_words(record: dict[str, Any]) -> list[str]:
    """The last collectives of each group, a line each, the newest last.

    Args:
        record: Of `read`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in record["entries"]:
        groups.setdefault(_group(each), []).append(each)
    return [_line(group, each) for group, entries in groups.items() for each in entries[-SHOWN:]]


def _group(entry: dict[str, Any]) -> str:
    number, words = [*entry.get("process_group", []), "", ""][:2]
    return f"{words} {number}".strip() if words not in ("", "undefined") else f"group {number}"


def _line(group: str, entry: dict[str, Any]) -> str:
    number = entry.get("p2p_seq_id" if entry.get("is_p2p") else "collective_seq_id")
    sizes = ", ".join("x".join(map(str, size)) or "1" for size in entry.get("input_sizes", [])) or "0"
    kinds = ", ".join(dict.fromkeys(entry.get("input_dtypes", [])))
    done = entry.get("retired") or entry.get("state") == "completed"
    state = "completed" if done else f"{entry.get('state', 'unknown')}, not completed"
    return f"{group}: {entry.get('profiling_name')} {number} of {sizes} {kinds}: {state}"
