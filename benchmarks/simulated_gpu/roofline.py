# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How long a kernel takes at best on a device, and which class of a step's work it is counted in.

A kernel takes the larger of its operations over the device's peak and its bytes over the bandwidth of its memory: the
roofline (Williams et al., 2009). Real kernels take longer, matrix products by a third and more, so that shares are a
picture of where a step goes and not a forecast. Derived, not measured.
"""

import dataclasses
from collections.abc import Collection

import torch

from benchmarks.simulated_gpu.records import Place

PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "_scaled_mm"})
LOW = frozenset({torch.bfloat16, torch.float16})

MATRIX_PRODUCTS, FLOAT32_PRODUCTS, ATTENTION = "matrix products", "matrix products, float32", "attention"


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The data sheet of a device.

    Attributes:
        name: Of the device.
        low_flops: Operations a second of dense 16-bit matrix products.
        float32_flops: The same in float32, without TF32.
        bytes_per_second: Of its memory.
    """

    name: str
    low_flops: float
    float32_flops: float
    bytes_per_second: float

    def seconds(self, flops: int, size: int, dtype: torch.dtype | None) -> float:
        """What a kernel takes at best.

        Args:
            flops: Its operations; 0 where only its bytes count.
            size: Bytes that it reads and writes.
            dtype: Of its products.
        """
        peak = self.low_flops if dtype in LOW else self.float32_flops
        return max(flops / peak, size / self.bytes_per_second)


H100 = Peaks("H100 SXM", 989e12, 67e12, 3.35e12)
"""NVIDIA's data sheet of the H100 SXM5, dense."""


def kind_of(name: str, node: str, phase: str, place: Place, dtype: torch.dtype | None, of_weights: bool) -> str:
    """The class that a kernel is counted in.

    Args:
        name: torch's name of the operation.
        node: The autograd node that launched it; empty in a forward.
        phase: The part of the step.
        place: Where it was asked for; of a backward, where the forward was.
        dtype: Of its first input; None: it has none.
        of_weights: Whether one of its inputs is a parameter, or its gradient on the way there.
    """
    if name in PRODUCTS:
        return MATRIX_PRODUCTS if dtype in LOW else FLOAT32_PRODUCTS
    if "attention" in name:
        return ATTENTION
    if phase in ("optimizer", "reduction"):
        return phase
    if place.file.endswith("/reduction.py"):  # in the last backward
        return "reduction"
    if place.file.endswith("/weight_copies.py") and name == "_foreach_copy_":
        return "casts of weights"
    if node.endswith("AccumulateGrad") or place.file.endswith("/weight_copies.py"):
        return "accumulation of weight gradients"
    if name == "_to_copy":
        return "casts of weights" if of_weights else "casts of activations"
    if "rotary" in place.function or "rotate" in place.function:
        return "rotary positions"
    if place.file.endswith("/scoring.py") or "loss" in place.function:
        return "logits and loss"
    if "layer_norm" in name or "rms_norm" in name:
        return "norms"
    if "gelu" in name or "silu" in name:
        return "activation functions"
    if "embedding" in name:
        return "embedding"
    if place.file.endswith(("/memory.py", "/associative.py", "/slots.py")):
        return "memory"
    if name in ("add", "add_"):
        return "residual and gradient adds"
    if name in ("clone", "copy_", "cat"):
        return "layout copies"
    return "other"


def fused_kind(operations: Collection[str], lines: str, of_weights: bool) -> str:
    """The class that a kernel is counted in that torch's compiler has made of several operations.

    Args:
        operations: torch's names of them.
        lines: The lines of the model that they come from, of the forward and of the backward.
        of_weights: Whether all that it reads and writes are matrices, as weights are.
    """
    joined = " ".join(operations)
    if "in rotate" in lines:
        return "fused: rotary positions"
    if "norm" in joined:
        return "fused: norms, with adds and casts"
    if "gelu" in joined or "silu" in joined:
        return "fused: activation functions"
    if of_weights and "_to_copy" in operations:
        return "fused: casts of weights and their gradients"
    return "fused: other"
