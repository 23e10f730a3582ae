# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Counts the collectives that torch.distributed carries out, by kind, with their payload bytes."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

PAYLOADS = {
    "all_reduce": 0,
    "reduce": 0,
    "broadcast": 0,
    "all_gather_into_tensor": 0,
    "all_gather": 0,
    "reduce_scatter_tensor": 1,
    "reduce_scatter": 1,
    "_all_gather_base": 0,
    "_reduce_scatter_base": 1,
    "all_to_all_single": 1,
    "send": 0,
    "isend": 0,
}
"""The collectives that are counted -> position of the argument that is the payload."""


def payload_bytes(payload: Any) -> int:
    """Of a tensor, or of a list of them."""
    if isinstance(payload, torch.Tensor):
        return payload.numel() * payload.element_size()
    return sum(map(payload_bytes, payload)) if isinstance(payload, (list, tuple)) else 0


_counts: dict[str, list[int]] | None = None
_depth = 0


def install() -> None:
    """Wraps the collectives. Must run before DeepSpeed is initialised, which keeps references to some of them."""
    for name in PAYLOADS:
        if hasattr(dist, name):
            setattr(dist, name, _wrapped(name, getattr(dist, name)))


def _wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **keywords: Any) -> Any:
        global _depth
        if _counts is not None and _depth == 0:
            position = PAYLOADS[name]
            payload = arguments[position] if len(arguments) > position else next(iter(keywords.values()), None)
            entry = _counts.setdefault(name, [0, 0])
            entry[0] += 1
            entry[1] += payload_bytes(payload)
        _depth += 1
        try:
            return original(*arguments, **keywords)
        finally:
            _depth -= 1

    return call


@contextlib.contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """Within the block, the dictionary gathers [calls, bytes] by the collective's name.

    A collective that calls another is counted once, by its outer name. Needs `install` first.
    """
    global _counts
    _counts = counts = {}
    try:
        yield counts
    finally:
        _counts = None
