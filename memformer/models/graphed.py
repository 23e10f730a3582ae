# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Graphed`: a function of tensors of fixed shapes, launched on a GPU as one CUDA graph.

Writing one token takes some twenty kernels a layer, each of which is done sooner than the host has launched the next.
A graph is recorded once and launched whole.
"""

import contextlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel


def graphs_run(device: torch.device) -> bool:
    """Whether what is computed here now may be a graph.

    Not under autocast, whose casts of weights belong to its context; and not where a model may be spread over
    processes, whose collectives nobody has tried in one.
    """
    if device.type != "cuda" or not torch.backends.cuda.is_built() or torch.is_autocast_enabled("cuda"):
        return False
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def recorded(device: torch.device) -> bool:
    """Whether a graph is being recorded there: what is kept outside of it may be gone when it is launched."""
    return device.type == "cuda" and torch.backends.cuda.is_built() and torch.cuda.is_current_stream_capturing()


def lengths_vary(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context for attention whose numbers of queries and keys change from call to call.

    cuDNN's, which torch prefers on new GPUs, is planned for each pair of lengths anew: 50 ms on an H100.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    found: contextlib.AbstractContextManager[None] = sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
    return found


PLAIN_CALLS = 16
"""Calls before one is recorded, which costs as much as a dozen tokens of a 350M model save on an H100."""


_moves = 0


def storage_moved() -> None:
    """Says that tensors which a recorded function may read have got other storage: graphs are recorded anew."""
    global _moves
    _moves += 1


class Graphed:
    """Calls a function: the first times as it is written, then recorded; from then on what was recorded.

    Args:
        function: Of tensors whose shapes, dtypes and device stay, without gradients and without waiting for the device.
            It may read and write tensors that it holds, as long as they stay where they lie (`recorded` tells caches to
            leave theirs out) or `storage_moved` says so, and is called twice with the arguments that it is recorded
            with: to do so must come to the same as once.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self._function = function
        self._plain_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._moves = 0
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._output = torch.empty(0)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the function gives for them, in a tensor of its own."""
        if self._graph is None or self._moves != _moves:
            if self._plain_calls < PLAIN_CALLS:
                self._plain_calls += 1
                return self._function(*inputs)
            self._graph, self._moves = self._recorded(inputs), _moves
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def _recorded(self, inputs: tuple[torch.Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = tuple(each.clone() for each in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(here)
            with torch.cuda.stream(beside):  # libraries make plans and work spaces, which none can while recording
                self._function(*self._inputs)
            here.wait_stream(beside)
            # What other threads ask of the device meanwhile is no fault of this one's. Without a stream torch would
            # record on one that it makes once a process, on the device that was recorded on first.
            with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                self._output = self._function(*self._inputs)
        return graph
