# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Sharded checkpoint -> single-GPU weights: safetensors, config.json, tokenizer.json; verified, then published.

What lies in the directory is in export_folder.py, and how a family lays it out is its own (`Family.export`). The pieces
are mapped, read and written one tensor at a time: a process holds one tensor, and what the kernel keeps of the mapped
files, which it can drop. Only the forward pass that verifies the result needs the whole model.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from memformer.checkpoints import directory as files
from memformer.checkpoints.export_folder import ExportFolder
from memformer.checkpoints.model_card import model_card
from memformer.checkpoints.state import parameter_reader
from memformer.engine.fragments import Region
from memformer.engine.parameter_state import WEIGHT
from memformer.models.configuration import ModelConfig
from memformer.models.exported import DTYPES
from memformer.models.family_record import Family
from memformer.models.loading import load_model
from memformer.models.probe import probe
from memformer.models.registry import DEFAULT, UnknownFamily, family

PROBE_TOLERANCE = 1e-3  # nats; a GPU's float32 matrix products may use TF32, a CPU's differ by their order
MAX_FILE_BYTES = 5_000_000_000
BESIDE_WEIGHTS = ("lanes/", "random/")


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "fp32",
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    verify: bool = True,
    base_reference: bool = False,
    merge: bool = False,
) -> dict[str, Any]:
    """Exports a run's newest checkpoint, or a given one, from any ZeRO stage.

    Args:
        source: Run or checkpoint directory.
        out: Directory to make; it appears complete or not at all.
        dtype: fp32 or bf16.
        max_file_bytes: Weights beyond this are spread over several files, with an index.
        verify: Whether to hold a forward pass of the float32 weights to the losses that the checkpoint recorded.
        base_reference: Leave out weights that are still those of the pretrained model that the run began with; where
            that is, and its sums, are recorded.
        merge: Add low-rank adapters to the weights that they are beside: the export has none.

    Returns:
        What was written: checkpoint, out, step, dtype, parameters, bytes, files, largest difference to the
        checkpoint's recorded losses in nats (None if not verified), the pretrained directory that is referred to,
        whether adapters were merged.

    Raises:
        UserError: No checkpoint, or `out` exists or cannot be written, or there is no base to refer to, or no adapter
            to merge.
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
    reader, difference, base = parameter_reader(checkpoint), None, None

    def stored(name: str) -> torch.Tensor:
        shape = torch.Size(state["parameters"][name])
        return reader.read(WEIGHT, name, Region.whole(shape)).view(shape)

    tensor_of: Callable[[str], torch.Tensor] = stored
    """Where every weight of an export comes from."""
    if merge:
        if not model.adapted or kind.merge is None or kind.adapter is None:
            raise UserError(f"--merge: {checkpoint} has no low-rank adapters (model.lora): leave it out")
        shapes = {name: shape for name, shape in shapes.items() if not kind.adapter(name)}
        model, tensor_of = kind.merge(model, stored)
        state = state | {"model": model.to_dict()}
    if base_reference:
        base, same = _unchanged(kind, model, tensor_of, shapes)
        shapes = {name: shape for name, shape in shapes.items() if name not in same}
    temporary = target.with_name(f".{target.name}.partial")
    alone = contextlib.ExitStack()
    try:
        alone.enter_context(_alone(temporary, out))
        folder = ExportFolder(temporary, kind, model, state, max_file_bytes, base)
        folder.write_tokenizer(checkpoint / "tokenizer.json")
        if verify:
            written = folder.write(shapes, tensor_of, "fp32")
            difference = _verify(temporary, state["probe_losses"])
        if not verify or dtype != "fp32":
            written = folder.write(shapes, tensor_of, dtype)
        result = {
            "checkpoint": str(checkpoint),
            "out": str(out),
            "step": state["step"],
            "dtype": dtype,
            "parameters": sum(torch.Size(shape).numel() for shape in shapes.values()),
            "bytes": sum(written.values()),
            "files": list(written),
            "largest_loss_difference": difference,
            "base": None if base is None else str(base[0]),
            "tokenizer_file": folder.tokenizer,
            "merged": merge,
        }
        if kind.beside is not None:
            kind.beside(model, temporary, shapes, lambda name: tensor_of(name).to(DTYPES[dtype]))
        (temporary / "README.md").write_text(model_card(checkpoint, model, state, result))
        folder.sync()
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
        alone.close()
    return result


@contextlib.contextmanager
def _alone(directory: Path, out: str | os.PathLike[str]) -> Iterator[None]:
    """An empty directory that one process writes to; what it has not renamed by the end goes away.

    Raises:
        UserError: It cannot be made, or another process writes to it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}): choose another directory") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks: as before there were any
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _taken(out) from None
        if not _is_at(held, directory):  # renamed between the two
            raise _taken(out)
        for left in directory.iterdir():
            left.unlink()
        try:
            yield
        finally:
            if _is_at(held, directory):
                shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(held)


def _is_at(held: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), os.lstat(directory))
    except FileNotFoundError:
        return False


def _taken(out: str | os.PathLike[str]) -> UserError:
    return UserError(f"--out {out}: another export is writing there: wait for its end, or choose another directory")


def _unchanged(
    kind: Family, model: ModelConfig, tensor_of: Callable[[str], torch.Tensor], shapes: dict[str, tuple[int, ...]]
) -> tuple[tuple[Path, list[Path]], set[str]]:
    """The pretrained model that a run began with, and the parameters that are still as they are there.

    Raises:
        UserError: It began with none, that is gone or another one, or nothing of it is as it was.
    """
    same = set()
    try:
        base = None if kind.export is None else kind.export.base(model)
        if base is None or kind.weights is None:
            raise UserError("--base-reference: the run began with no pretrained model: leave it out")
        for name, stored in kind.weights(model) or ():
            # The values count: a frozen weight may be kept in another precision than its file has.
            if name in shapes and torch.equal(tensor_of(name).float(), stored[...].float()):
                same.add(name)
    except ValueError as error:
        raise UserError(f"--base-reference: {error}, or leave it out") from None
    if not same:
        raise UserError(
            f"--base-reference: every weight of {base[0]} was changed, by training or by a frozen model's precision: "
            "leave it out"
        )
    return base, same


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
