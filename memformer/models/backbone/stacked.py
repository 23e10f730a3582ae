# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Equal modules of several layers as one module: their weights side by side, their inputs one batch.

    x [n B, L, D] of n neighbouring layers, layer by layer  ->  [n B, L, D], each layer's part by its own weights

transformers' own code of a layer runs as it is; only what has weights in it is another module: a linear map is one
batched product, a norm multiplies each layer's part by its own gains. All that has no weights (attention, rotary
positions, activations) sees a larger batch. torch.func.vmap over the layer gives the same numbers, but has no batched
attention on a CPU and runs it layer by layer there.

The weights are stored once: the parameters of the layers become views of what they are stacked in, one kind after
another, so that no more than one kind of all layers is there twice for a moment.

Shapes: B lanes, N all layers, n of them that run, L inputs, D width; a map has I inputs and O outputs.
"""

import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.backbone.associative import at_least_float32
from memformer.models.backbone.lora import LoraLinear
from memformer.models.graphed import storage_moved

_COMPARED = (bool, int, float, str, type(None))
_OWN = {"layer_idx", "training"}
"""What layers may differ in: their number, and what a stack has of its own."""


class NotStackable(ValueError):
    """Modules that cannot be run as one; the message says of what kind they are."""


def side_by_side(parameters: Sequence[torch.Tensor], moved: bool = True) -> torch.Tensor:
    """Equal parameters as one tensor [N, ...], which they are views of from then on; nothing is done if they are.

    Their values, names and gradients stay. What gives a parameter new storage (moving the model to another device or
    precision) ends it: ask again.

    Raises:
        RuntimeError: They are not, and may not be `moved`, since something else holds their storage.
    """
    first = parameters[0]
    size, step = (len(parameters), *first.shape), first.numel() * first.element_size()
    there = first.untyped_storage().nbytes() - first.storage_offset() * first.element_size()
    if there >= len(parameters) * step and all(
        each.is_contiguous() and each.data_ptr() == first.data_ptr() + number * step
        for number, each in enumerate(parameters)
    ):
        return first.detach().as_strided(size, (first.numel(), *first.stride()))
    if not moved:
        raise RuntimeError(
            "parameters of the layers do not lie side by side any more, and their storage is an engine's"
        )
    with torch.inference_mode(False):  # else the parameters could not be trained any more
        stack = torch.stack([each.detach() for each in parameters])
        for parameter, view in zip(parameters, stack, strict=True):
            parameter.data = view
    storage_moved()
    return stack


class _Kind:
    """Equal parameters of all layers, as one pass reads them, and their gradient, as its backward sums it up.

    A slice of a tensor has a gradient of the whole tensor's size, which autograd would make and add for every diagonal;
    here each is added where it belongs, in the parameters' precision.

    Args:
        parameters: One of each layer; they are put side by side.
        moved: As of `side_by_side`.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], moved: bool) -> None:
        self.whole = side_by_side(parameters, moved)
        self.gradient: torch.Tensor | None = None
        self._copies = {self.whole.dtype: self.whole}
        self._token = _Joined.apply(self, *parameters) if torch.is_grad_enabled() else None

    def part(self, first: int, last: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Those of the layers first .. last-1, [n, ...], rounded to `dtype` once in a pass, as autocast would."""
        dtype = dtype or self.whole.dtype
        if dtype not in self._copies:
            self._copies[dtype] = self.whole.to(dtype)
        some = self._copies[dtype][first:last]
        if self._token is None or not self._token.requires_grad:
            return some
        found: torch.Tensor = _Part.apply(self._token, self, some, first, last)
        return found

    def add(self, gradient: torch.Tensor, first: int, last: int) -> None:
        """Adds the gradient of a part."""
        if self.gradient is None:
            self.gradient = torch.zeros_like(self.whole)
        self.gradient[first:last] += gradient


class _Joined(torch.autograd.Function):
    """What parts are taken from: when all have their gradients, the parameters get them."""

    @staticmethod
    def forward(ctx: Any, kind: _Kind, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.kind = kind
        ctx.save_for_backward(*parameters)  # for their versions: what is read of them here is seen by nobody else
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, ctx.kind.gradient = ctx.kind.gradient, None
        _ = ctx.saved_tensors  # raises if one was changed in place since the forward
        return (None, *gradient.unbind())


class _Part(torch.autograd.Function):
    """A part of a `_Kind`, of what is joined by a token."""

    @staticmethod
    def forward(ctx: Any, token: torch.Tensor, kind: _Kind, some: torch.Tensor, first: int, last: int) -> torch.Tensor:
        ctx.kind, ctx.span, ctx.token = kind, (first, last), token.detach()
        return some.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.kind.add(gradients[0], *ctx.span)
        return (ctx.token, None, None, None, None)


class Stacked(nn.Module):
    """A module in the place of one that has weights.

    Args:
        modules: The N modules.
        names: Of their parameters, each of which may be None in all.

    Attributes:
        weight: Of the layers that run, [n, ...], without a graph; what asks a module for its weight's dtype finds it.
        moved: Whether the parameters may get another storage (`side_by_side`).
    """

    weight: torch.Tensor
    moved = True

    def __init__(self, modules: Sequence[Any], *names: str) -> None:
        super().__init__()
        self._modules_of_layers, self._names = list(modules), names
        self._kinds: dict[str, _Kind | None] = {}
        self._shown = (0, 0)
        for name in names:
            self._each(name)

    def _each(self, name: str) -> list[Any]:
        """A parameter of each layer, as it is now: loading may have put another in its place."""
        found = [getattr(module, name) for module in self._modules_of_layers]
        if len({None if each is None else (each.shape, each.dtype, each.device) for each in found}) > 1:
            raise NotStackable(f"{type(self._modules_of_layers[0]).__name__}.{name} differs from layer to layer")
        return found

    def parameters_by_kind(self) -> list[list[nn.Parameter]]:
        """Of each kind those of all layers."""
        return [each for each in map(self._each, self._names) if each[0] is not None]

    def gather(self) -> None:
        """Puts the weights side by side, where they are not; where gradients are kept, they reach the parameters."""
        for name in self._names:
            each = self._each(name)
            self._kinds[name] = None if each[0] is None else _Kind(each, self.moved)

    def show(self, first: int, last: int) -> None:
        """The layers first .. last-1 run from now on."""
        self._shown = (first, last)
        kind = self._kinds["weight"]
        assert kind is not None
        self.weight = kind.whole[first:last]

    def shown(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor | None:
        """A parameter of the layers that run, [n, ...], with a graph where there is one; None: they have none."""
        kind = self._kinds[name]
        return None if kind is None else kind.part(*self._shown, dtype)

    def of_layers(self, x: torch.Tensor) -> torch.Tensor:
        """[n B, ..., I] as [n, rows, I]."""
        return x.reshape(len(self.weight), -1, x.shape[-1])


class StackedLinear(Stacked):
    """Linear maps: `nn.Linear`, or transformers' Conv1D, whose weight is [I, O]."""

    def __init__(self, modules: Sequence[Any]) -> None:
        super().__init__(modules, "weight", "bias")
        self.transposed = not isinstance(modules[0], nn.Linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n B, ..., I] -> [n B, ..., O]."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weight, bias_nO = self.shown("weight", dtype), self.shown("bias", dtype)
        assert weight is not None
        weight_nIO, x_nRI = weight if self.transposed else weight.mT, self.of_layers(x)
        if bias_nO is None:
            y_nRO = torch.bmm(x_nRI, weight_nIO)
        else:
            y_nRO = torch.baddbmm(bias_nO[:, None], x_nRI, weight_nIO)
        return y_nRO.view(*x.shape[:-1], -1)


class StackedLora(StackedLinear):
    """Linear maps with low-rank ones beside them (`lora.LoraLinear`), not merged, without dropout."""

    def __init__(self, modules: Sequence[LoraLinear]) -> None:
        super().__init__(modules)
        self.transposed, self.scale = modules[0].transposed, modules[0].scale
        self.lora_A = StackedLinear([module.lora_A for module in modules])
        self.lora_B = StackedLinear([module.lora_B for module in modules])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n B, ..., I] -> [n B, ..., O]."""
        added: torch.Tensor = self.lora_B(self.lora_A(x))
        return super().forward(x) + self.scale * added


class StackedLayerNorm(Stacked):
    """`nn.LayerNorm` over the last dimension."""

    def __init__(self, modules: Sequence[nn.LayerNorm]) -> None:
        super().__init__(modules, "weight", "bias")
        self.eps = modules[0].eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n B, ..., D], normed."""
        # In half precision it is rounded once, behind its weights, as torch's own is.
        weight, bias = self.shown("weight"), self.shown("bias")
        assert weight is not None
        y_nRD = F.layer_norm(at_least_float32(self.of_layers(x)), x.shape[-1:], eps=self.eps) * weight[:, None]
        return (y_nRD if bias is None else y_nRD + bias[:, None]).to(x.dtype).view_as(x)


class StackedRMSNorm(Stacked):
    """Root mean square norms of transformers, by their own code: it multiplies by a weight that may be [n, 1, D]."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules, "weight")
        self.norm = copy.deepcopy(modules[0])
        del self.norm.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n B, ..., D], normed."""
        weight = self.shown("weight")
        assert weight is not None
        self.norm.weight = weight[:, None]
        normed: torch.Tensor = self.norm(self.of_layers(x))
        return normed.view_as(x)


def _kind(module: nn.Module) -> Any:
    """What stands in the place of a module with weights; None: it is not known."""
    name = type(module).__name__
    if isinstance(module, LoraLinear):
        return StackedLora if type(module.inputs).__name__ == "Inputs" else None
    if type(module) is nn.Linear or name == "Conv1D":
        return StackedLinear
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.elementwise_affine:
        return StackedLayerNorm
    return StackedRMSNorm if name.endswith("RMSNorm") and list(module._parameters) == ["weight"] else None


def _stacked(modules: Sequence[nn.Module]) -> nn.Module:
    first, kind = modules[0], _kind(modules[0])
    name = type(first).__name__
    if any(type(each) is not type(first) or each._modules.keys() != first._modules.keys() for each in modules):
        raise NotStackable(f"layers differ in what stands in the place of {name}")
    for key, value in vars(first).items():
        if isinstance(value, _COMPARED) and key not in _OWN and any(getattr(each, key) != value for each in modules):
            raise NotStackable(f"{name}.{key} differs from layer to layer")
    if kind is not None:
        made: nn.Module = kind(modules)
        return made
    if any(each is not None for each in first._parameters.values()):
        raise NotStackable(f"weights of {name} are not known")
    one = copy.copy(first)
    one._modules = {
        key: child if child is None else _stacked([each._modules[key] for each in modules])  # type: ignore[misc]
        for key, child in first._modules.items()
    }
    return one


class Stack:
    """Modules of several layers as one.

    Args:
        modules: Of N layers; their parameters become views when it is first shown.
        moved: False: they are views already, and stay what they are.

    Attributes:
        module: Is called as each of them is, with the inputs of the layers that run; in evaluation mode.

    Raises:
        NotStackable: They differ, or have weights in something that is not known.
    """

    def __init__(self, modules: Sequence[nn.Module], moved: bool = True) -> None:
        self.module = _stacked(modules).eval()
        self._parts = [each for each in self.module.modules() if isinstance(each, Stacked)]
        for part in self._parts:
            part.moved = moved
        self._layers = list(modules)
        self._stacked_from = self._all()

    def _all(self) -> list[nn.Module]:
        return [each for layer in self._layers for each in layer.modules()]

    def parameters_by_kind(self) -> list[list[nn.Parameter]]:
        """Of each kind of parameter those of all layers."""
        return [kind for part in self._parts for kind in part.parameters_by_kind()]

    def gather(self) -> None:
        """Before reading: the weights as they are now.

        Raises:
            NotStackable: A module of a layer was exchanged for another, or parameters differ now.
        """
        found = self._all()
        if len(found) != len(self._stacked_from) or any(map(operator.is_not, found, self._stacked_from)):
            raise NotStackable("a module of a layer is another than when the wavefront was made: make it anew")
        for part in self._parts:
            part.gather()

    def show(self, first: int, last: int) -> None:
        """The layers first .. last-1 run from now on."""
        for part in self._parts:
            part.show(first, last)
