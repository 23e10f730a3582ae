# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The ranks of a run meet before they make their process group, so that one that does not come is named.

A process group that waits for a rank says nothing for as long as a collective may take, half an hour, and then not
which. Each rank writes its name into rank 0's store, the one that the process group is then made through; rank 0 says
who has not come, and the others what it says.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch.distributed as dist

from data_pipeline.errors import UserError
from memformer.processes import rendezvous

_ALL, _MISSING = "memformer/all", "memformer/missing"


@contextlib.contextmanager
def everybody(timeout_seconds: float, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Waits until all ranks are there. Within the block rank 0 listens, and the process group can be made.

    Args:
        timeout_seconds: How long a rank may take to come.
        environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Raises:
        UserError: A rank has not come in time, rank 0 has gone, or its port was taken.
    """
    if rendezvous.hosted_by_torchrun(environment):
        yield  # torchrun has seen to it that all ranks were started, and says which have ended
        return
    store = _store(environment, timeout_seconds)
    if environment["WORLD_SIZE"] != "1":
        _wait(store, environment, timeout_seconds)
    yield


def _store(environment: Mapping[str, str], timeout_seconds: float) -> dist.TCPStore:  # type: ignore[name-defined]  # not in torch's __all__
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it in __all__
            address,
            port,
            size,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
            multi_tenant=True,  # the process group's own store is then another guest of the same server
        )
    except dist.DistError as error:
        here, reason = rendezvous.name_of(rank), _first_line(error)
        if rank == 0 and "EADDRINUSE" in reason:
            raise rendezvous.taken(here, port) from None
        raise UserError(
            f"{here}: no meeting at {address}:{port} ({reason}): look whether rank 0 listens there, and not another "
            "program",
            exit_code=1,
        ) from None


def _wait(store: "dist.TCPStore", environment: Mapping[str, str], timeout_seconds: float) -> None:  # type: ignore[name-defined]
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    here, address = rendezvous.name_of(rank), f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    signs = rendezvous.Signs(here, address)
    awaited = {other: f"memformer/rank/{other}" for other in range(1, size)}
    try:
        store.set(f"memformer/rank/{rank}", here)
        missing = _ranks(list(awaited)) if rank == 0 else "rank 0's word"
        while True:
            try:
                left = max(0.1, min(rendezvous.SIGN_SECONDS, timeout_seconds - signs.seconds))
                store.wait(list(awaited.values()) if rank == 0 else [_ALL], timedelta(seconds=left))
                break
            except dist.DistStoreError:  # its time is over
                if rank == 0:
                    missing = _ranks([other for other, key in awaited.items() if not store.check([key])])
                    store.set(_MISSING, missing)
                elif store.check([_MISSING]):
                    missing = store.get(_MISSING).decode()
            if signs.seconds > timeout_seconds:
                raise UserError(
                    f"{here}: {missing} did not come to {address} within {timeout_seconds:.0f} s: look at their logs, "
                    f"and whether {size} processes were started",
                    exit_code=1,
                )
            signs.give(f"{missing} of {size}")
        if rank == 0:
            store.set(_ALL, "")
    except dist.DistNetworkError as error:
        raise UserError(
            f"{here}: rank 0 at {address} has gone ({_first_line(error)}): look at its log", exit_code=1
        ) from None


def _ranks(numbers: list[int]) -> str:
    """A few of them by number, more by their count."""
    named = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {named}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
