# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SimulatedDevice`: a dispatch mode in which tensors of cuda:0 have shapes and dtypes, and those of the host numbers.

Whatever torch is asked to do comes by here. On the device it is torch's fake tensors that answer, which raise what a
GPU would raise where devices do not match. What the host asks the device for is answered by a plausible number, or by
the one that it put there itself, and noted as a wait. What stands for nothing on a GPU, such as a view, is no kernel.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch._subclasses.fake_tensor as fake_tensors
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.simulated_gpu import answers
from benchmarks.simulated_gpu.records import Kernel, Place, Records, Wait, Work, here
from benchmarks.simulated_gpu.roofline import H100, Peaks, kind_of

aten: Any = torch.ops.aten
_DEVICE_OF: Any = torch.ops.prim.device.default

_NO_KERNEL = frozenset(
    "view _unsafe_view t transpose expand detach alias unsqueeze squeeze slice select split split_with_sizes chunk "
    "as_strided unbind permute reshape _reshape_alias lift lift_fresh empty empty_like empty_strided new_empty "
    "new_empty_strided narrow unflatten set_ resize_ is_pinned view_as movedim unfold diagonal record_stream "
    "is_same_size _has_compatible_shallow_copy_type device _local_scalar_dense real _conj resolve_conj".split()
)
_ONLY_WRITES = frozenset(
    "fill_ zero_ zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor arange "
    "bernoulli_ uniform_ normal_ random_".split()
)
_SIZED_BY_NUMBERS = frozenset({"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"})
BESIDE = "beside"
"""The phase of what other threads of the host wait for."""
FEW = 8
"""What the host may compute unseen: as many elements as it has scalars to put together."""
_ALIGNED = 512  # bytes that torch's allocator rounds up to


class LeftOnTheHost(RuntimeError):
    """A tensor of the host took part in the device's work."""


class SimulatedDevice(TorchDispatchMode):
    """See the module.

    Args:
        peaks: The device whose roofline counts.
        track_memory: Whether to follow each storage from its making to its end; `allocated` and `peak` are 0 otherwise.

    Attributes:
        records: What was seen since the last `fresh_records`.
        phase: The part of the step that runs.
        answer: What a float is answered with that the device was asked for, and the host does not know.
        allocated: Bytes of the storages that live.
        peak: The most so far.
    """

    def __init__(self, peaks: Peaks = H100, track_memory: bool = False) -> None:
        super().__init__()
        fake_tensors.init_gpu_context = lambda device: None
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.fake.cache_enabled = False  # of torch, which takes longer than the answers that are kept here
        self.records, self.phase, self.answer = Records(), "", 1.0
        self._peaks, self._track_memory = peaks, track_memory
        self._storages: dict[int, int] = {}
        self.allocated = self.peak = 0
        self._forward_places: dict[int, tuple[Place, bool]] = {}
        self._answers: dict[Hashable, tuple[Any, Work, tuple[str, ...]]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and the guard against it costs as much as the dispatch."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """torch may compile what it runs."""
        return True

    def fresh_records(self) -> Records:
        """Hands over what was recorded and starts anew."""
        done, self.records = self.records, Records()
        self._forward_places.clear()
        return done

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Within the block, work belongs to this part of a step; the inner of two counts."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def forget_peak(self) -> None:
        """The peak counts from here."""
        self.peak = self.allocated

    def wait(self, kind: str) -> None:
        """Notes that the host waits here for the device; a thread beside the one that trains holds up nothing."""
        phase = self.phase if threading.current_thread() is threading.main_thread() else BESIDE
        self.records.waits[Wait(phase, kind, here())] += 1

    def known(self, tensor: FakeTensor, numbers: torch.Tensor) -> FakeTensor:
        """The tensor, of which the host knows the numbers because it put them there."""
        tensor.__dict__["host_numbers"] = numbers
        return tensor

    def numbers(self, tensor: FakeTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """What the host reads where it asks for a tensor of the device."""
        found: torch.Tensor | None = tensor.__dict__.get("host_numbers")
        if found is None:
            value = self.answer if tensor.is_floating_point() else 0
            found = torch.full(tuple(tensor.shape), value, dtype=tensor.dtype)
        return found.to(dtype or found.dtype, copy=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF:  # asked in every operation, so that it has a short way
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        inputs = _tensors(args) + _tensors(kwargs.values())
        on_device = [each for each in inputs if is_on_device(each)]
        name = _name_of(func)
        to_device = _names_device(kwargs.get("device"))
        if not on_device and not to_device:
            return self._on_host(func, name, args, kwargs, inputs)
        answered, out = self._crossing(func, name, args, kwargs, on_device, to_device)
        if not answered:
            out = self._compute(func, name, args, kwargs, inputs)
        if self._track_memory:
            self._hold(out)
        return out

    def _on_host(self, func: Any, name: str, args: Any, kwargs: Any, inputs: Sequence[torch.Tensor]) -> Any:
        pinned = kwargs.get("pin_memory", False)
        out = func(*args, **(kwargs | {"pin_memory": False} if pinned else kwargs))
        if pinned:
            out.__dict__["pinned"] = True
        if self.phase and name not in _NO_KERNEL:
            most = max((each.numel() for each in _tensors((out,))), default=0)
            if most > FEW:
                self.records.host_work[self.phase, name, here()] += most
        return out

    def _crossing(
        self, func: Any, name: str, args: Any, kwargs: Any, on_device: Sequence[Any], to_device: bool
    ) -> tuple[bool, Any]:
        """Whether the call goes from one side to the other, or needs numbers; and then what it gives."""
        waits = not kwargs.get("non_blocking", False)
        if name == "_local_scalar_dense":
            self.wait("item")
            return True, self.numbers(args[0]).item()
        if name == "equal":
            self.wait("equal")
            return True, True
        if name in _SIZED_BY_NUMBERS:
            self.wait(name)
            with self.fake:
                return True, torch.zeros(0, args[0].dim(), dtype=torch.int64, device="cuda:0")
        if name == "_to_copy" and on_device and _names_host(kwargs.get("device")):
            if waits:
                self.wait("copy to the host")
            return True, self.numbers(args[0], kwargs.get("dtype"))
        if name == "_to_copy" and to_device and not on_device:
            self._from_host(args[0], waits)
            with self.fake:
                made = torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="cuda:0")
            return True, self.known(made, args[0].detach().clone()) if args[0].numel() < 4096 else made
        if name == "copy_":
            target, source = args[:2]
            quick = args[2] if len(args) > 2 else not waits
            if not is_on_device(target):
                if not quick:
                    self.wait("copy to the host")
                elif target.dim() and not target.__dict__.get("pinned", False):
                    self.wait("copy to pageable memory of the host")
                target.copy_(self.numbers(source, target.dtype).expand(target.shape))
                return True, target
            target.__dict__.pop("host_numbers", None)
            if not is_on_device(source):
                self._from_host(source, not quick)
                return True, target
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return self._indexed(name, args)
        if name.endswith("_") and on_device:  # in place: what the host knew of it is no longer so
            on_device[0].__dict__.pop("host_numbers", None)
        return False, None

    def _from_host(self, source: torch.Tensor, waits: bool) -> None:
        """A copy to the device: one that is not waited for needs pinned memory, or the driver waits before it."""
        if waits:
            self.wait("copy to the device")
        elif source.dim() and not source.__dict__.get("pinned", False):
            self.wait("copy to the device from pageable memory")

    def _indexed(self, name: str, args: Any) -> tuple[bool, Any]:
        indices = [each for each in args[1] if each is not None]
        if any(each.dtype in (torch.bool, torch.uint8) for each in indices):
            self.wait("index by a mask")
            with self.fake:
                return True, args[0].new_empty(args[0].shape) if name == "index" else args[0]
        if any(not is_on_device(each) for each in indices):
            self.wait("index on the host")
            with self.fake:
                return True, args[0].new_empty(args[0].shape) if name == "index" else args[0]
        return False, None

    def _refuse_host_tensors(self, name: str, inputs: Sequence[torch.Tensor]) -> None:
        """As on a GPU: a number of the host may take part in the device's work, a tensor may not."""
        left = [each for each in inputs if not is_on_device(each) and each.dim()]
        if left and name not in ("copy_", "_to_copy"):
            words = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in left)
            raise LeftOnTheHost(f"{here()}: {name} on cuda:0 is given tensors of the CPU: {words}")

    def _compute(self, func: Any, name: str, args: Any, kwargs: Any, inputs: Sequence[torch.Tensor]) -> Any:
        asked = answers.question(func, args, kwargs)
        known = None if asked is None else self._answers.get(asked)
        if known is None:
            self._refuse_host_tensors(name, inputs)
            with self.fake:
                out = func(*args, **kwargs)
            work, dtypes = self._work(func, name, args, kwargs, inputs, out)
            if asked is not None:
                self._answers[asked] = answers.outputs_of(out, inputs), work, dtypes
        else:
            outputs, work, dtypes = known
            out = answers.made(outputs, inputs, self.fake)
        place, node, of_weights = self._origin(inputs)
        if name not in _NO_KERNEL:
            kind = kind_of(name, node, self.phase, place, inputs[0].dtype if inputs else None, of_weights)
            kernel = Kernel(self.phase, name, kind, dtypes, place)
            self.records.kernels.setdefault(kernel, Work()).add(work)
        return out

    def launch(self, name: str, kind: str, size: int, dtypes: tuple[str, ...]) -> None:
        """Notes a kernel that torch knows nothing of: one of its compiler.

        Args:
            name: Of the kernel.
            kind: Its class in the table.
            size: Bytes that it reads and writes.
            dtypes: Of its tensors, each once.
        """
        place, _, _ = self._origin(())
        work = Work(1, size, 0, self._peaks.seconds(0, size, None))
        self.records.kernels.setdefault(Kernel(self.phase, name, kind, dtypes, place), Work()).add(work)

    def _work(
        self, func: Any, name: str, args: Any, kwargs: Any, inputs: Sequence[torch.Tensor], out: Any
    ) -> tuple[Work, tuple[str, ...]]:
        """What one kernel amounts to, and the dtypes of its tensors."""
        outputs = _tensors((out,))
        # What it only writes to is no input.
        read = _tensors(args) + _tensors(value for name, value in kwargs.items() if name != "out")
        counted = flop_registry.get(func.overloadpacket)
        flops = 0 if counted is None else int(counted(*args, **kwargs, out_val=out))
        size = _moved(name, args, read, outputs)
        seconds = self._peaks.seconds(flops, size, inputs[0].dtype if flops else None)
        here = filter(is_on_device, (*inputs, *outputs))  # a number of the host is an argument of the kernel
        named = tuple(dict.fromkeys(_short(each.dtype) for each in here))
        # Lists of two dtypes are added one by one.
        mixed = name == "_foreach_add_" and len(named) > 1
        return Work(len(args[0]) if mixed else 1, size, flops, seconds), named

    def _origin(self, inputs: Sequence[torch.Tensor]) -> tuple[Place, str, bool]:
        """Where work comes from, the autograd node that asks for it (empty in a forward), whether weights are in it.

        A node has the number that the next one would have had when its forward ran, by which the two find each other.
        """
        node = torch._C._current_autograd_node()  # type: ignore[attr-defined]
        if node is not None:
            place, of_weights = self._forward_places.get(node._sequence_nr(), (None, False))
            return place or here(), node.name(), of_weights
        place, of_weights = here(), any(isinstance(each, torch.nn.Parameter) for each in inputs)
        self._forward_places[torch._C._autograd._get_sequence_nr() - 1] = place, of_weights  # type: ignore[attr-defined]
        return place, "", of_weights

    def _hold(self, out: Any) -> None:
        for each in _tensors((out,)):
            if isinstance(each, FakeTensor) and is_on_device(each):
                storage = each.untyped_storage()
                key = storage._cdata
                if key not in self._storages:
                    self._storages[key] = -(-storage.nbytes() // _ALIGNED) * _ALIGNED
                    self.allocated += self._storages[key]
                    self.peak, most = max(self.peak, self.allocated), self.records.most_allocated
                    most[self.phase] = max(most[self.phase], self.allocated)
                    weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.allocated -= self._storages.pop(key)


def is_on_device(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of the simulated device."""
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among arguments, and in lists of them, in their order."""
    found = []
    for each in values:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, (list, tuple)):
            found += _tensors(each)
    return found


@functools.cache
def _name_of(func: Any) -> str:
    name: str = func.overloadpacket._qualified_op_name
    return name.split("::")[-1]


@functools.cache
def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _names_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _distinct(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, what is broadcast counted once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count


def _moved(name: str, args: Any, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> int:
    """Bytes that a kernel reads and writes: every input and output once."""
    written = sum(map(_distinct, outputs))
    if name in _ONLY_WRITES:
        return written
    if name == "copy_":
        return _distinct(args[1]) + written
    if name == "embedding":  # the rows that are taken, and not the table
        return _distinct(args[1]) + 2 * written
    if name == "gather":  # the numbers that are taken, and not all of them
        return _distinct(args[2]) + 2 * written
    if name in ("scatter_", "scatter_add_"):  # the numbers that are written, or added to
        written = _distinct(args[2]) // args[2].element_size() * args[0].element_size()
        return written * (1 + (name == "scatter_add_")) + sum(map(_distinct, _tensors(args[2:])))
    if name in ("_foreach_copy_", "_foreach_add_") and isinstance(args[1], (list, tuple)):
        # Into the first list, which an addition reads too.
        first, second = (sum(map(_distinct, each)) for each in args[:2])
        return first * (1 + (name == "_foreach_add_")) + second
    if name.startswith(("_foreach", "_fused")) and not outputs:  # in place: the lists are read, and most are written
        return 2 * sum(map(_distinct, inputs))
    return sum(map(_distinct, inputs)) + written
