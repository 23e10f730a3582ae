# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`ReplayBuffer`: the memories between segments, all that a rollout keeps besides one segment's graph."""

from collections.abc import Callable
from typing import Protocol

import torch


class Partition(Protocol):
    """How several processes that have the same memories keep a part of each."""

    def own(self, memory_BKD: torch.Tensor) -> torch.Tensor:
        """This process's part of a memory, as a copy."""

    def gather(self, part: torch.Tensor, shape: torch.Size) -> Callable[[], torch.Tensor]:
        """Starts to put a memory together from all parts; what it returns waits, and gives the whole."""


class ReplayBuffer:
    """Holds the memory before each segment, or before every k-th: numbers of B*K*D, divided by a partition's processes.

    Memories come back in the reverse order. Each is fetched one segment ahead, while the segment after it is replayed.

    Args:
        in_host_memory: Keep the memories in (pinned) host memory, as `activation_checkpointing.cpu_checkpointing` does
            for activations.
        partition: Keep a part of each memory only; None keeps them whole.
        interval: k: a replay gives it about T/k + k of T memories, and computes the others again (`KeptMemories`).
    """

    def __init__(self, in_host_memory: bool = False, partition: Partition | None = None, interval: int = 1) -> None:
        self.in_host_memory, self.partition, self.interval = in_host_memory, partition, interval
        self._stored: list[tuple[torch.Tensor, torch.Size]] = []
        self._device = torch.device("cpu")
        self._ahead: Callable[[], torch.Tensor] | None = None
        self.peak_bytes = 0

    def push(self, memory_BKD: torch.Tensor) -> None:
        """Stores the memory before the next segment."""
        self._device, shape = memory_BKD.device, memory_BKD.shape
        stored = memory_BKD if self.partition is None else self.partition.own(memory_BKD)
        if self.in_host_memory and self._device.type != "cpu":
            host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)
            stored = host.copy_(stored, non_blocking=True)
        self._stored.append((stored, shape))
        self.peak_bytes = max(self.peak_bytes, self.stored_bytes)

    def fetch(self) -> None:
        """Begins to bring back the newest memory, which `pop` will be asked for."""
        if self._ahead is not None or not self._stored:
            return
        stored, shape = self._stored.pop()
        # Copies between host and device are ordered by the device's stream.
        stored = stored.to(self._device, non_blocking=True)
        self._ahead = (lambda: stored) if self.partition is None else self.partition.gather(stored, shape)

    def pop(self, ahead: bool = True) -> torch.Tensor:
        """Removes and returns the newest memory, whole and on its device.

        Args:
            ahead: Begin to fetch the one before it; False where newer ones are pushed first.
        """
        self.fetch()
        if self._ahead is None:
            raise IndexError("pop from an empty buffer")
        memory, self._ahead = self._ahead(), None
        if ahead:
            self.fetch()
        return memory

    @property
    def stored_bytes(self) -> int:
        """Bytes held now, without a memory that is being fetched."""
        return sum(stored.numel() * stored.element_size() for stored, _ in self._stored)
