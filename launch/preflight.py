# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The nodes of a job meet: who answers, whose clock is wrong, and whether a small all-reduce comes through.

Every rank keeps one plain TCP connection to rank 0 and says on it how far it is. So when something hangs, rank 0 can
name the ranks, and their nodes, that did not get there: a process group alone could not.
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from launch.checks import LARGEST_SKEW_SECONDS, Finding
from memformer.processes import rendezvous


def node_findings(
    environment: Mapping[str, str] = os.environ, timeout_seconds: float = 120, all_reduce: bool = True
) -> Iterator[Finding]:
    """Meets the other ranks of the job; called by every rank. Rank 0 has the findings, the others their own troubles.

    Args:
        environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
        timeout_seconds: How long to wait for ranks that do not answer, and for the all-reduce.
        all_reduce: Whether to try one.
    """
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if size == 1:
        yield Finding("fine", "nodes", "a single process: nobody to meet")
        return
    rendezvous.check(environment, timeout_seconds)
    meeting = _Host(environment, timeout_seconds) if rank == 0 else None
    if meeting is not None:
        with meeting:
            yield from meeting.arrivals()
            if all_reduce and not meeting.missing():
                trouble = _try_all_reduce(rank, size, environment, timeout_seconds)
                yield from meeting.results(trouble)
        return
    address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    with socket.create_connection(address, timeout=timeout_seconds) as connection:
        _say(connection, rank=rank, node=socket.gethostname(), time=time.time())
        connection.settimeout(timeout_seconds + 30)
        go_on = connection.makefile("r", encoding="utf-8").readline().strip() == "all here"
        if all_reduce and go_on:
            trouble = _try_all_reduce(rank, size, environment, timeout_seconds)
            _say(connection, rank=rank, result=trouble or "ok")
            if trouble:
                yield Finding("error", "all-reduce", f"rank {rank} on {socket.gethostname()}: {trouble}", "see rank 0")


class _Host:
    """Rank 0's side: listens on MASTER_PORT, collects what each rank says."""

    def __init__(self, environment: Mapping[str, str], timeout_seconds: float) -> None:
        self.size = int(environment["WORLD_SIZE"])
        self.timeout_seconds = timeout_seconds
        self.nodes = expected_nodes(environment)
        self.said: dict[int, list[dict[str, Any]]] = {}
        self.connections: list[socket.socket] = []
        self.changed = threading.Condition()
        self.server = socket.create_server(("", int(environment["MASTER_PORT"])))
        self.acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "_Host":
        self.acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_listening()
        for each in self.connections:
            each.close()

    def _stop_listening(self) -> None:
        with suppress(OSError):  # done before
            self.server.shutdown(socket.SHUT_RDWR)  # a mere close would leave the thread in accept, and the port taken
        self.acceptor.join(timeout=10)
        self.server.close()

    def arrivals(self) -> Iterator[Finding]:
        """Waits for every rank; tells who did not come, and whose clock is wrong."""
        self._wait(lambda: not self.missing())
        if missing := self.missing():
            yield Finding(
                "error",
                "nodes",
                f"{self._names(missing)} did not answer within {self.timeout_seconds:g} s",
                "look at that node (sinfo, its firewall, the job's log), or exclude it: --sbatch-line=--exclude=NODE",
            )
        nodes = sorted({str(words[0]["node"]) for words in self.said.values()} | {socket.gethostname()})
        yield Finding("fine", "nodes", f"{len(self.said) + 1} of {self.size} ranks answered, on {', '.join(nodes)}")
        for rank, words in sorted(self.said.items()):
            if abs(skew := words[0]["heard"] - words[0]["time"]) > LARGEST_SKEW_SECONDS:
                yield Finding(
                    "warning",
                    "clock",
                    f"rank {rank} on {words[0]['node']} is {skew:+.1f} s off rank 0's clock",
                    "synchronise the clocks (NTP)",
                )
        # From here on the port is torch's; the connections stay.
        self._stop_listening()
        for connection in self.connections:
            with suppress(OSError):  # one that only looked whether we listen
                connection.sendall(b"stop\n" if missing else b"all here\n")

    def results(self, own_trouble: str | None) -> Iterator[Finding]:
        """Waits for every rank's word on the all-reduce."""
        self._wait(lambda: all(len(words) > 1 for words in self.said.values()))
        silent = [rank for rank, words in self.said.items() if len(words) < 2]
        failed = {rank: str(words[1]["result"]) for rank, words in self.said.items() if len(words) > 1}
        failed = {rank: result for rank, result in failed.items() if result != "ok"}
        if not silent and not failed and own_trouble is None:
            yield Finding("fine", "all-reduce", f"{self.size} ranks agree")
            return
        mend = "set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the network between the nodes; open its firewall"
        if silent:
            found = f"{self._names(silent)} did not come through within {self.timeout_seconds:g} s"
        else:
            reason = own_trouble or next(iter(failed.values()))
            found = f"failed on {self._names(sorted(failed)) if failed else 'rank 0'}: {reason}"
        yield Finding("error", "all-reduce", found, mend)

    def missing(self) -> list[int]:
        """Ranks that have not answered."""
        with self.changed:
            return [rank for rank in range(1, self.size) if rank not in self.said]

    def _names(self, ranks: list[int]) -> str:
        known = {rank: words[0]["node"] for rank, words in self.said.items()}
        return ", ".join(f"rank {rank} ({known.get(rank) or self.nodes.get(rank, 'node unknown')})" for rank in ranks)

    def _wait(self, condition: Any) -> None:
        with self.changed:
            self.changed.wait_for(condition, self.timeout_seconds)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return  # closed: the meeting is over
            self.connections.append(connection)
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        try:
            for line in connection.makefile("r", encoding="utf-8"):
                words = {**json.loads(line), "heard": time.time()}
                with self.changed:
                    self.said.setdefault(int(words["rank"]), []).append(words)
                    self.changed.notify_all()
        except (OSError, ValueError, KeyError):
            return  # a rank that only looked whether we listen, or one that died


def expected_nodes(environment: Mapping[str, str]) -> dict[int, str]:
    """The node that each rank should be on, from Slurm's list in block order; empty where that is not known."""
    listed, tasks = environment.get("SLURM_JOB_NODELIST"), environment.get("SLURM_NTASKS_PER_NODE", "")
    if not listed or not tasks.isdigit():
        return {}
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    names = [name for name in shown.stdout.split() for _ in range(int(tasks))]
    return dict(enumerate(names))


def _say(connection: socket.socket, **words: Any) -> None:
    connection.sendall((json.dumps(words) + "\n").encode())


def _try_all_reduce(rank: int, size: int, environment: Mapping[str, str], timeout_seconds: float) -> str | None:
    """Sums the ranks' numbers over the backends that training will use; what went wrong, or None."""
    import torch
    import torch.distributed as dist

    from memformer.processes import hosts
    from memformer.processes.group import choose_device

    try:
        device = choose_device("auto", int(environment["LOCAL_RANK"]))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        limit = timedelta(seconds=timeout_seconds)
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it in __all__
            environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), size, is_master=rank == 0, timeout=limit
        )
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=limit
        )
        total = torch.tensor([float(rank)], device=device)
        dist.all_reduce(total)
        answer = float(total)
        hosts.join(timeout_seconds)  # gloo's, beside NCCL's
        beside = float(hosts.everyone().sum(torch.tensor(float(rank))))
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    expected = size * (size - 1) / 2
    return None if answer == beside == expected else f"the sums are {answer} and {beside}, not {expected}"
