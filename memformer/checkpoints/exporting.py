# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Sharded checkpoint -> single-GPU weights: safetensors, config.json, tokenizer.json; verified, then published.

The pieces are mapped, read and written one tensor at a time: a process holds one tensor, and what the kernel keeps of
the mapped files, which it can drop. Only the forward pass that verifies the result needs the whole model.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from memformer.checkpoints import directory as files
from memformer.checkpoints.model_card import model_card
from memformer.checkpoints.state import parameter_reader
from memformer.checkpoints.tensor_file import write_tensors
from memformer.engine.fragments import FragmentReader, Region
from memformer.engine.parameter_state import WEIGHT
from memformer.models.loading import FORMAT, INDEX, SINGLE, load_model
from memformer.models.probe import probe
from memformer.models.registry import DEFAULT, UnknownFamily, family

PROBE_TOLERANCE = 1e-3  # nats; a GPU's float32 matrix products may use TF32, a CPU's differ by their order
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_FILE_BYTES = 5_000_000_000
BESIDE_WEIGHTS = ("lanes/", "random/")


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "fp32",
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    verify: bool = True,
) -> dict[str, Any]:
    """Exports a run's newest checkpoint, or a given one, from any ZeRO stage.

    Args:
        source: Run or checkpoint directory.
        out: Directory to make; it appears complete or not at all.
        dtype: fp32 or bf16.
        max_file_bytes: Weights beyond this are spread over several files, with an index.
        verify: Whether to hold a forward pass of the float32 weights to the losses that the checkpoint recorded.

    Returns:
        What was written: checkpoint, out, step, dtype, parameters, bytes, files, largest difference to the
        checkpoint's recorded losses in nats (None if not verified).

    Raises:
        UserError: No checkpoint, or `out` exists or cannot be written.
        CheckpointDamaged: The checkpoint does not verify (that of a run is its newest: an older one must be named), or
            the weights do not give the losses it recorded.
    """
    target = Path(os.path.realpath(out))  # beside what a link leads to, it is written and renamed
    files.refuse_full(out)
    checkpoint = locate_weights(source)
    state = files.read_state(checkpoint)
    shapes = {name: tuple(shape) for name, shape in state["parameters"].items()}
    try:
        kind = family(state.get("family", DEFAULT))
        model = kind.config.from_dict(state["model"])
    except (UnknownFamily, ValueError, TypeError) as error:
        raise files.CheckpointDamaged(f"{checkpoint}: {error}: use the version that wrote it") from None
    for alias in model.tied():
        shapes.pop(alias, None)
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}): choose another directory") from None
    description = {
        "format": FORMAT,
        "architecture": kind.architecture,
        "model": state["model"],
        "tokenizer_sha256": state["tokenizer_sha256"],
        "step": state["step"],
        "tokens": state["tokens"],
    }
    try:
        (temporary / "config.json").write_text(json.dumps(description, indent=1) + "\n")
        shutil.copyfile(checkpoint / "tokenizer.json", temporary / "tokenizer.json")
        reader, difference = parameter_reader(checkpoint), None
        if verify:
            written = _write(reader, shapes, temporary, torch.float32, max_file_bytes)
            difference = _verify(temporary, state["probe_losses"])
        if not verify or DTYPES[dtype] != torch.float32:
            for old in temporary.glob("model*.safetensors*"):
                old.unlink()
            written = _write(reader, shapes, temporary, DTYPES[dtype], max_file_bytes)
        result = {
            "checkpoint": str(checkpoint),
            "out": str(out),
            "step": state["step"],
            "dtype": dtype,
            "parameters": sum(torch.Size(shape).numel() for shape in shapes.values()),
            "bytes": sum(written.values()),
            "files": list(written),
            "largest_loss_difference": difference,
        }
        if kind.beside is not None:
            kind.beside(model, temporary, shapes, lambda name: _tensor(reader, shapes, name).to(DTYPES[dtype]))
        (temporary / "README.md").write_text(model_card(checkpoint, model, state, result))
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except ValueError as error:
        raise files.CheckpointDamaged(f"{checkpoint}: {error}") from None
    except OSError as error:
        raise UserError(
            f"--out {out}: the export of {checkpoint} broke off ({files.words(error)}), nothing is left of it: make "
            "room, or choose another directory",
            exit_code=1,
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


def locate_weights(source: str | os.PathLike[str]) -> Path:
    """The checkpoint to export: that of a run is its newest. What lanes carry and random states may be lost.

    Raises:
        UserError: There is none.
        CheckpointDamaged: It cannot be used, or has no tokenizer.
    """
    try:
        return files.locate(source, BESIDE_WEIGHTS)
    except files.CheckpointDamaged as damage:
        if "tokenizer.json" not in str(damage):
            raise
        raise files.CheckpointDamaged(f"{damage}; a tokenizer.json can be copied from the run's data set") from None


def _tensor(reader: FragmentReader, shapes: dict[str, tuple[int, ...]], name: str) -> torch.Tensor:
    shape = torch.Size(shapes[name])
    return reader.read(WEIGHT, name, Region.whole(shape)).view(shape)


def _write(
    reader: FragmentReader,
    shapes: dict[str, tuple[int, ...]],
    directory: Path,
    dtype: torch.dtype,
    max_file_bytes: int,
) -> dict[str, int]:
    """Writes the weights into one file, or several with an index; returns the size of each by name."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        if groups[-1] and filled + size > max_file_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += size
    names = (
        [SINGLE]
        if len(groups) == 1
        else [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    )

    written = {}
    for file, group in zip(names, groups, strict=True):
        layout = {name: (dtype, shape) for name, shape in group.items()}
        written[file] = int(
            write_tensors(
                directory / file, layout, lambda name: _tensor(reader, shapes, name).to(dtype), {"format": "pt"}
            )["bytes"]
        )
    if len(groups) > 1:
        places = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        index = {"metadata": {"total_size": sum(written.values())}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return written


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
