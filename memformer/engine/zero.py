# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What DeepSpeed's ZeRO does not do by itself, for a rollout to be exact and its parameters to be read.

It rests on private attributes of DeepSpeed 0.19.8, hence the pinned version and tests/distributed/test_zero.py.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from memformer.parallel.tensor import slice_of
from memformer.processes.topology import Mesh


def zero_kept_gradients(optimizer: Any, zero_stage: int) -> None:
    """Clears gradients that DeepSpeed keeps from one step to the next and would apply again.

    Of parameters that a step does not use: stage 3's partitions, and with offload the copies in host memory that are
    stepped.

    Args:
        optimizer: The engine's.
        zero_stage: 0 to 3.
    """
    stepped: list[Any] = []
    if zero_stage == 3:
        for partition in optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values():
            partition.zero_()
        if optimizer.offload_optimizer:
            stepped = optimizer.fp32_partitioned_groups_flat
    elif zero_stage and optimizer.cpu_offload:
        stepped = optimizer.single_partition_of_fp32_groups
    for flat in stepped:
        if flat.grad is not None:
            flat.grad.zero_()


def leave_gradients_alone(optimizer: Any, norm: Callable[[], torch.Tensor]) -> None:
    """Takes away what stages 1 and 2 call in every backward for every parameter, and how they take the norm.

    Where gradients are reduced by others, it is Python inside the backward: milliseconds a segment, in which a GPU
    waits.

    Args:
        optimizer: The engine's.
        norm: Gives the global norm, on the host.
    """
    optimizer.scaled_global_norm = norm
    for hook in optimizer._grad_acc_hooks:
        hook.remove()
    optimizer._grad_acc_hooks.clear()


def take_part_in_all_norms(optimizer: Any, most: int) -> None:
    """Pipeline stages: one with fewer groups of parameters than another takes part in the norms of the other's too.

    DeepSpeed adds up a norm for each group over all stages, and stages have other kinds of parameters: one without
    memory has no group for it. The norm of the whole is the same whichever groups meet.

    Args:
        optimizer: The engine's, at stage 1.
        most: Groups of the stage that has most.
    """
    from deepspeed.runtime.utils import combine_grad_norm_groups

    norm, missing = optimizer.scaled_global_norm, most - len(optimizer.bit16_groups)
    if missing:
        optimizer.scaled_global_norm = lambda *arguments, **keywords: combine_grad_norm_groups(
            [norm(*arguments, **keywords), *(optimizer.get_grad_norm_direct([], []) for _ in range(missing))]
        )


def ask_for_the_norm_once(
    optimizer: Any, zero_stage: int, mesh: Mesh, fetch: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The gradient's norm comes to the host once a step, where DeepSpeed looks at it there: it would ask three times.

    Each time a GPU would be waited for. On the CPU nothing changes, to the last bit.

    Args:
        optimizer: The engine's.
        zero_stage: 1 to 3.
        mesh: This process among all.
        fetch: Gives the values of a tensor on the host.
    """
    if zero_stage < 3:
        norm = optimizer.scaled_global_norm
        optimizer.scaled_global_norm = lambda *arguments, **keywords: fetch(norm(*arguments, **keywords))
    elif not optimizer.offload_optimizer:
        optimizer._get_norm_groups = lambda: list(fetch(group_norms(optimizer, mesh)))


def group_norms(optimizer: Any, mesh: Mesh) -> torch.Tensor:
    """ZeRO-3: the gradient's norm of each group of parameters, of the whole model, float64 [groups].

    DeepSpeed makes a float64 copy of each gradient for it, has a collective for each group, and marks a norm that is
    not finite by a number that it puts on the device, for which the host waits. Whether it is finite is seen from it.

    Args:
        optimizer: The engine's.
        mesh: This process among all.
    """
    squares = []
    for gradients, parameters in zip(optimizer.averaged_gradients.values(), optimizer.fp16_groups, strict=True):
        # What tensor parallelism does not cut counts on the first of its processes.
        here = zip(gradients, parameters, strict=True)
        counted = [each for each, p in here if mesh.tensor.rank == 0 or slice_of(p) is not None]
        norms = (
            torch._foreach_norm(counted, 2, dtype=torch.float64) if counted else [gradients[0].new_zeros(()).double()]
        )
        squares.append(torch.stack(list(norms)).pow(2.0).sum())
    return mesh.replica.sum(mesh.gradients.sum(torch.stack(squares))) ** 0.5


def give_linear_back() -> None:
    """ZeRO-3 by segments: torch's linear maps are its own again, for all that the process computes afterwards.

    DeepSpeed puts one that gathers its weight again in the place of `torch.nn.functional.linear`, and leaves it there.
    """
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Replacing

    torch.nn.functional.linear = getattr(Replacing, "linear_bk", torch.nn.functional.linear)


def wait_on_the_device(optimizer: Any) -> None:
    """ZeRO-3 on GPUs: what comes after the reductions waits for their stream on the device, not on the host.

    Args:
        optimizer: The engine's. Where it is offloaded the host copies what was reduced, and goes on waiting.
    """

    stream: Any = torch.cuda.Stream

    class Joined(stream):  # type: ignore[misc]
        def synchronize(self) -> None:
            torch.cuda.current_stream().wait_stream(self)

    if not optimizer.offload_optimizer and optimizer.reduce_and_partition_stream != torch.cuda.default_stream():
        optimizer.reduce_and_partition_stream = Joined()


@contextlib.contextmanager
def traces_uncompared() -> Iterator[None]:
    """ZeRO-3: inside, processes do not compare the order in which they use parameters.

    DeepSpeed has them do so once in every forward, as long as its trace of a step is not complete, and that of a
    rollout never is: four round trips to a GPU each. It is for parameters that are fetched in that order; where all
    have been gathered there is nothing to fetch.
    """
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

    compare = coordinator.assert_ints_same_as_other_ranks
    coordinator.assert_ints_same_as_other_ranks = lambda ints: None
    try:
        yield
    finally:
        coordinator.assert_ints_same_as_other_ranks = compare


@contextlib.contextmanager
def parameters_gathered(module: torch.nn.Module) -> Iterator[None]:
    """ZeRO-3: one gather of all parameters for a whole rollout.

    DeepSpeed's coordinator releases a parameter when no module is active that uses it; a sentinel in the set of
    active modules keeps every parameter until the block ends.
    """
    sentinel = -1
    parameters: list[Any] = [p for p in module.parameters() if hasattr(p, "ds_id")]
    absent = [p for p in parameters if p.ds_status.name == "NOT_AVAILABLE"]
    if absent:
        absent[0].all_gather_coalesced(absent).wait()
    for parameter in parameters:
        parameter.ds_active_sub_modules.add(sentinel)
    try:
        with traces_uncompared():
            yield
    finally:
        for parameter in parameters:
            parameter.ds_active_sub_modules.discard(sentinel)
        present = [p for p in parameters if p.ds_status.name == "AVAILABLE" and not p.ds_persist]
        if present:
            present[0].partition(param_list=present, has_been_updated=False)


@contextlib.contextmanager
def coordinator_at_rest(module: torch.nn.Module, optimizer: Any) -> Iterator[None]:
    """ZeRO-3: inside, DeepSpeed neither fetches nor releases parameters, nor notes the order in which they are used.

    All are gathered, so that there is nothing to do for its hooks around each module, forward and backward; to find
    that out takes them more of the host's time than the rollout. Each process may run the module when it likes, without
    the others, with whose order it would be compared.

    Args:
        module: All that is used.
        optimizer: The engine's.
    """
    coordinator: Any = optimizer.parameter_offload.get_param_coordinator()
    hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for each in module.modules():
        for found in (each._forward_pre_hooks, each._forward_hooks):
            if any(map(_is_of_deepspeed, found.values())):
                hooks.append((found, dict(found)))
    names = ("trace_prologue", "record_module", "reset_step", "fetch_sub_module", "release_sub_module")
    for name in names:
        setattr(coordinator, name, lambda *_, **__: None)
    try:
        for found, before in hooks:
            for key in [key for key, hook in before.items() if _is_of_deepspeed(hook)]:
                del found[key]
        yield
    finally:
        for found, before in hooks:
            found.clear()
            found.update(before)  # in their order
        for name in names:
            delattr(coordinator, name)


def _is_of_deepspeed(hook: Any) -> bool:
    """Whether ZeRO-3 has hung it on a module; what it hangs are functions that a decorator of its own has wrapped."""
    return getattr(hook, "__module__", "").startswith(("deepspeed.runtime.zero.", "deepspeed.utils.nvtx"))


def spread_unsent(module: torch.nn.Module, options: dict[str, Any]) -> None:
    """ZeRO-3: spreads a module's parameters over the processes, each of which keeps its part of what it has itself.

    `deepspeed.zero.Init` has the first process send all of them to the others before, so that they are equal: of
    parameters that are not drawn yet, nothing but traffic.

    Args:
        module: A part of a model.
        options: Of `deepspeed.zero.Init`.
    """
    from deepspeed.runtime.zero.partition_parameters import Init

    class Unsent(Init):  # type: ignore[misc]
        def _zero_init_param(self, param: Any) -> None:
            self._convert_to_deepspeed_param(param)
            param.partition()

    Unsent(module=module, **options)


@torch.no_grad()
def write_share(parameter: Any, part: Callable[[int, int], torch.Tensor]) -> None:
    """ZeRO-3: writes this process's part of a parameter.

    Args:
        parameter: Spread, and not gathered.
        part: Gives the elements start .. stop-1 of the whole parameter, flat.
    """
    share = parameter.ds_tensor
    start = share.ds_numel * torch.distributed.get_rank(parameter.ds_process_group)
    count = min(share.ds_numel, parameter.ds_numel - start)  # the last parts are padded
    if count > 0:
        share[:count].copy_(part(start, start + count))


def parameters_readable(module: torch.nn.Module, zero_stage: int) -> contextlib.AbstractContextManager[Any]:
    """Inside, parameters can be read directly on every process (ZeRO-3 gathers them)."""
    if zero_stage < 3:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(module.parameters()))  # type: ignore[no-any-return]


@contextlib.contextmanager
def gathered_in_float32(module: torch.nn.Module, zero_stage: int) -> Iterator[None]:
    """Inside, a model computes with its float32 weights.

    Under autocast ZeRO-3 gathers the weights of linear layers in 16 bits, as they are multiplied; here it does not.
    """
    from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME as NAME

    marked = [(p, getattr(p, NAME)) for p in module.parameters() if zero_stage == 3 and hasattr(p, NAME)]
    for parameter, _ in marked:
        delattr(parameter, NAME)
    try:
        yield
    finally:
        for parameter, dtype in marked:
            setattr(parameter, NAME, dtype)
