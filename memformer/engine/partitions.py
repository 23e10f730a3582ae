# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What ZeRO 1 and 2 send in a step: each gradient to the process that steps it, each weight back to all.

DeepSpeed 0.19.8 sends gradients to everybody (all_reduce), which is twice the bytes, through a buffer of
`reduce_bucket_size` numbers whatever the model's size, and weights in float32. Its optimizer keeps each group of
parameters as one flat tensor, of which every process steps an equal part. Here a rollout's gradients are put in that
order and reduce_scattered, as they are sent (memformer/engine/sent.py), and its norm is one sum for all groups.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from memformer.config.schema import Config
from memformer.engine.sent import Sent
from memformer.parallel.tensor import slice_of
from memformer.processes.topology import Mesh

_WATCHED_BY_DEEPSPEED = {"flops_profiler", "wall_clock_breakdown", "memory_breakdown"}
"""Keys of the section `deepspeed` for which it must see every forward and backward."""
_OF_REDUCTION = {"communication_data_type", "prescale_gradients", "gradient_predivide_factor", "torch_autocast"}
_OF_REDUCTION_BY_ZERO = {"reduce_scatter", "use_multi_rank_bucket_allreduce", "overlap_comm", "contiguous_gradients"}
"""Keys of the section, and of its `zero_optimization`, that say how DeepSpeed reduces gradients."""


def reduced_at_the_end(config: Config) -> bool:
    """Whether a rollout's gradients are reduced here, and DeepSpeed has no part in its segments.

    At stages 1 and 2, unless they are reduced by segment, or the section `deepspeed` asks for what only it can do.
    """
    asked = (_WATCHED_BY_DEEPSPEED | _OF_REDUCTION) & set(config.deepspeed)
    asked |= _OF_REDUCTION_BY_ZERO & set(config.deepspeed.get("zero_optimization", {}))
    return config.parallel.zero_stage in (1, 2) and config.parallel.gradient_reduction == "rollout" and not asked


class Partitions:
    """The flat groups of a ZeRO optimizer, and this process's part of each. Called by all replicas together.

    Args:
        zero: DeepSpeed's optimizer of stage 1 or 2.
        mesh: This process among all.
    """

    def __init__(self, zero: Any, mesh: Mesh) -> None:
        self._zero, self._mesh, self._axis = zero, mesh, mesh.gradients
        self._square = torch.zeros(())
        self._rounded = False

    def reduce(self) -> None:
        """Averages the gradients in `.grad` over the replicas, each in the part of the process that steps it."""
        zero = self._zero
        norms: list[torch.Tensor] = []
        for number, parameters in enumerate(zero.round_robin_bit16_groups):
            part = zero._build_compact_grad_partition_buffer(number)  # views by parameter of `flat_partition`, float32
            self._scatter(number, part.flat_partition)
            for parameter in parameters:
                parameter.grad = None
            pieces = [piece for piece in part if not getattr(piece, "_zero_padding", False)]
            here = zip(pieces, zero.params_in_partition[number], strict=True)
            # What tensor parallelism does not cut counts on the first of its processes.
            counted = [piece for piece, p in here if self._mesh.tensor.rank == 0 or slice_of(p) is not None]
            norms += torch._foreach_norm(counted) if counted else []
            if zero.cpu_offload:
                zero.single_partition_of_fp32_groups[number].grad.copy_(part.flat_partition)
            else:
                zero.averaged_gradients[number] = part
        device = zero.bit16_groups_flat[0].device
        self._square = torch.stack(norms).square().sum() if norms else torch.zeros((), device=device)

    def _scatter(self, number: int, out: torch.Tensor) -> None:
        """Sends a group's gradients to their owners, so many at a time.

        Args:
            number: Of the group.
            out: float32 zeros, [elements of a part], which get the average of this process's part.
        """
        zero, ranks = self._zero, self._axis.size
        dtype = self._sent(number).gradients
        found = [
            (parameter.grad.reshape(-1), offset)
            for parameter, offset in zip(
                zero.round_robin_bit16_groups[number], zero.round_robin_bit16_offsets[number], strict=True
            )
            if parameter.grad is not None
        ]
        if found:
            torch._foreach_div_([gradient for gradient, _ in found], ranks)
        for start in range(0, len(out), most := max(1, zero.reduce_bucket_size // ranks)):
            stop = min(start + most, len(out))
            # [ranks, stop - start]: of each process's part the same stretch; zeros are what has no gradient.
            bucket = out[None, start:stop] if ranks == 1 else out.new_zeros(ranks, stop - start, dtype=dtype)
            targets, sources = [], []
            for gradient, offset in found:
                for rank in range(offset // len(out), -(-(offset + len(gradient)) // len(out))):
                    begin = rank * len(out) + start  # of the stretch, in the flat group
                    low, high = max(offset, begin), min(offset + len(gradient), begin + stop - start)
                    if low < high:
                        targets.append(bucket[rank, low - begin : high - begin])
                        sources.append(gradient[low - offset : high - offset])
            if targets:
                torch._foreach_copy_(targets, sources)
            if ranks > 1:
                own = bucket.new_empty(stop - start)
                dist.reduce_scatter_tensor(own, bucket.view(-1), group=self._axis.group)
                out[start:stop].copy_(own)
            del bucket, targets  # before the next one is made

    def norm(self) -> torch.Tensor:
        """Global L2 norm of what `reduce` made, of the whole model; a scalar on the device."""
        return self._mesh.replica.sum(self._axis.sum(self._square)).sqrt()

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Inside, a step of DeepSpeed's ends with the weights being sent as they are used."""
        from deepspeed.runtime.zero import stage_1_and_2

        gather = stage_1_and_2.all_gather_dp_groups
        stage_1_and_2.all_gather_dp_groups = lambda **_: self._gather()
        try:
            yield
        finally:
            stage_1_and_2.all_gather_dp_groups = gather

    def _gather(self) -> None:
        """All processes get all weights, equal to the last bit: the owners' are rounded where the others' are."""
        for number, flat in enumerate(self._zero.bit16_groups_flat if self._axis.size > 1 else ()):
            own, dtype = self._own(number), self._sent(number).weights
            if dtype == flat.dtype:
                dist.all_gather_into_tensor(flat, own, group=self._axis.group)
                continue
            sent = torch.empty_like(flat, dtype=dtype)
            dist.all_gather_into_tensor(sent, own.to(dtype), group=self._axis.group)
            flat.copy_(sent)
            self._rounded = True

    @torch.no_grad()
    def widen(self) -> None:
        """All processes get the float32 weights of what was sent in 16 bits, once after a step."""
        for number, flat in enumerate(self._zero.bit16_groups_flat if self._rounded else ()):
            if self._sent(number).weights != flat.dtype:
                own = self._own(number)
                own.copy_(self._zero.single_partition_of_fp32_groups[number])
                dist.all_gather_into_tensor(flat, own, group=self._axis.group)
        self._rounded = False

    def _own(self, number: int) -> torch.Tensor:
        """This process's part of a group's weights, a view."""
        own: torch.Tensor = self._zero.parallel_partitioned_bit16_groups[number][self._axis.rank]
        return own

    def _sent(self, number: int) -> Sent:
        sent: Sent = self._zero.optimizer.param_groups[number]["sent"]
        return sent
