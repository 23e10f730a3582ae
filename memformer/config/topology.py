# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Whether a number of processes fits a run: one answer for every command that starts, submits or plans runs.

Processes make a grid `pipeline x data x segment x tensor`; the ranks along `data` share the lanes equally, and those
along `segment` the rollouts of the same lanes. Nothing here needs torch, so that a launcher refuses before it starts a
rank and before a job waits in a queue.
"""

import math

from data_pipeline.errors import UserError
from memformer.config.schema import Config


def replicas_of(config: Config, world_size: int, said: str | None = None) -> int:
    """The number of data-parallel ranks, among which the lanes are shared: of model replicas, where a rollout is not.

    Args:
        config: The run.
        world_size: Number of all processes.
        said: How the user gave that number, such as "--nproc 3"; None: by starting so many, "world size 3".

    Raises:
        UserError: The processes do not make whole replicas, or the lanes do not divide over these. It names the
            settings, their values and the mend.
    """
    said = f"world size {world_size}" if said is None else said
    lanes, parallel = config.data.num_lanes, config.parallel
    axes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline}
    if parallel.segment > 1:
        axes["segment"] = parallel.segment
    fixed = math.prod(axes.values())
    grid = " x ".join(f"parallel.{name} {size}" for name, size in axes.items())
    replicas, rest = divmod(world_size, fixed)
    if rest or not replicas:
        *others, last = (f"parallel.{name}" for name in axes)
        raise UserError(
            f"{said} is not {grid} x data for any number of data-parallel processes: start a multiple of {fixed} "
            f"processes, or lower {', '.join(others)} or {last}"
        )
    if lanes % replicas:
        raise UserError(
            f"data.num_lanes is {lanes}, which {replicas} data-parallel processes cannot share equally "
            f"({said} = {grid} x data {replicas}): choose a multiple of {replicas}, or another number of processes"
        )
    return replicas
