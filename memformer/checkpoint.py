# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Saving and resuming a run: DeepSpeed's shards, every lane's memory and previous segment, data and random state.

Written by all processes together; the directory's life (complete or absent) is in checkpoint_files.py.

DeepSpeed's own files are pickles. They are loaded only from a checkpoint whose manifest verifies; load checkpoints of
runs that you trust, and give others an export (safetensors) instead.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from data_pipeline.errors import UserError
from memformer import checkpoint_files as files
from memformer import distributed
from memformer.distributed import World
from memformer.engine import ReplayEngine
from memformer.probe import probe
from memformer.replay import Carry
from memformer.run_directory import RunDirectory

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What of a run is the same on all processes.

    Attributes:
        step: Optimizer steps done.
        tokens: Valid targets trained on.
        skipped_steps: Steps left out because the gradient was not finite.
        data: `SegmentStream.state_dict()`.
    """

    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def save(
    run: RunDirectory,
    world: World,
    engine: ReplayEngine,
    carry: Carry,
    progress: Progress,
    identity: dict[str, Any],
    tokenizer_file: Path,
    keep_last: int,
) -> Path:
    """Writes a checkpoint of `progress.step`. Called by all processes.

    Args:
        run: The run.
        world: This process among all.
        engine: The engine.
        carry: This process's lanes.
        progress: Steps, tokens, data state.
        identity: What a resumed run must share or be told of; kept in state.json beside the progress.
        tokenizer_file: Copied into the checkpoint, so that an export needs nothing else.
        keep_last: Complete checkpoints kept.

    Returns:
        The checkpoint's directory.
    """
    temporary = files.temporary_directory(run, progress.step)
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "lanes").mkdir(parents=True)
    distributed.barrier()
    # DeepSpeed's own pointer is written without waiting for the other processes: never used.
    engine.deepspeed.save_checkpoint(str(temporary), tag="deepspeed", save_latest=False)
    save_file(_local_tensors(carry, world), temporary / "lanes" / f"rank-{world.rank:05d}.safetensors")
    probe = probe_losses(engine)
    if world.is_main:
        shutil.copyfile(tokenizer_file, temporary / "tokenizer.json")
        state = {"format": files.FORMAT, **identity, **dataclasses.asdict(progress), "probe_losses": probe}
        (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    distributed.barrier()
    # Each process reads back and sums its share of the files.
    names = files.relative_files(temporary)
    shares: list[Any] = [None] * world.size
    own = {name: files.describe_file(temporary, name) for name in names[world.rank :: world.size]}
    if world.size > 1:
        dist.all_gather_object(shares, own)
    else:
        shares = [own]
    if world.is_main:
        files.publish(run, progress.step, {name: entry for share in shares for name, entry in sorted(share.items())})
        files.delete_old(run, keep_last)
    distributed.barrier()
    return files.step_directory(run, progress.step)


def find(run: RunDirectory, world: World, resume: str) -> Path | None:
    """The checkpoint to resume from, the same on all processes; None to start afresh.

    Args:
        run: The run.
        world: This process among all.
        resume: auto (the newest complete one, if any), never, or the path of a run or checkpoint.

    Raises:
        UserError: never, and the run directory holds a run; or the path holds no complete checkpoint.
    """
    answer: list[Any] = [None, None]
    if world.is_main:
        try:
            answer[0] = _find(run, resume)
        except UserError as error:
            answer[1] = error
    if world.size > 1:
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]  # type: ignore[no-any-return]


def _find(run: RunDirectory, resume: str) -> Path | None:
    if resume not in ("auto", "never"):
        return files.locate(resume)
    if resume == "never":
        if run.metrics.exists() or files.candidates(run):
            raise UserError(f"run_dir: {run.root} holds a run: choose another directory, or --resume auto")
        return None
    found, skipped = files.newest_complete(run)
    for line in skipped:
        LOG.warning("skipped a checkpoint: %s", line)
        run.event("checkpoint_skipped", reason=line)
    return found


def load(directory: Path, world: World, engine: ReplayEngine) -> tuple[Carry, Progress]:
    """Puts a checkpoint's state into the engine and the random generators. Called by all processes.

    Returns:
        The carry of this process's lanes, and the progress.
    """
    loaded, _ = engine.deepspeed.load_checkpoint(str(directory), tag="deepspeed")
    if loaded is None:
        raise files.CheckpointDamaged(f"{directory}: DeepSpeed found nothing to load in it")
    local = load_file(directory / "lanes" / f"rank-{world.rank:05d}.safetensors")
    torch.set_rng_state(local["random_cpu"])
    if "random_cuda" in local and world.device.type == "cuda":
        torch.cuda.set_rng_state(local["random_cuda"], world.device)
    state = files.read_state(directory)
    progress = Progress(**{field.name: state[field.name] for field in dataclasses.fields(Progress)})
    lanes = {name: local[name].to(world.device) for name in ("memory", "tokens", "length")}
    return Carry(**lanes, ragged=bool((local["length"] < local["tokens"].shape[1]).any())), progress


def check_fits(directory: Path, identity: dict[str, Any]) -> None:
    """Refuses a checkpoint that this run cannot go on from.

    Args:
        directory: A verified checkpoint.
        identity: This run's, as `save` was given it.

    Raises:
        UserError: Names the first difference, both values and the mend.
    """
    state = files.read_state(directory)
    for name, value in identity["model"].items():
        saved = state["model"].get(name)
        if saved != value:
            raise UserError(
                f"{directory}: is a checkpoint of another model: model.{name} is {saved} there and {value} here; "
                "set it back, or choose another run_dir"
            )
    mends = {
        "tokenizer_sha256": "use the data set that the run was started on",
        "num_lanes": "set data.num_lanes back",
        "zero_stage": "set parallel.zero_stage back",
        "world_size": "start as many processes as before",
    }
    for name, mend in mends.items():
        if state[name] != identity[name]:
            raise UserError(
                f"{directory}: was written with {name} {state[name]}, this run has {identity[name]}: {mend}"
            )


@torch.no_grad()
def probe_losses(engine: ReplayEngine) -> list[float]:
    """Losses of a fixed short text in float32: what an export of this checkpoint must reproduce."""
    training = engine.model.training
    engine.model.eval()
    losses = probe(engine.model, engine.world.device)
    engine.model.train(training)
    return losses


def _local_tensors(carry: Carry, world: World) -> dict[str, torch.Tensor]:
    tensors = {"memory": carry.memory, "tokens": carry.tokens, "length": carry.length}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    tensors["random_cpu"] = torch.get_rng_state()
    if world.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(world.device)
    return tensors
