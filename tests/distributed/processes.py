# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Runs a function in several real processes over gloo, bounded in time.

The processes are forked from a server that has imported torch and DeepSpeed once: a start costs a tenth of a second
instead of seven.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from memformer.processes import group
from memformer.processes.ports import free_port
from tests.distributed import collectives


def run_distributed(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 240
) -> list[Any]:
    """Calls `function(world, *arguments)` in `world_size` processes and returns their results by rank.

    Raises:
        AssertionError: A process failed (its traceback is in the message) or did not end in time.
    """
    context = fork_server()
    queue = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_child, args=(queue, function, rank, world_size, port, arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    try:
        while len(results) < world_size:
            rank, result, failure = queue.get(timeout=timeout_seconds)
            assert failure is None, f"rank {rank} failed:\n{failure}"
            results[rank] = result
        for process in processes:
            process.join(timeout=30)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [results[rank] for rank in range(world_size)]


def fork_server() -> ForkServerContext:
    """Where test processes come from; started with the first of them."""
    # Until Python 3.12 the server does not take over this process's sys.path.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    return context


def _child(queue: Any, function: Callable[..., Any], rank: int, size: int, port: int, arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    collectives.install()
    try:
        world = group.initialise("cpu", timeout_seconds=120)
        queue.put((rank, function(world, *arguments), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
