# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Safetensors files written one tensor at a time.

The format (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the header with dtype,
shape and place of each tensor, then the bytes. The library's own `save_file` wants all tensors in memory at once.
Reading such files runs no code of theirs, unlike a pickle.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_ALIGNMENT = 8

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name -> (dtype, shape) of each tensor of a file, in the order in which they are written."""


def write_tensors(
    path: Path, layout: Layout, tensor_of: Callable[[str], torch.Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes and syncs a safetensors file, asking for one tensor after the other.

    Args:
        path: The file; an existing one is replaced.
        layout: What it holds.
        tensor_of: Gives the tensor of a name, on any device; it is dropped before the next one is asked for.
        metadata: Strings for the header.

    Returns:
        `bytes` and `sha256` of the file, computed while writing.

    Raises:
        OSError: The disk is full, or the directory cannot be written.
        ValueError: A tensor is not what the layout says.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:

        def put(data: Any) -> None:
            nonlocal size
            digest.update(data)
            file.write(data)
            size += len(data)

        put(len(text).to_bytes(8, "little"))
        put(text)
        for name, (dtype, shape) in layout.items():
            tensor = tensor_of(name)
            if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"{name}: is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {tuple(shape)}")
            put(_bytes_of(tensor))
            del tensor
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    tensor = tensor.detach().cpu().contiguous().reshape(-1)
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)  # numpy knows no bfloat16
    return tensor.numpy().view("uint8").data


def layout_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The layout of tensors that exist already."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
