# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Looks whether this process can reach rank 0 before any collective is tried, and says in one line why it cannot.

Left to itself, a process group retries an address that can never answer until its own time-out, half an hour later,
and then names neither the node nor the address.
"""

import errno
import logging
import os
import socket
import time
from collections.abc import Mapping

from data_pipeline.errors import UserError

LOG = logging.getLogger("memformer")

START_SECONDS = 300.0
"""How long rank 0 may take to start: its machine imports torch from a cold, shared file system."""

POLL_SECONDS = 0.2

SIGN_SECONDS = 30.0
"""How long a process waits for others before it says so, and says so again."""


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
    rank, address, port = int(environment["RANK"]), environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    here = name_of(rank)
    try:
        socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"{here}: MASTER_ADDR {address} does not resolve ({error.strerror}): set it to an address of rank 0's "
            "machine that every node knows",
            exit_code=1,
        ) from None
    if rank:
        _check_reachable(here, address, port, timeout_seconds)
    elif not hosted_by_torchrun(environment):
        _check_free(here, port)


def name_of(rank: int) -> str:
    """A rank of this machine, for messages."""
    return f"rank {rank} on {socket.gethostname()}"


def hosted_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether torchrun itself listens at MASTER_PORT, not rank 0."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def taken(here: str, port: int, what: str = "is taken by another program") -> UserError:
    """What rank 0 says when it cannot listen."""
    return UserError(f"{here}: MASTER_PORT {port} {what}: choose another, or start the run again", exit_code=1)


class Signs:
    """Says in the log every half minute that this process waits, for whom, where, and since when.

    Args:
        here: This process.
        address: Where it waits.
    """

    def __init__(self, here: str, address: str) -> None:
        self._here, self._address = here, address
        self._began, self._clock = time.monotonic(), time.strftime("%H:%M:%S")
        self._next = self._began + SIGN_SECONDS

    @property
    def seconds(self) -> float:
        """How long it has waited."""
        return time.monotonic() - self._began

    def give(self, missing: str) -> None:
        """Says that somebody is missing, if it is time to.

        Args:
            missing: Who, and why that is known.
        """
        if time.monotonic() < self._next:
            return
        self._next += SIGN_SECONDS
        LOG.warning(
            "%s waits at %s for %s, since %s (%.0f s)", self._here, self._address, missing, self._clock, self.seconds
        )


def _check_free(here: str, port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise taken(here, port) from None
            raise taken(here, port, f"cannot be used ({error.strerror})") from None


def _check_reachable(here: str, address: str, port: int, timeout_seconds: float) -> None:
    signs = Signs(here, f"{address}:{port}")
    while True:
        left = timeout_seconds - signs.seconds
        try:
            socket.create_connection((address, port), timeout=max(0.1, min(10.0, left))).close()
            return
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        if signs.seconds > timeout_seconds:
            raise UserError(
                f"{here}: cannot reach rank 0 at {address}:{port} for {timeout_seconds:.0f} s ({reason}): look whether "
                f"rank 0 started (its log), whether {address} is its machine, and whether a firewall closes the port",
                exit_code=1,
            )
        signs.give(f"rank 0 ({reason})")
        time.sleep(POLL_SECONDS)
