# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Messages between processes of one axis: tensors sent and received without waiting, counted by kind.

Messages to processes of a higher number and those the other way have a process group each: within a group, NCCL carries
out the messages between two processes in one order, and a schedule orders each direction by itself.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from memformer.processes.collective_log import LOG
from memformer.processes.topology import Axis


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
    """This process's messages to and from the others of an axis.

    Args:
        axis: They; every one makes its channels at the same time.
        back: A second group of theirs, for messages to processes of a lower number.
        device: Where tensors lie.
        dtype: Of all messages; an attribute too.
        name: What they are to each other, for the log of a process that hangs.
        ring: Only neighbours, and the last with the first, talk: pairs that do not are not introduced to each other.
    """

    def __init__(
        self, axis: Axis, back: Any, device: torch.device, dtype: torch.dtype, name: str = "stage", ring: bool = False
    ) -> None:
        self._axis, self._back, self._device, self.dtype, self._name = axis, back, device, dtype, name
        _introduce(axis, back, device, ring)

    def send(self, kind: str, tensor: torch.Tensor, target: int) -> Transfer:
        """Sends a tensor to another process; the result keeps it until `wait`."""
        tensor = tensor.detach().to(self.dtype).contiguous()
        LOG.sent(kind, tensor)
        work = dist.isend(tensor, group=self._group(self._axis.rank, target), group_dst=target)
        return Transfer(tensor, f"sending {kind} to {self._name} {target}", work)

    def receive(self, kind: str, shape: Iterable[int], source: int) -> Transfer:
        """Posts the receive of a tensor from another process."""
        tensor = torch.empty(*shape, dtype=self.dtype, device=self._device)
        work = dist.irecv(tensor, group=self._group(source, self._axis.rank), group_src=source)
        return Transfer(tensor, f"receiving {kind} from {self._name} {source}", work)

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor of one process on all of them; in place."""
        return self._axis.broadcast(tensor, source)

    def gather(self, value: Any) -> list[Any]:
        """What all processes have, in their order, on all of them; waits."""
        return self._axis.gather(value)

    def _group(self, source: int, target: int) -> Any:
        return self._axis.group if source < target else self._back


@functools.cache
def _introduce(axis: Axis, back: Any, device: torch.device, ring: bool) -> None:
    """Lets every pair of processes that talk exchange a number, pair by pair.

    NCCL connects two processes at their first message, both waiting for the other; in the order of a schedule such
    waits may form a circle, in this one they cannot.
    """
    number = torch.zeros(1, device=device)
    for low, high in itertools.combinations(range(axis.size), 2):
        if ring and high - low not in (1, axis.size - 1):
            continue
        for source, target, group in ((low, high, axis.group), (high, low, back)):
            if axis.rank == source:
                dist.isend(number, group=group, group_dst=target).wait()  # type: ignore[union-attr]
            elif axis.rank == target:
                dist.irecv(number, group=group, group_src=source).wait()  # type: ignore[union-attr]
