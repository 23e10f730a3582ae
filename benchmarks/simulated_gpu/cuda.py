# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""torch's Python face of CUDA over a simulated device: what asks for a GPU in this process finds it, until it ends."""

import contextlib
import itertools
import types
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.simulated_gpu.device import SimulatedDevice, aten, is_on_device
from benchmarks.simulated_gpu.roofline import LOW

_host_attention = F.scaled_dot_product_attention
NAME, MEMORY = "simulated H100", 80 << 30


class _Stream:
    """A stream or an event; there is one stream, which is always idle."""

    kind = "stream"
    device: SimulatedDevice

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def synchronize(self) -> None:
        self.device.wait(f"{self.kind}.synchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 1.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Event(_Stream):
    kind = "event"


class _PinnedMemory:
    """Pinned memory of the host as torch has it: in powers of two, and what was freed is given out again."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device, self._free = device, Counter[int]()

    def hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """Makes a tensor of the host count as pinned."""
        tensor.__dict__["pinned"] = True
        storage = tensor.untyped_storage()
        if storage.nbytes():
            size = 1 << (storage.nbytes() - 1).bit_length()
            if self._free[size]:
                self._free[size] -= 1
            else:
                self._device.records.pinned += size
            weakref.finalize(storage, self._free.update, [size])
        return tensor


def install(device: SimulatedDevice) -> None:
    """Puts the simulated device in the place of CUDA. It stays for the rest of the process.

    Args:
        device: The device.
    """
    properties = types.SimpleNamespace(
        name=NAME,
        total_memory=MEMORY,
        major=9,
        minor=0,
        multi_processor_count=132,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
    )
    states = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "_lazy_init": None,
        "init": None,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "is_bf16_supported": True,
        "mem_get_info": (MEMORY, MEMORY),
        "memory_stats": {},
        "get_rng_state": states,
        "set_rng_state": None,
        "_lazy_call": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "ipc_collect": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    for name in ("memory_allocated", "memory_reserved"):
        setattr(torch.cuda, name, lambda *_: device.allocated)
    for name in ("max_memory_allocated", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda *_: device.peak)
    setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: device.forget_peak())  # noqa: B010
    for name in ("synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *_, _kind=f"cuda.{name}": device.wait(_kind))
    for name in ("range_push", "range_pop", "mark"):
        setattr(torch.cuda.nvtx, name, lambda *_, **__: None)
    setattr(torch.cuda.nccl, "version", lambda: (2, 0, 0))  # noqa: B010
    _Stream.device, stream = device, _Stream()
    for name in ("current_stream", "default_stream"):
        setattr(torch.cuda, name, lambda *_: stream)
    replaced: Any = torch.cuda
    replaced.Stream, replaced.Event, replaced.stream = _Stream, _Event, lambda _: contextlib.nullcontext()
    _replace_tensor_methods(device, _PinnedMemory(device))
    _replace_constructors(device)
    setattr(F, "scaled_dot_product_attention", _attention)  # noqa: B010
    _replace_to(device)
    # What autograd does then happens in the thread that asked for it, below the line of the project that did.
    torch.autograd.set_multithreading_enabled(False).__enter__()
    device.__enter__()


def _replace_to(device: SimulatedDevice) -> None:
    real_to = nn.Module.to

    def to(module: Any, *arguments: Any, **keywords: Any) -> Any:
        place, dtype, *_ = torch._C._nn._parse_to(*arguments, **keywords)
        first = next(itertools.chain(module.parameters(), module.buffers()), None)
        there = first is not None and is_on_device(first)
        if (place is None and not there) or (place is not None and place.type == "cpu"):
            return real_to(module, *arguments, **keywords)
        return to_device(module, device, dtype)

    setattr(nn.Module, "to", to)  # noqa: B010


def to_device(module: Any, device: SimulatedDevice, dtype: torch.dtype | None = None) -> Any:
    """The module with its parameters and buffers on the device: what `.to` does, in which fake tensors have no part.

    Args:
        module: On the host, or there already. Ties stay, and so do the attributes of parameters.
        device: The device.
        dtype: Of its floating-point tensors from now on; None: as they are.
    """
    moved: dict[int, torch.Tensor] = {}

    def to(tensor: torch.Tensor) -> torch.Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if is_on_device(tensor) and tensor.dtype == wanted:
            return tensor
        if id(tensor) not in moved:
            made: Any = torch.empty(tensor.shape, dtype=wanted, device="cuda:0")
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, tensor.requires_grad)
            made.__dict__.update({key: value for key, value in vars(tensor).items() if key not in made.__dict__})
            moved[id(tensor)] = made
        return moved[id(tensor)]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = to(tensor)
    return module


def _replace_tensor_methods(device: SimulatedDevice, pinned: _PinnedMemory) -> None:
    real_tolist, real_data_ptr = torch.Tensor.tolist, torch.Tensor.data_ptr
    methods: Any = torch.Tensor

    def tolist(tensor: torch.Tensor) -> Any:
        if isinstance(tensor, FakeTensor):
            device.wait("tolist")
            return real_tolist(device.numbers(tensor))  # type: ignore[no-untyped-call]
        return real_tolist(tensor)  # type: ignore[no-untyped-call]

    def pin_memory(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        return pinned.hold(tensor.clone())

    setattr(FakeTensor, "tolist", tolist)  # noqa: B010
    methods.tolist, methods.pin_memory = tolist, pin_memory
    methods.is_pinned = lambda tensor, *_: tensor.__dict__.get("pinned", False)
    methods.record_stream = lambda tensor, stream: None
    methods.data_ptr = lambda tensor: id(tensor) if isinstance(tensor, FakeTensor) else real_data_ptr(tensor)


def _replace_constructors(device: SimulatedDevice) -> None:
    """Those that would look for a GPU in C++; numbers that the host puts on the device are remembered."""
    real_tensor, real_empty, real_generator = torch.tensor, torch.empty, torch.Generator

    def tensor(data: Any, *, device: Any = None, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = real_tensor(data, **options)
        if device is None or torch.device(device).type == "cpu":
            return made
        if isinstance(made, FakeTensor):  # of torch's compiler, which has no numbers to put there
            return torch.empty(made.shape, dtype=made.dtype, device="cuda:0")
        return made.to("cuda:0")

    def empty(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = real_empty(*sizes, **options)
        return made.pin_memory() if pin_memory else made

    for name, dtype in (("Byte", torch.uint8), ("Float", torch.float32), ("Int", torch.int32), ("Long", torch.int64)):
        setattr(torch.cuda, f"{name}Tensor", lambda data=(), _dtype=dtype: tensor(data, dtype=_dtype, device="cuda:0"))
    replaced: Any = torch
    replaced.tensor, replaced.empty = tensor, empty

    class Generator(real_generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            return real_generator()

    replaced.Generator = Generator


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """One kernel, as a GPU has it: flash attention without a mask in 16 bits, the memory-efficient one otherwise."""
    if query.device.type == "cpu":
        return _host_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (each.to(torch.get_autocast_dtype("cuda")) for each in (query, key, value))
    if attn_mask is None and query.dtype in LOW:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
    bias = None
    if attn_mask is not None:
        zero, never = (torch.full((), number, dtype=query.dtype, device="cuda:0") for number in (0.0, -torch.inf))
        bias = torch.where(attn_mask, zero, never) if attn_mask.dtype == torch.bool else attn_mask.to(query.dtype)
        bias = bias.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
        query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
