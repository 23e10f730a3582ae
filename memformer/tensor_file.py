# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Safetensors files written one tensor at a time, and tensors put together again from pieces in several files.

The format (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the header with dtype,
shape and place of each tensor, then the bytes. The library's own `save_file` wants all tensors in memory at once.
Reading such files runs no code of theirs, unlike a pickle.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

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


class FragmentReader:
    """Flat tensors whose pieces lie in several files: key `KIND/NAME`, 1-D, with the start of each in the metadata.

    Args:
        files: The files, in any order; their metadata's `starts` maps parameter names to the piece's first element.

    Raises:
        ValueError: A file is no safetensors file, or its metadata is not what `write_tensors` was given.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}
        self.steps: dict[str, float] = {}
        for path in files:
            try:
                # The file is mapped, not read: a piece costs memory only while it is looked at.
                opened: Any = safe_open(str(path), framework="pt")
                metadata = opened.metadata() or {}
                starts = json.loads(metadata["starts"])
                self.steps.update(json.loads(metadata["steps"]))
                for key in opened.keys():  # noqa: SIM118  # it is no dictionary
                    start = int(starts[key.partition("/")[2]])
                    length = int(opened.get_slice(key).get_shape()[0])
                    self._pieces.setdefault(key, []).append((start, start + length, opened))
            except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
                raise ValueError(f"{path}: is not a file of parameter fragments ({error})") from None
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[:2])

    def kinds(self, name: str) -> list[str]:
        """What is stored of a parameter: weight, exp_avg, ..."""
        return [kind for kind, _, found in (key.partition("/") for key in self._pieces) if found == name]

    def names(self) -> set[str]:
        """The parameters of which there is anything."""
        return {key.partition("/")[2] for key in self._pieces}

    def read(self, kind: str, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements start .. stop-1 of the flattened tensor.

        Raises:
            ValueError: Some of them are in no file.
        """
        out: torch.Tensor | None = None
        at = start
        for first, last, opened in self._pieces.get(f"{kind}/{name}", []):
            if first <= at < last and at < stop:
                end = min(last, stop)
                piece = opened.get_slice(f"{kind}/{name}")[at - first : end - first]
                if out is None:
                    out = torch.empty(stop - start, dtype=piece.dtype)
                out[at - start : end - start] = piece
                at = end
        if at < stop or (out is None and start < stop):
            raise ValueError(f"{kind} of {name}: elements {at} .. {stop - 1} are in none of the files")
        return torch.empty(0) if out is None else out
