# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a checkpoint holds of a run, and how a run goes on from it, on the same processes or on others.

Every lane's memory and previous segment, the parameters' pieces, data and random state. Which checkpoint it is, and
whether the run may go on from it, is decided in resuming.py; saving is in saving.py; the directory's life (complete or
absent) is in directory.py. All files are safetensors or JSON: nothing in a checkpoint is executed when it is loaded.
"""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data_pipeline import SegmentStream
from data_pipeline.cloud_settings import is_cloud
from data_pipeline.errors import UserError
from data_pipeline.object_store import CloudError, ObjectStore
from memformer.checkpoints import directory as files
from memformer.checkpoints.base import BASE, frozen_as
from memformer.checkpoints.fetching import fetch, wanted
from memformer.checkpoints.lane_states import LaneStates, load_lanes
from memformer.checkpoints.mirrored import refuse_unfit
from memformer.checkpoints.resuming import PLAN, Start, choose, is_other_data, repeated_steps, sizes
from memformer.config.schema import CheckpointConfig, DataConfig
from memformer.engine.base import Engine
from memformer.engine.fragments import FragmentReader
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.probe import probe
from memformer.processes.group import World
from memformer.processes.turns import found_by_main
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


def find(run: RunDirectory, world: World, resume: str, settings: CheckpointConfig) -> Start:
    """Where the run begins, the same on all processes.

    Args:
        run: The run.
        world: This process among all.
        resume: auto (the newest checkpoint that can be used), never, the path of a run or checkpoint, or the address of
            a mirror or of a checkpoint in one.
        settings: How often the run saves, and its mirror.

    Raises:
        UserError: See `choose`, `fetching.wanted` and `mirrored.refuse_unfit`.
    """
    if is_cloud(resume):
        resume = found_by_main(world, functools.partial(_fetched, run, resume, settings))

    def look() -> Start:
        start = choose(run, resume)
        trained, reasons = repeated_steps(run, start, settings)
        start = dataclasses.replace(start, trained=trained, reasons=tuple(reasons))
        if settings.mirror is not None:
            _look_at_mirror(run, start, settings.mirror)
        return start

    return found_by_main(world, look)


def _fetched(run: RunDirectory, address: str, settings: CheckpointConfig) -> str:
    """Fetches what an address names; returns what `choose` is told. The requests have time limits."""
    try:
        return str(fetch(run, wanted(run, address, settings), settings))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--resume {address}: {type(error).__name__}: {error}", exit_code=1) from error


def _look_at_mirror(run: RunDirectory, start: Start, address: str) -> None:
    """Refuses a mirror that is not this run's; one that does not answer may be told of later, but for a new run."""
    try:
        refuse_unfit(ObjectStore(address), run, start)
    except CloudError as error:
        if start.checkpoint is None:
            raise UserError(f"checkpoint.mirror: {error}", exit_code=1) from None
        LOG.warning("checkpoint.mirror: %s; the run goes on, and tries it with its next checkpoint", error)


def load_stream(directory: Path, stream: SegmentStream, data: DataConfig) -> list[str]:
    """Puts a fresh stream where a checkpoint was written, or to the beginning of another data set.

    Returns:
        What differs, in words: nothing, or that the data set is another one.

    Raises:
        UserError: The data set, its order or the seed is not the saved run's, and `data.on_change` is refuse.
    """
    state = files.read_state(directory)
    plan = stream.state_dict()
    if not is_other_data(directory, {name: plan[name] for name in PLAN}, data.on_change, data.path):
        stream.load_state_dict(state["data"])
        return []
    stream.start_over(state["step"])
    return ["another data set or order: read from its beginning, with fresh memories"]


def load(directory: Path, world: World, engine: Engine, stream: SegmentStream) -> tuple[LaneStates, Progress]:
    """Puts a verified checkpoint's state into the engine and the random generators.

    Called by all processes, of whatever number, ZeRO stage and lanes: each reads the pieces that are its own now.

    Args:
        directory: The checkpoint.
        world: This process among all.
        engine: The engine.
        stream: The stream after `load_stream`.

    Returns:
        The carries of this process's lanes, and the progress.

    Raises:
        CheckpointDamaged: The files do not hold what they should.
    """
    state = files.read_state(directory)
    known = {field.name for field in dataclasses.fields(Progress)}
    progress = Progress(**{name: value for name, value in state.items() if name in known})
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
    random = f"{files.RANDOM}rank-{world.rank:05d}.safetensors"
    same = sizes(state) == {"world_size": world.size, **world.mesh.sizes}
    if same and not files.lost(directory, (random,)):
        generators = load_file(directory / random)
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and world.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], world.device)
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
    engine.frozen_from = directory if frozen_as(directory, engine.parameter_state().frozen()) else None


def parameter_reader(directory: Path) -> FragmentReader:
    """The weights and optimizer states of a checkpoint, whoever wrote which piece."""
    names = sorted(name for name in files.read_manifest(directory)["files"] if name.startswith(("parameters/", BASE)))
    return FragmentReader([directory / name for name in names])


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
