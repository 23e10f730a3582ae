# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Looks whether this process can reach rank 0 before any collective is tried, and says in one line why it cannot.

Left to itself, a process group retries an address that can never answer until its own time-out, half an hour later,
and then names neither the node nor the address.
"""

import errno
import os
import socket
import time
from collections.abc import Mapping

from data_pipeline.errors import UserError

START_SECONDS = 300.0
"""How long rank 0 may take to start: its machine imports torch from a cold, shared file system."""

POLL_SECONDS = 0.2


def check(environment: Mapping[str, str] = os.environ, timeout_seconds: float = START_SECONDS) -> None:
    """Holds MASTER_ADDR and MASTER_PORT to what they must be for this rank.

    Rank 0 must be able to listen on the port; every other rank must find the address and be answered there.

    Args:
        environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
        timeout_seconds: How long rank 0 may take to listen.

    Raises:
        UserError: It is not so; the line names the rank, the node, the address and the mend (exit code 1: on other
            nodes, or later, it may be).
    """
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    if size == 1:
        return
    here = f"rank {rank} on {socket.gethostname()}"
    try:
        socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"{here}: MASTER_ADDR {address} does not resolve ({error.strerror}): set it to an address of rank 0's "
            "machine that every node knows",
            exit_code=1,
        ) from None
    if rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # torchrun itself listens there
        _check_free(here, port)
    elif rank:
        _check_reachable(here, address, port, timeout_seconds)


def _check_free(here: str, port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            what = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
            raise UserError(
                f"{here}: MASTER_PORT {port} {what}: choose another, or start the run again", exit_code=1
            ) from None


def _check_reachable(here: str, address: str, port: int, timeout_seconds: float) -> None:
    started = time.monotonic()
    while True:
        left = started + timeout_seconds - time.monotonic()
        try:
            socket.create_connection((address, port), timeout=max(0.1, min(10.0, left))).close()
            return
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        if time.monotonic() - started > timeout_seconds:
            raise UserError(
                f"{here}: cannot reach rank 0 at {address}:{port} for {timeout_seconds:.0f} s ({reason}): look whether "
                f"rank 0 started (its log), whether {address} is its machine, and whether a firewall closes the port",
                exit_code=1,
            )
        time.sleep(POLL_SECONDS)
