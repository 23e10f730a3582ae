# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a checkpoint holds of a run, and how a run goes on from it, on the same processes or on others.

Every lane's memory and previous segment, the parameters' pieces, data and random state. Saving is in saving.py; the
directory's life (complete or absent) is in checkpoint_files.py. All files are safetensors or JSON: nothing in a
checkpoint is executed when it is loaded.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data_pipeline import SegmentStream
from data_pipeline.errors import UserError
from memformer.checkpoints import directory as files
from memformer.checkpoints.lane_states import LaneStates, load_lanes
from memformer.engine.base import Engine
from memformer.engine.fragments import FragmentReader
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.probe import probe
from memformer.models.registry import DEFAULT
from memformer.processes import group
from memformer.processes.group import World
from memformer.run.directory import RunDirectory

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What of a run is the same on all processes.

    Attributes:
        step: Optimizer steps done.
        tokens: Valid targets trained on.
        skipped_steps: Steps left out because the gradient was not finite.
        data: `SegmentStream.state_dict()`.
        skips: Which steps they were, as far back as the budget counts.
        recent_losses: Losses of the last steps, for the score of the next.
        rollbacks: Returns to an earlier checkpoint's weights.
        loss_scale: `LossScale.state()`; empty unless the precision is fp16.
    """

    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    skips: list[int] = dataclasses.field(default_factory=list)
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    rollbacks: int = 0
    loss_scale: dict[str, Any] = dataclasses.field(default_factory=dict)


def find(run: RunDirectory, world: World, resume: str) -> Path | None:
    """The checkpoint to resume from, the same on all processes; None to start afresh.

    Args:
        run: The run.
        world: This process among all.
        resume: auto (the newest complete one, if any), never, or the path of a run or checkpoint.

    Raises:
        UserError: never, and the run directory holds a run; or the path holds no complete checkpoint.
    """
    found: Path | None = None
    refused: UserError | None = None
    if world.is_main:
        try:
            found = _find(run, resume)
        except UserError as error:
            refused = error
    found, refused = group.from_main((found, refused))
    if refused is not None:
        raise refused
    return found


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


def load(directory: Path, world: World, engine: Engine, stream: SegmentStream) -> tuple[LaneStates, Progress]:
    """Puts a verified checkpoint's state into the engine, the stream and the random generators.

    Called by all processes, of whatever number, ZeRO stage and lanes: each reads the pieces that are its own now.

    Returns:
        The carries of this process's lanes, and the progress.

    Raises:
        CheckpointDamaged: The files do not hold what they should.
        UserError: The data set, its order or the seed is not the saved run's.
    """
    state = files.read_state(directory)
    known = {field.name for field in dataclasses.fields(Progress)}
    progress = Progress(**{name: value for name, value in state.items() if name in known})
    stream.load_state_dict(progress.data)
    load_parameters(directory, engine)
    lanes = load_lanes(
        directory / "lanes",
        state["num_lanes"],
        state.get("replicas", state["world_size"]),
        stream.carry_sources,
        stream.lanes,
        engine.config.data.num_lanes,
        engine.empty_carry,
    )
    if _sizes(state) == {"world_size": world.size, **world.mesh.sizes}:
        random = load_file(directory / "random" / f"rank-{world.rank:05d}.safetensors")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and world.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], world.device)
    return lanes, progress


def load_parameters(directory: Path, engine: Engine) -> None:
    """Weights and optimizer states alone.

    Raises:
        CheckpointDamaged: A piece of a parameter is in no file.
    """
    try:
        engine.load_parameters(parameter_reader(directory))
    except ValueError as error:
        raise files.CheckpointDamaged(f"{directory}: {error}") from None


def parameter_reader(directory: Path) -> FragmentReader:
    """The weights and optimizer states of a checkpoint, whoever wrote which piece."""
    return FragmentReader(sorted((directory / "parameters").glob("rank-*.safetensors")))


def check_fits(directory: Path, identity: dict[str, Any]) -> list[str]:
    """Refuses a checkpoint of another model or tokenizer; anything else is carried over.

    Args:
        directory: A verified checkpoint.
        identity: This run's, as it would be saved.

    Returns:
        What differs from the run that saved, in words, e.g. `2 -> 4 processes`.

    Raises:
        UserError: Names the first difference that cannot be carried over, both values and the mend.
    """
    state = files.read_state(directory)
    saved_family = state.get("family", DEFAULT)
    if saved_family != identity["family"]:
        raise UserError(
            f"{directory}: is a checkpoint of another model: model.family is {saved_family} there and "
            f"{identity['family']} here; set it back, or choose another run_dir"
        )
    for name, value in identity["model"].items():
        saved = state["model"].get(name)
        if saved != value:
            raise UserError(
                f"{directory}: is a checkpoint of another model: model.{name} is {saved} there and {value} here; "
                "set it back, or choose another run_dir"
            )
    if state["tokenizer_sha256"] != identity["tokenizer_sha256"]:
        raise UserError(
            f"{directory}: was written with tokenizer_sha256 {state['tokenizer_sha256']}, this run has "
            f"{identity['tokenizer_sha256']}: use the data set that the run was started on"
        )
    words = {
        "world_size": "{} -> {} processes",
        "tensor": "tensor {} -> {}",
        "pipeline": "pipeline {} -> {}",
        "zero_stage": "ZeRO {} -> {}",
        "num_lanes": "{} -> {} lanes",
        "precision": "{} -> {}",
        "device": "{} -> {}",
    }
    state = {**state, **_sizes(state)}
    return [text.format(state[name], identity[name]) for name, text in words.items() if state[name] != identity[name]]


def _sizes(state: dict[str, Any]) -> dict[str, int]:
    """The topology that a checkpoint was saved from; those of format 2 know replicas alone."""
    size = state["world_size"]
    return {
        "world_size": size,
        **{name: state.get(name, 1) for name in ("pipeline", "tensor")},
        "replicas": state.get("replicas", size),
    }


def not_carried(changes: list[str]) -> str:
    """What a resume with these changes cannot carry over, in one clause."""
    if any(word in change for change in changes for word in ("processes", "lanes", "pipeline")):
        return "dropout draws other masks, since its random streams belong to the old layout"
    return "losses agree to rounding" if changes else "nothing is lost"


@torch.no_grad()
def probe_losses(engine: Engine) -> list[float]:
    """Losses of a fixed short text in float32: what an export of this checkpoint must reproduce."""
    with evaluation_mode(engine.model), engine.master_weights():
        return probe(engine.model, engine.world.device)


def random_states(world: World) -> dict[str, torch.Tensor]:
    """The states of this process's random generators."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states
