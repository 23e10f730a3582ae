# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Ranks meet before they make their process group; who does not come is named, by all, again and again."""

import socket
import threading
import time

import pytest

from data_pipeline.errors import UserError
from memformer.processes import meeting, rendezvous
from memformer.processes.ports import free_port


def place(rank: int, size: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def meet(size: int, *ranks: int, seconds: float) -> dict[int, str]:
    """Those ranks of a run, each in a thread; what each of them ended with."""
    ended: dict[int, str] = {}
    port, done = free_port(), threading.Barrier(len(ranks))

    def come(rank: int) -> None:
        try:
            if rank:
                rendezvous.check(place(rank, size, port), 20)
            with meeting.everybody(seconds, place(rank, size, port)):
                ended[rank] = "met"
                done.wait(30)  # in a run this is the making of the process group, which needs rank 0's store
        except UserError as error:
            ended[rank] = str(error)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return ended


def test_all_are_there() -> None:
    assert meet(3, 0, 1, 2, seconds=30) == dict.fromkeys(range(3), "met")
    assert meet(1, 0, seconds=30) == {0: "met"}


def test_who_does_not_come_is_named_by_those_who_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendezvous, "SIGN_SECONDS", 0.5)
    monkeypatch.setattr(rendezvous.LOG, "propagate", True)
    started = time.monotonic()
    ended = meet(12, 0, 1, seconds=1.6)
    assert time.monotonic() - started < 20
    assert "ranks 2, 3, 4, 5, 6, 7, 8, 9 and 2 more did not come to 127.0.0.1:" in ended[0]
    assert "within 2 s: look at their logs, and whether 12 processes were started" in ended[0]
    assert "rank 1 on" in ended[1] and "\n" not in ended[1]
    said = [line for line in caplog.messages if "ranks 2, 3, 4, 5, 6, 7, 8, 9 and 2 more of 12, since" in line]
    assert any(line.startswith("rank 0 on ") for line in said) and any(line.startswith("rank 1 on ") for line in said)


def test_a_port_that_was_taken_in_the_meantime_is_one_line() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"rank 0 on .*: MASTER_PORT {port} is taken by another program") as caught:
            meeting.everybody(5, place(0, 1, port)).__enter__()
        assert caught.value.exit_code == 1


def test_under_torchrun_that_meets() -> None:
    with meeting.everybody(1, place(1, 4, 1) | {"TORCHELASTIC_USE_AGENT_STORE": "True"}):
        pass
