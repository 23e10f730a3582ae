# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The other processes of a run, which do nothing: a group of any size in one process, whose calls are recorded."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.simulated_gpu.device import LeftOnTheHost, SimulatedDevice, is_on_device
from benchmarks.simulated_gpu.records import Collective, here
from tests.distributed.collectives import PAYLOADS, payload_bytes

GLOO = "gloo"
"""Before the names of collectives between hosts, in which the device has no part."""
_on_the_host: list[Any] = []


class _Done:
    """A collective that is over."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def install(device: SimulatedDevice, world_size: int, rank: int = 0) -> None:
    """Makes this process one of so many, in a group of the fake backend. It stays for the rest of the process.

    Must run before DeepSpeed is imported, which keeps references to some collectives. A tensor comes back from a
    collective as it went in, and an object as if all others had sent the same.

    Args:
        device: Where tensors lie, and what records.
        world_size: Processes.
        rank: Which of them this one is.
    """
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    os.environ.update({name: str(value) for name, value in place.items()}, DS_ACCELERATOR="cuda")
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    replaced: Any = dist
    for name in PAYLOADS:
        if hasattr(dist, name):
            setattr(dist, name, _collective(device, name))
    replaced.irecv = replaced.recv = lambda *_, **__: _Done()
    new_group = dist.new_group

    def grouped(*arguments: Any, backend: str | None = None, **keywords: Any) -> Any:
        made = new_group(*arguments, **keywords)
        if backend == GLOO:
            _on_the_host.append(made)
        return made

    def barrier(*_: Any, group: Any = None, **__: Any) -> None:
        _objects(device, "barrier", group)

    def gather(found: list[Any], value: Any, group: Any = None) -> None:
        _objects(device, "all_gather_object", group)
        found[:] = [value] * len(found)

    def broadcast(values: list[Any], *_: Any, group: Any = None, **__: Any) -> None:
        _objects(device, "broadcast_object_list", group)

    replaced.new_group = grouped

    replaced.barrier, replaced.all_gather_object, replaced.broadcast_object_list = barrier, gather, broadcast
    replaced.get_backend = lambda group=None: "nccl"


def _collective(device: SimulatedDevice, name: str) -> Callable[..., _Done]:
    position = PAYLOADS[name]

    def call(*arguments: Any, group: Any = None, **keywords: Any) -> _Done:
        payload = arguments[position] if len(arguments) > position else next(iter(keywords.values()))
        tensors = [payload] if isinstance(payload, torch.Tensor) else list(payload)
        over, other = ("gloo", "the device") if _is_on_the_host(group) else ("NCCL", "the CPU")
        if any(is_on_device(each) == _is_on_the_host(group) for each in tensors):
            raise LeftOnTheHost(f"{here()}: {name} over {over} is given a tensor of {other}")
        _record(device, name, group, tensors)
        return _Done()

    return call


def _is_on_the_host(group: Any) -> bool:
    return any(group is each for each in _on_the_host)


def _objects(device: SimulatedDevice, name: str, group: Any) -> None:
    """Of objects: over NCCL they are put on the device and fetched from there."""
    if not _is_on_the_host(group):
        device.wait(name)
    _record(device, name, group, None)


def _record(device: SimulatedDevice, name: str, group: Any, tensors: list[torch.Tensor] | None) -> None:
    ranks = None if group is None or group is dist.group.WORLD else tuple(dist.get_process_group_ranks(group))
    if ranks is not None and len(ranks) == dist.get_world_size():
        ranks = None
    dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
    name = f"{GLOO} {name}" if _is_on_the_host(group) else name
    entry = device.records.collectives.setdefault(Collective(device.phase, name, dtype, ranks, here()), [0, 0])
    entry[0] += 1
    entry[1] += payload_bytes(tensors or [])
