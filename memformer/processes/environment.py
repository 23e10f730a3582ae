# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The variables by which a process knows its place among those of a run; read without torch.

The contract is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); under `srun` without it, Slurm's
variables are read; with neither, the run is a single process.
"""

import os
from collections.abc import MutableMapping

from data_pipeline.errors import UserError
from memformer.processes.ports import free_port


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fills in torchrun's variables, from Slurm's or for a single process.

    Raises:
        UserError: RANK is set but another variable of the contract is missing, or is no number.
    """
    if "RANK" not in environment and "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    if "RANK" not in environment:
        environment.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        environment["MASTER_PORT"] = str(free_port())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not environment.get(name, "").isdigit():
            raise UserError(
                f"environment variable {name} is {environment.get(name)!r}: set it to a number, or start the run "
                "with memformer launch, torchrun or srun"
            )
    if not environment.get("MASTER_ADDR"):
        raise UserError("environment variable MASTER_ADDR is not set: set it to the address of rank 0's machine")
