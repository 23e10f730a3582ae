# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Whether a number of processes fits a run: one answer for every command that starts, submits or plans runs.

Processes make a grid `pipeline x data x tensor`; the replicas along `data` share the lanes equally. Nothing here needs
torch, so that a launcher refuses before it starts a rank and before a job waits in a queue.
"""

from data_pipeline.errors import UserError
from memformer.config.schema import Config


def replicas_of(config: Config, world_size: int, said: str | None = None) -> int:
    """The number of model replicas, that is, of data-parallel processes.

    Args:
        config: The run.
        world_size: Number of all processes.
        said: How the user gave that number, such as "--nproc 3"; None: by starting so many, "world size 3".

    Raises:
        UserError: The processes do not make whole replicas, or the lanes do not divide over these. It names the
            settings, their values and the mend.
    """
    said = f"world size {world_size}" if said is None else said
    lanes, tensor, pipeline = config.data.num_lanes, config.parallel.tensor, config.parallel.pipeline
    replicas, rest = divmod(world_size, tensor * pipeline)
    if rest or not replicas:
        raise UserError(
            f"{said} is not parallel.tensor {tensor} x parallel.pipeline {pipeline} x data for any number of "
            f"data-parallel processes: start a multiple of {tensor * pipeline} processes, or lower parallel.tensor or "
            "parallel.pipeline"
        )
    if lanes % replicas:
        raise UserError(
            f"data.num_lanes is {lanes}, which {replicas} data-parallel processes cannot share equally "
            f"({said} = parallel.tensor {tensor} x parallel.pipeline {pipeline} x data {replicas}): "
            f"choose a multiple of {replicas}, or another number of processes"
        )
    return replicas
