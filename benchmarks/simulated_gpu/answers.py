# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What torch's fake tensors answered to an operation, kept for the next one like it: a tenth of the time.

A step asks the same few hundred questions over and over. torch keeps its answers too, but spends most of the time on
being sure that a question is the same; here sizes, strides, dtypes and plain arguments decide.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class Output(NamedTuple):
    """A tensor that an operation gives.

    Attributes:
        size: Its shape.
        stride: In elements.
        offset: In its storage.
        dtype: Its type.
        device: Where it is: what has no numbers at all ("meta") takes no memory of the device.
        source: Number of the input whose storage it shares; -1: it has its own.
        same: Whether it is that input itself.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    source: int
    same: bool


def question(func: Any, args: Any, kwargs: Any) -> Hashable | None:
    """What decides the answer; None where an argument is of an unknown kind."""
    try:
        key = func, _described(args), _described(kwargs.values()), tuple(kwargs)
        hash(key)
    except TypeError:
        return None
    return key


def _described(values: Iterable[Any]) -> tuple[Hashable, ...]:
    described: list[Hashable] = []
    for each in values:
        if isinstance(each, torch.Tensor):
            here = isinstance(each, FakeTensor)
            described.append((each.shape, each.stride(), each.storage_offset(), each.dtype, here))
        elif isinstance(each, (list, tuple)):
            described.append(_described(each))
        else:
            described.append((type(each), each))
    return tuple(described)


def outputs_of(result: Any, inputs: Sequence[torch.Tensor]) -> Any:
    """The answer as `Output`s, in the nesting of the result."""
    if isinstance(result, (list, tuple)):
        return tuple(outputs_of(each, inputs) for each in result)
    if not isinstance(result, torch.Tensor):
        return result
    storages = [each.untyped_storage()._cdata for each in inputs]
    own = result.untyped_storage()._cdata
    same = next((i for i, each in enumerate(inputs) if each is result), -1)
    source = same if same >= 0 else storages.index(own) if own in storages else -1
    size, stride = tuple(result.shape), tuple(result.stride())
    return Output(size, stride, result.storage_offset(), result.dtype, result.device, source, same >= 0)


def made(outputs: Any, inputs: Sequence[torch.Tensor], mode: FakeTensorMode) -> Any:
    """Tensors as the answer describes them."""
    if isinstance(outputs, Output):
        if outputs.same:
            return inputs[outputs.source]
        meta = torch.empty_strided(outputs.size, outputs.stride, dtype=outputs.dtype, device="meta")
        if outputs.source >= 0:
            meta.set_(inputs[outputs.source].untyped_storage(), outputs.offset, outputs.size, outputs.stride)
        return FakeTensor(mode, meta, outputs.device)
    if isinstance(outputs, tuple):
        return tuple(made(each, inputs, mode) for each in outputs)
    return outputs
