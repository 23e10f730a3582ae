# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A rollout's gradients on their way to the processes that step them, at ZeRO 1 and 2, from its last backward on.

A gradient is whole in the backward of the segment that is replayed last, layer by layer from the end of the model; what
is whole is sent while that backward goes on, and given back, so that what comes lies beside no more than was there. A
stretch of every process's part goes at a time (reduce_scatter), so the parts must lie at the same depths of the model:
`through_the_model` puts parameters in such an order.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from memformer.config.schema import Config
from memformer.engine.sent import Sent
from memformer.processes.collective_log import LOG
from memformer.processes.topology import Axis

STRETCH = 2**21
"""Elements of each process's part that go at a time: 4 MiB in 16 bits, so that a ring's latency is a small part."""
UNDER_WAY = 4
"""How many stretches are at once, for their memory. Where a network does not keep up, that decides when all have come,
whether the backward waits or not."""
_LATE = "a gradient was added to after it was whole: what was sent lacks that"


def through_the_model(parameters: Sequence[nn.Parameter], parts: int) -> list[nn.Parameter]:
    """Parameters in an order in which each of so many equal parts of them all goes through the whole model.

    As far as their sizes allow: one that is larger than a part is several processes' alone.

    Args:
        parameters: In the order of the model.
        parts: Processes.
    """
    lists: list[list[nn.Parameter]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for parameter in parameters:
        least = sizes.index(min(sizes))
        lists[least].append(parameter)
        sizes[least] += parameter.numel()
    ordered, end, left = list[nn.Parameter](), 0, list(range(parts))
    mean = sum(sizes) / parts
    for number in range(1, parts + 1):
        # A part begins where the one before it ends: lists above and below the mean keep that near their beginnings.
        here = min(left, key=lambda each: abs(end + sizes[each] - number * mean))
        left.remove(here)
        end += sizes[here]
        ordered += lists[here]
    return ordered


def sent_while_it_ends(config: Config) -> bool:
    """Whether the last backward of a rollout makes each gradient whole, and tells of each once.

    Not where decoders come before encoders, nor where several processes share a rollout; nor where a layer is
    recomputed by a backward inside the backward, nor where sums in 16 bits become gradients when it has ended.
    """
    training, parallel, checkpointing = config.training, config.parallel, config.activation_checkpointing
    after = training.gradient_accumulation_dtype != "float32"
    apart = training.segments_per_decoder_batch > 1 or training.wavefront_window or parallel.segment > 1
    nested = checkpointing.mode != "none" and (checkpointing.partition_activations or checkpointing.cpu_checkpointing)
    return not after and not apart and parallel.pipeline == 1 and not nested


class _Slice(NamedTuple):
    """Elements of a parameter that go to one process.

    Attributes:
        parameter: Whose.
        start: The first of them.
        stop: The one after the last.
        rank: The process.
        at: Where they lie in the stretch.
    """

    parameter: nn.Parameter
    start: int
    stop: int
    rank: int
    at: int


class _Bucket(NamedTuple):
    """What goes at a time: a stretch of every process's part of a group.

    Attributes:
        group: Its number.
        start: First element of the stretch in a part.
        stop: The one after the last.
        slices: What lies in it.
    """

    group: int
    start: int
    stop: int
    slices: tuple[_Slice, ...]

    @property
    def parameters(self) -> set[nn.Parameter]:
        """All of which something lies in it."""
        return {each.parameter for each in self.slices}


class Reduction:
    """Averages gradients over the replicas, each in the part of the process that steps it.

    Args:
        zero: DeepSpeed's optimizer of stage 1 or 2.
        axis: The replicas.
        sent: How each group is sent.
        model: Its parameters, in the order in which a forward uses them.

    Attributes:
        waiting: What a wait for the others is inside of, given it in words.
        norms: L2 norms of the gradients that have been sent, divided by the number of replicas, float32 scalars.
    """

    def __init__(self, zero: Any, axis: Axis, sent: Sequence[Sent], model: nn.Module) -> None:
        self._zero, self._axis, self._sent = zero, axis, sent
        self.waiting: Callable[[str], contextlib.AbstractContextManager[None]] = LOG.waiting
        places = {parameter: place for place, parameter in enumerate(model.parameters())}
        buckets = [bucket for group in range(len(zero.bit16_groups)) for bucket in self._cut(group)]
        # One order for all processes, whatever each one's backward makes whole first: from the end of the model.
        self._buckets = sorted(buckets, key=lambda bucket: -min(map(places.__getitem__, bucket.parameters), default=0))
        self._of_parameter: dict[nn.Parameter, list[int]] = {}
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket.parameters:
                self._of_parameter.setdefault(parameter, []).append(number)
        self.forget()

    def forget(self) -> None:
        """Begins with a rollout of which nothing has been sent."""
        self._begun, self._missing = 0, [bucket.parameters for bucket in self._buckets]
        self._unsent = {parameter: len(own) for parameter, own in self._of_parameter.items()}
        self._under_way = deque[Any]()
        self._received: list[list[tuple[_Bucket, torch.Tensor]]] = [[] for _ in self._zero.bit16_groups]
        self.norms = dict[nn.Parameter, torch.Tensor]()

    @contextlib.contextmanager
    def from_here(self, leaves: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
        """Inside is the backward that makes gradients whole: what is whole goes on its way.

        Args:
            leaves: What autograd has in the place of a parameter, whose gradient it adds to the parameter's.
        """
        hooks = []
        for parameter in self._of_parameter:
            own: Any = parameter
            leaf: Any = leaves.get(parameter, parameter)
            hooks.append(leaf.register_post_accumulate_grad_hook(functools.partial(self._is_whole, parameter)))
            if leaf is not parameter:
                hooks.append(own.register_post_accumulate_grad_hook(self._is_added_to))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> list[Any]:
        """Sends what was not sent, and waits for all.

        Returns:
            For each group this process's part, float32, as views of its parameters.
        """
        while self._begun < len(self._buckets):
            self._send()
        while self._under_way:
            self._land()
        parts = []
        for group, received in enumerate(self._received):
            # Made when all gradients are gone: until then there is what was received, in the precision it was sent in.
            part = self._zero._build_compact_grad_partition_buffer(group)  # views by parameter of `flat_partition`
            while received:
                bucket, own = received.pop()
                part.flat_partition[bucket.start : bucket.stop].copy_(own)
            parts.append(part)
        self.forget()
        return parts

    def _cut(self, group: int) -> Iterator[_Bucket]:
        zero, ranks = self._zero, self._axis.size
        size: int = zero.partition_size[group]
        most = max(1, min(STRETCH, zero.reduce_bucket_size // ranks) if ranks > 1 else size)
        offsets = zero.round_robin_bit16_offsets[group]
        for start in range(0, size, most):
            stop, slices = min(start + most, size), []
            for parameter, offset in zip(zero.round_robin_bit16_groups[group], offsets, strict=True):
                end = offset + parameter.numel()
                for rank in range(offset // size, -(-end // size)):
                    begin = rank * size + start  # of the stretch, in the flat group
                    low, high = max(offset, begin), min(end, begin + stop - start)
                    if low < high:
                        slices.append(_Slice(parameter, low - offset, high - offset, rank, low - begin))
            yield _Bucket(group, start, stop, tuple(slices))

    def _is_whole(self, parameter: nn.Parameter, leaf: torch.Tensor) -> None:
        """Of a gradient, in the last backward."""
        for number in self._of_parameter[parameter]:
            if parameter not in self._missing[number]:
                raise RuntimeError(_LATE)
            self._missing[number].remove(parameter)
        while self._begun < len(self._buckets) and not self._missing[self._begun]:
            self._send()

    def _is_added_to(self, parameter: nn.Parameter) -> None:
        """Of a weight that a model holds in a place where its copy is not, and uses beside it."""
        if any(number < self._begun for number in self._of_parameter[parameter]):
            raise RuntimeError(_LATE)

    @torch.no_grad()
    def _send(self) -> None:
        """The next bucket goes on its way, with zeros for what has no gradient; what was sent whole is given back."""
        if len(self._under_way) == UNDER_WAY:
            self._land()
        bucket = self._buckets[self._begun]
        self._begun += 1
        ranks, length = self._axis.size, bucket.stop - bucket.start
        found = [each for each in bucket.slices if each.parameter.grad is not None]
        device = self._zero.bit16_groups_flat[bucket.group].device
        # What goes nowhere is not rounded for the way.
        dtype = self._sent[bucket.group].gradients if ranks > 1 else torch.float32
        sent = torch.zeros(ranks, length, dtype=dtype, device=device)
        if found:
            sources = [each.parameter.grad.reshape(-1)[each.start : each.stop] for each in found]  # type: ignore[union-attr]
            targets = [sent[each.rank, each.at : each.at + each.stop - each.start] for each in found]
            torch._foreach_div_(sources, ranks)
            torch._foreach_copy_(targets, sources)
            del sources
        own = sent[0]
        if ranks > 1:
            own = sent.new_empty(length)
            work = dist.reduce_scatter_tensor(own, sent.view(-1), group=self._axis.group, async_op=True)
            self._under_way.append((work, length))
        self._received[bucket.group].append((bucket, own))
        self._give_back(bucket.parameters)

    def _give_back(self, parameters: set[nn.Parameter]) -> None:
        """Gradients of which the last slice has been sent, but for their norms."""
        for parameter in parameters:
            self._unsent[parameter] -= 1
        whole = [each for each in parameters if not self._unsent[each] and each.grad is not None]
        if whole:
            gradients: list[Any] = [each.grad for each in whole]
            norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
            del gradients
            self.norms |= zip(whole, norms, strict=True)
        for parameter in whole:
            parameter.grad = None

    def _land(self) -> None:
        """What was sent first has come; the host does not wait for a GPU."""
        work, length = self._under_way.popleft()
        with self.waiting(f"reduce_scatter of {length:,} for each process"):
            work.wait()
