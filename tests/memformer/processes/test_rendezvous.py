# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The rendezvous is looked at before any collective, and what is wrong with it is one line."""

import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from data_pipeline.errors import UserError
from memformer.processes import rendezvous


def environment(rank: int, port: int, address: str = "127.0.0.1", size: int = 2) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": address, "MASTER_PORT": str(port)}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        yield taken


@pytest.fixture
def free(listener: socket.socket) -> int:
    """A port that nobody listens on."""
    port = listener.getsockname()[1]
    listener.close()
    return int(port)


def test_rank_0_must_be_able_to_listen(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(UserError, match=f"rank 0 on .*: MASTER_PORT {port} is taken") as refusal:
        rendezvous.check(environment(0, port))
    assert refusal.value.exit_code == 1, "another life has another port"


def test_under_torchrun_the_port_is_taken_by_torchrun_itself(listener: socket.socket) -> None:
    rendezvous.check(environment(0, listener.getsockname()[1]) | {"TORCHELASTIC_USE_AGENT_STORE": "True"})


def test_rank_0_finds_its_port_free(free: int) -> None:
    rendezvous.check(environment(0, free))


def test_others_reach_rank_0(listener: socket.socket) -> None:
    rendezvous.check(environment(1, listener.getsockname()[1]), timeout_seconds=5)


def test_others_wait_for_rank_0_to_start(free: int) -> None:
    def late() -> None:
        time.sleep(0.5)
        with socket.create_server(("127.0.0.1", free)) as server:
            server.accept()

    thread = threading.Thread(target=late)
    thread.start()
    started = time.monotonic()
    rendezvous.check(environment(1, free), timeout_seconds=20)
    assert time.monotonic() - started >= 0.4
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_rank_0_that_never_listens_is_told_in_time(free: int) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=f"rank 3 on .*: cannot reach rank 0 at 127.0.0.1:{free} .*refused"):
        rendezvous.check(environment(3, free, size=4), timeout_seconds=0.5)
    assert time.monotonic() - started < 10


def test_an_address_that_does_not_resolve_is_told_at_once() -> None:
    with pytest.raises(UserError, match=r"rank 1 on .*: MASTER_ADDR no-such-host\.invalid does not resolve"):
        rendezvous.check(environment(1, 1, address="no-such-host.invalid"))


def test_a_single_process_must_be_able_to_listen_too(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(UserError, match=f"rank 0 on .*: MASTER_PORT {port} is taken"):
        rendezvous.check(environment(0, port, size=1))
    listener.close()
    rendezvous.check(environment(0, port, size=1))


def test_a_rank_that_waits_says_for_whom_where_and_since_when(
    free: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendezvous, "SIGN_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(rendezvous.LOG, "propagate", True)
    with pytest.raises(UserError):
        rendezvous.check(environment(1, free), timeout_seconds=0.55)
    assert 3 <= len(caplog.messages) <= 6, "a sign every so often, not at every try"
    said = re.compile(
        rf"rank 1 on .* waits at 127\.0\.0\.1:{free} for rank 0 \(.*refused\), since \d\d:\d\d:\d\d \(\d+ s\)"
    )
    assert all(said.fullmatch(line) for line in caplog.messages)
