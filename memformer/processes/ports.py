# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""TCP ports at which the processes of a run meet. Nothing here needs torch: launchers choose them."""

import random
import socket

# Below Linux's range for outgoing connections (32768 and up): between our look and the moment rank 0 listens, torch
# is imported, and in those seconds any program's connection could be given a port of that range.
RANGE = range(20000, 32768)

JOB_PORTS = 12000
"""How many ports of the range the jobs of a cluster are spread over; slurm/*.sbatch have the same formula."""


def free_port(attempts: int = 200) -> int:
    """Finds a TCP port that nobody listens on.

    Args:
        attempts: How many random ports to try.

    Raises:
        OSError: If all of them were taken.
    """
    for port in random.SystemRandom().sample(RANGE, attempts):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free TCP port among {attempts} tried between {RANGE.start} and {RANGE.stop - 1}")


def port_of_job(job: int, life: int) -> int:
    """The port of a job's processes, which each of them finds for itself.

    Jobs that share a node keep apart, and each life of a job has another port.

    Args:
        job: The job's number.
        life: How often it was started again.
    """
    return RANGE.start + (job * 7 + life) % JOB_PORTS
