# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How many files the stores of a process may keep open together: a part of what the system allows (`ulimit -n`).

Each store closes its own files only, since another thread may be reading from those of the others. So each has an equal
share, which is smaller the more stores there are; a share of nothing means that a file is closed after it is read.
"""

import resource
import weakref

_MOST = 4096
_FEWEST = 16
_PART = 4  # of the files that the system allows: the rest is for sockets, libraries and checkpoints

_STORES: "weakref.WeakSet[object]" = weakref.WeakSet()


def register(store: object) -> None:
    """Counts a store among those that keep files open, as long as it lives."""
    _STORES.add(store)


def share() -> int:
    """Files that each store may keep open; may change whenever a store is made or goes."""
    return most() // max(1, len(_STORES))


def most() -> int:
    """Files that all stores may keep open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _MOST
    return min(_MOST, max(_FEWEST, allowed // _PART))
