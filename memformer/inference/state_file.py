# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A reader's state as a file: a document that was read once is asked later, by another process.

The file is safetensors: the tensors `memory` [B, K, C], `context` and `tokens` int64 [B, S] of a
`models.segment_reader.ReadingState`, and one JSON object in the header's metadata with the format, what the model is,
the known and counted tokens of each document, and a SHA-256 of all this. Keys and values are not in it: they are many
times larger, and follow from it. Nothing in it is executed.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from data_pipeline import UserError
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.models.segment_reader import ReadingState
from memformer.run.directory import refuse_taken, write_atomically

FORMAT = 1
KEY = "memformer_reading"
"""Of the metadata."""
_TENSORS = ("context", "memory", "tokens")
_AGAIN = "read the document again and save its state"


def identity(model: MemoryModel) -> dict[str, str]:
    """What a state belongs to: the architecture, and the SHA-256 of the configuration and of the weights.

    Weights count as they are in memory: in another precision they read something else.
    """
    config = json.dumps(model.config.to_dict(), sort_keys=True).encode()
    weights = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        weights.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        weights.update(_bytes_of(weight))
    return {
        "architecture": family_of(model.config).architecture,
        "config": hashlib.sha256(config).hexdigest(),
        "weights": weights.hexdigest(),
    }


def save_state(path: Path, state: ReadingState, model: MemoryModel) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: The file; one that is there is not replaced.
        state: Of a reader.
        model: What it was read with.

    Raises:
        UserError: There is something, or it cannot be written.
    """
    refuse_taken(path)
    tensors = {name: getattr(state, name).cpu().contiguous() for name in _TENSORS}
    facts = {"format": FORMAT, **identity(model), "known": list(state.known), "counts": list(state.counts)}
    header = json.dumps({**facts, "sha256": _sum(facts, tensors)})
    try:
        write_atomically(path, save(tensors, metadata={KEY: header}))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}): choose another file") from None


def load_state(path: Path, model: MemoryModel) -> ReadingState:
    """Reads a state, on the CPU.

    Args:
        path: The file.
        model: What it was read with.

    Raises:
        UserError: It cannot be read, is no such file, is damaged, or was read with another model; one line.
    """
    try:
        if not path.is_file():  # a pipe would be read for ever
            raise UserError(f"{path}: is no file: give one that --save-state has written")
        content = path.read_bytes()
        tensors = load(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): give a file that can be") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{path}: is no state of a reader, or a part of one ({words}): {_AGAIN}") from None
    facts = _facts(content)
    if facts is None or set(tensors) != set(_TENSORS):
        raise UserError(f"{path}: is no state of a reader: give a file that --save-state has written")
    if facts.get("format") != FORMAT:
        raise UserError(f"{path}: has format {facts.get('format')!r}, not {FORMAT}: {_AGAIN}")
    said = facts.pop("sha256", None)
    if said != _sum(facts, tensors):
        raise UserError(f"{path}: is damaged (its SHA-256 is another than it says): {_AGAIN}")
    for name, own in identity(model).items():
        if facts.get(name) != own:
            raise UserError(
                f"{path}: its {name} is {str(facts.get(name))[:12]}, the model's {own[:12]}: give the model and the "
                "precision that it was read with"
            )
    state = ReadingState(tensors["memory"], tensors["context"], tensors["tokens"], *_counted(facts))
    if wrong := _flaw(state, model):
        raise UserError(f"{path}: {wrong}: {_AGAIN}")
    return state


def _facts(content: bytes) -> dict[str, Any] | None:
    """The JSON object of a file's metadata; None: it has none. The library has found the header to be JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        facts = json.loads(header["__metadata__"][KEY])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _counted(facts: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    known, counts = (tuple(facts[name]) if isinstance(facts.get(name), list) else () for name in ("known", "counts"))
    return known, counts


def _flaw(state: ReadingState, model: MemoryModel) -> str | None:
    """What of a state cannot be: a sum says that it is as it was written, not that a reader wrote it."""
    lanes, length = state.batch_size, state.tokens.shape[-1] if state.tokens.ndim == 2 else 0
    for name, tokens in (("tokens", state.tokens), ("context", state.context)):
        if tokens.dtype != torch.int64 or tokens.shape != (lanes, length) or not tokens.numel():
            return f"{name} is {tokens.dtype} {list(tokens.shape)}, not int64 [B, S] of {lanes} documents"
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < model.config.vocab_size:
            return f"{name} has ids beyond the model's {model.config.vocab_size}"
    if state.memory.shape != (lanes, *model.config.memory_shape) or not state.memory.is_floating_point():
        return f"memory is {state.memory.dtype} {list(state.memory.shape)}, not [B, K, C] of the model"
    if len(state.known) != lanes or not _all_in(state.known, (0, length)):
        return f"known is {list(state.known)}, not 0 or {length} for each document"
    if not _all_in(state.counts, range(length)):
        return f"counts is {list(state.counts)}, not 0 to {length - 1} for each document"
    return None


def _all_in(values: Iterable[Any], allowed: Any) -> bool:
    return all(type(value) is int and value in allowed for value in values)


def _sum(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of what a file holds."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
