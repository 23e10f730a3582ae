# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`ReplayBuffer`: the memories between segments, all that a rollout keeps besides one segment's graph."""

import torch


class ReplayBuffer:
    """Holds the memory before each segment, T*B*K*D numbers, on the device or in host memory.

    Args:
        in_host_memory: Keep the memories in (pinned) host memory, as `activation_checkpointing.cpu_checkpointing` does
            for activations.
    """

    def __init__(self, in_host_memory: bool = False) -> None:
        self.in_host_memory = in_host_memory
        self._memories: list[torch.Tensor] = []
        self._device = torch.device("cpu")

    def push(self, memory_BKD: torch.Tensor) -> None:
        """Stores the memory before the next segment."""
        self._device = memory_BKD.device
        if self.in_host_memory and memory_BKD.device.type != "cpu":
            host = torch.empty(memory_BKD.shape, dtype=memory_BKD.dtype, pin_memory=True)
            memory_BKD = host.copy_(memory_BKD, non_blocking=True)
        self._memories.append(memory_BKD)

    def pop(self) -> torch.Tensor:
        """Removes and returns the newest memory, on its device. Copies are ordered by the device's stream."""
        return self._memories.pop().to(self._device, non_blocking=True)

    @property
    def stored_bytes(self) -> int:
        """Bytes held now."""
        return sum(memory.numel() * memory.element_size() for memory in self._memories)
