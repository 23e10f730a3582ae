# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Sharded checkpoint -> single-GPU weights: safetensors, config.json, tokenizer.json; verified, then published."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from data_pipeline.errors import UserError
from memformer import checkpoint_files as files
from memformer.checkpoint import parameter_reader
from memformer.loading import FORMAT, TIED, load_model
from memformer.parameter_state import WEIGHT
from memformer.probe import probe

PROBE_TOLERANCE = 1e-3  # nats; a GPU's float32 matrix products may use TF32, a CPU's differ by their order
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(source: str | os.PathLike[str], out: str | os.PathLike[str], dtype: str = "fp32") -> dict[str, Any]:
    """Exports a run's newest complete checkpoint, or a given one, from any ZeRO stage.

    Args:
        source: Run or checkpoint directory.
        out: Directory to make; it appears complete or not at all.
        dtype: fp32 or bf16.

    Returns:
        What was written: checkpoint, out, step, parameters, bytes, largest difference to the checkpoint's recorded
        losses in nats.

    Raises:
        UserError: No complete checkpoint, or `out` exists.
        CheckpointDamaged: The checkpoint does not verify, or the weights do not give the losses it recorded.
    """
    checkpoint, target = files.locate(source), Path(out)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise UserError(f"--out {target}: exists and is not empty: choose another directory")
    state = files.read_state(checkpoint)
    weights = full_weights(checkpoint, state["parameters"])
    if state["model"]["tie_embeddings"]:
        weights.pop(TIED, None)
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {target}: cannot be made ({error.strerror}): choose another directory") from None
    description = {
        "format": FORMAT,
        "architecture": "Memformer",
        "model": state["model"],
        "tokenizer_sha256": state["tokenizer_sha256"],
        "step": state["step"],
        "tokens": state["tokens"],
    }
    try:
        (temporary / "config.json").write_text(json.dumps(description, indent=1) + "\n")
        shutil.copyfile(checkpoint / "tokenizer.json", temporary / "tokenizer.json")
        _save_weights(weights, temporary, torch.float32)
        difference = _verify(temporary, state["probe_losses"])
        if DTYPES[dtype] != torch.float32:
            _save_weights(weights, temporary, DTYPES[dtype])
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "checkpoint": str(checkpoint),
        "out": str(target),
        "step": state["step"],
        "dtype": dtype,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "bytes": (target / "model.safetensors").stat().st_size,
        "largest_loss_difference": difference,
    }


def full_weights(checkpoint: Path, shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The float32 weights of a verified checkpoint, by parameter name."""
    reader = parameter_reader(checkpoint)
    return {name: reader.read(WEIGHT, name, 0, torch.Size(shape).numel()).view(shape) for name, shape in shapes.items()}


def _save_weights(weights: dict[str, torch.Tensor], directory: Path, dtype: torch.dtype) -> None:
    converted = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    path = directory / "model.safetensors"
    save_file(converted, path, metadata={"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _verify(directory: Path, recorded: list[float]) -> float:
    """The largest difference in nats between the exported model's losses and those in the checkpoint."""
    losses = probe(load_model(directory), torch.device("cpu"))
    difference = max(abs(a - b) for a, b in zip(losses, recorded, strict=True))
    if not difference <= PROBE_TOLERANCE:
        raise files.CheckpointDamaged(
            f"{directory.name}: the exported weights give other losses than the checkpoint recorded (by "
            f"{difference:.2g} nats): nothing was written"
        )
    return difference
