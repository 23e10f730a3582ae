# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Messages between the stages of one pipeline: tensors sent and received without waiting, counted by kind.

Messages from earlier to later stages and those the other way have a process group each: within a group, NCCL carries
out the messages between two processes in one order, and the schedule orders each direction by itself.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from memformer.processes.collective_log import LOG
from memformer.processes.topology import Mesh


@dataclasses.dataclass
class Transfer:
    """A message under way.

    Attributes:
        tensor: Its content; of a receive, once `wait` has returned.
        words: What it is, for the log of a process that hangs.
    """

    tensor: torch.Tensor
    words: str
    _work: Any

    def wait(self) -> torch.Tensor:
        """The content, received or sent; on a GPU the device waits, not the process."""
        with LOG.waiting(self.words):
            self._work.wait()
        return self.tensor


class Channels:
    """This stage's messages to and from the other stages.

    Args:
        mesh: This process's place; every stage makes its channels at the same time.
        device: Where tensors lie.
        dtype: Of all messages.
    """

    def __init__(self, mesh: Mesh, device: torch.device, dtype: torch.dtype) -> None:
        self.stage, self.stages = mesh.pipe.rank, mesh.pipe.size
        self._mesh, self._device, self._dtype = mesh, device, dtype
        _introduce(mesh, device)

    def send(self, kind: str, tensor: torch.Tensor, target: int) -> Transfer:
        """Sends a tensor to another stage; the result keeps it until `wait`."""
        tensor = tensor.detach().to(self._dtype).contiguous()
        LOG.sent(kind, tensor)
        work = dist.isend(tensor, group=self._group(self.stage, target), group_dst=target)
        return Transfer(tensor, f"sending {kind} to stage {target}", work)

    def receive(self, kind: str, shape: Iterable[int], source: int) -> Transfer:
        """Posts the receive of a tensor from another stage."""
        tensor = torch.empty(*shape, dtype=self._dtype, device=self._device)
        work = dist.irecv(tensor, group=self._group(source, self.stage), group_src=source)
        return Transfer(tensor, f"receiving {kind} from stage {source}", work)

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor of one stage on all stages; in place."""
        return self._mesh.pipe.broadcast(tensor, source)

    def _group(self, source: int, target: int) -> Any:
        return self._mesh.pipe.group if source < target else self._mesh.pipe_back


@functools.cache
def _introduce(mesh: Mesh, device: torch.device) -> None:
    """Lets every pair of stages exchange a number, pair by pair.

    NCCL connects two processes at their first message, both waiting for the other; in the order of a schedule such
    waits may form a circle, in this one they cannot.
    """
    number = torch.zeros(1, device=device)
    for low in range(mesh.pipe.size):
        for high in range(low + 1, mesh.pipe.size):
            for source, target, group in ((low, high, mesh.pipe.group), (high, low, mesh.pipe_back)):
                if mesh.pipe.rank == source:
                    dist.isend(number, group=group, group_dst=target).wait()  # type: ignore[union-attr]
                elif mesh.pipe.rank == target:
                    dist.irecv(number, group=group, group_src=source).wait()  # type: ignore[union-attr]
