# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Two measures of what a training step keeps in memory, on any device and without asking the allocator.

`SavedActivations` counts what autograd keeps for a backward pass. `LiveTensors` counts every tensor that is alive,
temporary ones too; it is what torch.cuda.max_memory_allocated says on a GPU, for machines without one.
Neither sees what a kernel allocates and frees within one call.
"""

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Meter:
    """Bytes kept now and at most."""

    def __init__(self) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0

    def add(self, size: int) -> None:
        """Counts `size` bytes more (or fewer) as kept."""
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


class SavedActivations(Meter):
    """A context in which every tensor that autograd saves is counted for as long as its graph keeps it.

    Storages are counted once, however many views of them are saved. Activation checkpointing saves behind its own
    hooks, so that what it keeps cannot be seen here.

        with SavedActivations(model.parameters()) as saved:
            model(x).backward()
        saved.peak_bytes

    Args:
        exclude: Tensors whose storages do not count: parameters, inputs.
    """

    def __init__(self, exclude: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        # By the storage and not by the address of its bytes: tensors of a simulated GPU have none.
        self._excluded = {tensor.untyped_storage()._cdata for tensor in exclude}
        self._holders: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> "_Kept":
        kept = _Kept(tensor)
        storage = tensor.untyped_storage()
        pointer, size = storage._cdata, storage.nbytes()
        if size and pointer not in self._excluded:
            # A storage that is kept cannot be freed, so its address names it as long as the count is above zero.
            holders = self._holders.get(pointer, 0)
            self._holders[pointer] = holders + 1
            if holders == 0:
                self.add(size)
            weakref.finalize(kept, self._release, pointer, size)
        return kept

    @staticmethod
    def _unpack(kept: "_Kept") -> torch.Tensor:
        return kept.tensor

    def _release(self, pointer: int, size: int) -> None:
        self._holders[pointer] -= 1
        if self._holders[pointer] == 0:
            del self._holders[pointer]
            self.add(-size)

    def __enter__(self) -> "SavedActivations":
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)


class _Kept:
    """Stands for a saved tensor in the graph; when the graph drops it, the tensor is no longer kept."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class LiveTensors(TorchDispatchMode):
    """A context in which the storage of every tensor that an operation returns is counted until it is freed.

    Tensors made before (parameters, their gradients, inputs) do not count, but for those given as `also`. Backward
    passes must run in the calling thread, as they do on the CPU.
    """

    def __init__(self, also: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.meter = Meter()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in also:
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = kwargs or {}
        given = {t.untyped_storage().data_ptr() for t in tree_iter((args, arguments)) if isinstance(t, torch.Tensor)}
        result = func(*args, **arguments)
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                # A view shares its argument's storage: counted already, or older than this context.
                if storage.data_ptr() not in given:
                    self._count(storage)
        return result

    def _count(self, storage: Any) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.meter.add(storage.nbytes())
            weakref.finalize(storage, self.meter.add, -storage.nbytes())
