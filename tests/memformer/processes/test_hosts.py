# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What hosts agree on beside the group of their devices: the same answers, and the same words where one is missing."""

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from memformer.processes import group, hosts
from memformer.processes.group import World
from tests.distributed.processes import run_distributed


def test_one_process_has_no_other() -> None:
    assert hosts.everyone().size == 1
    assert group.sum_of_numbers(0.5) == 0.5


@pytest.mark.parametrize(
    ("nccl", "taken"),
    [("", None), ("ib", "ib0"), ("eth,ib", "eth1"), ("=ib1", "ib1"), ("=ib", None), ("^docker", None), ("wlan", None)],
)
def test_gloo_takes_the_network_of_nccl(nccl: str, taken: str | None) -> None:
    environment = {"NCCL_SOCKET_IFNAME": nccl}
    hosts.choose_interface(environment, ["lo", "eth1", "ib0", "ib1"])
    assert environment.get("GLOO_SOCKET_IFNAME") == taken
    told = {"NCCL_SOCKET_IFNAME": "ib", "GLOO_SOCKET_IFNAME": "eth1"}
    hosts.choose_interface(told, ["lo", "eth1", "ib0"])
    assert told["GLOO_SOCKET_IFNAME"] == "eth1"


def agree(world: World) -> dict[str, Any]:
    def answers() -> list[Any]:
        return [
            group.all_max_each([world.rank, -world.rank, 7]),
            group.sum_of_numbers(0.5 + world.rank),
            group.gather({"rank": world.rank}),
            group.from_main(world.rank),
            group.barrier(),
        ]

    found: dict[str, Any] = {"one group": answers(), "none made": hosts.everyone().group}
    hosts.join(1, beside="nccl")
    found["none needed"] = hosts.everyone().group
    hosts.join(1, beside="gloo")
    beside = hosts.everyone().group
    hosts.join(1, beside="gloo")
    found["made once"] = hosts.everyone().group is beside is not dist.group.WORLD
    found["beside"] = answers()
    dist.barrier()
    began = time.monotonic()
    if world.rank == 0:
        try:
            group.all_max(1)  # the other does not come
        except RuntimeError as error:
            found["lost"] = group.lost_peer(error)
    found["seconds"] = time.monotonic() - began
    total = torch.ones(1)
    dist.all_reduce(total)  # the group of the devices goes on
    found["devices"] = total.item()
    return found


@pytest.mark.distributed
@pytest.mark.slow
def test_hosts_agree_beside_the_group_of_the_devices() -> None:
    first, second = run_distributed(agree, 2)
    for found in (first, second):
        assert found["none made"] is found["none needed"] is None
        assert found["made once"] and found["devices"] == 2
        assert found["one group"] == found["beside"] == [[1, 0, 7], 2.0, [{"rank": 0}, {"rank": 1}], 0, None]
    assert first["lost"] == "Timed out waiting" and first["seconds"] < 30
