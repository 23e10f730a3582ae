# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A run on a simulated device: the project's own `train`, with what each optimizer step did, sent and waited for."""

from typing import Any

import torch

from benchmarks.simulated_gpu import cuda, processes
from benchmarks.simulated_gpu.device import SimulatedDevice
from benchmarks.simulated_gpu.records import Records
from memformer.processes.spans import PREFIX

ROLLOUT = ("rollout", "pass 1", "segment forward", "segment backward", "reduction")
"""The phases of a step that are its rollout; the others are `optimizer`, and `step` for what comes before and after."""


def start(world_size: int, track_memory: bool = False) -> SimulatedDevice:
    """Makes this process the first of `world_size`, each with a simulated GPU. Once a process, before DeepSpeed.

    Args:
        world_size: Processes of the run.
        track_memory: As of `SimulatedDevice`.
    """
    device = SimulatedDevice(track_memory=track_memory)
    processes.install(device, world_size)
    cuda.install(device)
    _name_phases(device)
    from memformer.processes.group import join_deepspeed

    join_deepspeed(torch.device("cuda", 0), 1800)
    _spread_on_the_device(device)
    _compile_on_the_device(device)
    return device


def trained(config: Any, device: SimulatedDevice, callbacks: Any = ()) -> list[Records]:
    """Trains and gives what was recorded of each step, from its batch to the metrics, save and evaluation after it.

    Args:
        config: The run (`Config`), for as many processes as `start` was given.
        device: What it runs on.
        callbacks: Called beside.
    """
    from memformer.training.callbacks import Callback
    from memformer.training.trainer import train

    steps: list[Records] = []

    class Marks(Callback):
        def before_step(self, state: Any) -> None:
            steps.append(device.fresh_records())
            device.phase = "step"

        def before_rollout(self, state: Any) -> None:
            device.phase = "rollout"

        def before_optimizer_step(self, state: Any) -> None:
            device.phase = "step"

        def before_save(self, state: Any) -> None:
            device.phase = "after the step"

    device.fresh_records()
    try:
        exit_code = train(config, "never", [Marks(), *callbacks])
    finally:
        device.phase = ""
    if exit_code:
        raise RuntimeError(f"the run ended with exit code {exit_code}")
    return [*steps[1:], device.fresh_records()]


def _name_phases(device: SimulatedDevice) -> None:
    """The spans of a step, which a profile shows, are the phases."""
    real: Any = torch.profiler.record_function

    class Span(real):  # type: ignore[misc]  # a class, as torch's compiler asks whether something is one
        def __enter__(self) -> Any:
            self.phase = device.during(self.name.removeprefix(PREFIX)) if self.name.startswith(PREFIX) else None
            return self.phase.__enter__() if self.phase else super().__enter__()

        def __exit__(self, *error: Any) -> None:
            self.phase.__exit__(*error) if self.phase else super().__exit__(*error)

    replaced: Any = torch.profiler
    replaced.record_function = Span


def _spread_on_the_device(device: SimulatedDevice) -> None:
    """ZeRO 3 moves each part of a model to the device before it spreads it, which assignment to `.data` does."""
    from memformer.training.initial_weights import Partitioned

    built = Partitioned.built

    def moved(self: Any, module: Any) -> Any:
        return built(self, cuda.to_device(module, device))

    setattr(Partitioned, "built", moved)  # noqa: B010


def _compile_on_the_device(device: SimulatedDevice) -> None:
    """Whether layers are compiled is decided as on a GPU that has all that its compiler needs; a fault of it is one."""
    from memformer.engine import compilation

    compile_layers = compilation.compile_layers

    def compiled(model: Any, methods: bool = True) -> None:
        import torch._dynamo.config

        from benchmarks.simulated_gpu import compiler  # here: it takes seconds

        compiler.install(device)
        torch._dynamo.config.suppress_errors = False
        compile_layers(model, methods)

    setattr(compilation, "_missing", lambda _: None)  # noqa: B010
    setattr(compilation, "compile_layers", compiled)  # noqa: B010
