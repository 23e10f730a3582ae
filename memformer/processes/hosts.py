# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the processes of a run tell each other on the host: over gloo, beside NCCL.

Whether to stop, who is slow, where a step went wrong: these are numbers and objects of the host. Over NCCL they would
go through the device, behind all that is queued there, so that the host would wait for its end and the device then for
the host. Where the collectives of the device run on the host anyway (gloo), there is one group for both.
"""

import os
import socket
from collections.abc import MutableMapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from data_pipeline.errors import UserError
from memformer.processes.topology import Axis

_INTERFACE = "GLOO_SOCKET_IFNAME"
_beside: list[tuple[Any, Any]] = []
"""(the group of all processes, gloo's group of the same), the last one made."""


def join(timeout_seconds: float, beside: str = "nccl") -> None:
    """Makes the group; called by all processes, once they are in one.

    Args:
        timeout_seconds: How long a collective may wait for the other processes.
        beside: The backend that it is not the same as.

    Raises:
        UserError: The machines do not reach each other so.
    """
    if dist.get_world_size() == 1 or dist.get_backend() != beside or _group() is not None:
        return
    choose_interface(os.environ, [name for _, name in socket.if_nameindex()])
    try:
        made = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
    except RuntimeError as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"rank {dist.get_rank()} on {socket.gethostname()}: the processes do not meet over gloo ({said[:200]}): "
            f"set {_INTERFACE} to the network between the nodes, or look whether another process has ended",
            exit_code=1,
        ) from None
    _beside[:] = [(dist.group.WORLD, made)]


def everyone() -> Axis:
    """All processes of the run, for tensors of the CPU and for objects; this one alone before it has joined them."""
    return Axis(dist.get_rank(), dist.get_world_size(), _group()) if dist.is_initialized() else Axis()


def choose_interface(environment: MutableMapping[str, str], names: Sequence[str]) -> None:
    """gloo takes the network that NCCL was told to take, unless it was told of one itself.

    Args:
        environment: NCCL_SOCKET_IFNAME holds beginnings of names, whole names after `=`, and what not to take after
            `^`; gloo's variable takes a whole name.
        names: Of the interfaces of this machine.
    """
    said = environment.get("NCCL_SOCKET_IFNAME", "")
    if environment.get(_INTERFACE) or not said or said.startswith("^"):
        return
    asked = said.removeprefix("=").split(",")
    found = [name for name in names if (name in asked if said[0] == "=" else name.startswith(tuple(asked)))]
    if found:
        environment[_INTERFACE] = found[0]


def _group() -> Any:
    """gloo's group; None: the group of all processes is what there is."""
    return next((made for world, made in _beside if world is dist.group.WORLD), None)
