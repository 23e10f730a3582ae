# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Engine`: what a model that is trained by whole rollouts has in common, on one stage or on several.

What makes it exact at every ZeRO stage (DeepSpeed 0.19.8):

* Stages 1-3 must not see several backward passes as several micro-batches. At stages 1 and 2 DeepSpeed is left out of
  the segments: gradients stay local until the last backward and are reduced once (memformer/engine/reduction.py). At
  stage 3 its `coalesce_grad_reduction` does the same, and its accumulation boundary at stage 0.
* Stage 3 never clears its gradient partitions, nor any stage those it offloads: a parameter without a gradient in a
  rollout would be given the previous step's again. They are zeroed before each rollout.
* Gradients are averaged over the replicas, so the loss is divided by (targets that count, of all lanes / replicas).
"""

import abc
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from memformer.config.schema import Config
from memformer.engine.fetching import Fetching
from memformer.engine.fragments import FragmentReader
from memformer.engine.frozen import frozen_in_float32
from memformer.engine.optimizer import STORED, spread_matrices
from memformer.engine.parallelize import parallelize
from memformer.engine.parameter_state import ParameterState
from memformer.engine.partitions import Partitions, reduced_at_the_end
from memformer.engine.precision import AUTOCAST, LossScale
from memformer.engine.reduction import sent_while_it_ends
from memformer.engine.weight_copies import WeightCopies
from memformer.engine.zero import (
    ask_for_the_norm_once,
    coordinator_at_rest,
    gathered_in_float32,
    give_linear_back,
    leave_gradients_alone,
    parameters_gathered,
    parameters_readable,
    take_part_in_all_norms,
    wait_on_the_device,
    zero_kept_gradients,
)
from memformer.models.protocol import MemoryModel
from memformer.parallel.tensor import slice_of
from memformer.processes import collective_log
from memformer.processes.group import World
from memformer.processes.spans import span
from memformer.replay import Carry, Rollout, RolloutResult


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What an optimizer step did.

    Attributes:
        grad_norm: Global L2 norm of the gradient before clipping; inf or nan where it was not finite.
        applied: False when the step was skipped whole because the gradient was not finite.
        loss_scale: What the objective was multiplied by; None unless the precision is fp16.
        beside: What the step was asked to bring to the host beside.
    """

    grad_norm: float
    applied: bool
    loss_scale: float | None = None
    beside: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class LaneGroup:
    """Lanes that are replayed together (`training.lanes_per_micro_batch`), one group after another.

    Attributes:
        start: The first of them, among this process's lanes.
        stop: The one after the last.
        rollout: The rollout of these lanes.
        carry: Their state before it.
        seed: What `segment_seeds` gives each of their segments its random numbers from.
    """

    start: int
    stop: int
    rollout: Rollout
    carry: Carry
    seed: int


class Engine(abc.ABC):
    """A model in a DeepSpeed engine. Every method is called by all processes together; `make_engine` makes one.

    Args:
        model: The whole model, or what this process holds of it, equal on all that hold the same.
        config: The run.
        world: This process among all.
        precision: fp32, bf16 or fp16 (resolved).

    Attributes:
        at_segment: Called between two segments of a rollout; may raise `StepAbandoned`.
        replay_buffer_bytes: Largest size of the last rollout's replay buffer on this process.
        loss_scale: None unless the precision is fp16.
        frozen_from: The checkpoint that has the frozen parameters as they are, bit for bit; None: none is known.
    """

    def __init__(self, model: MemoryModel, config: Config, world: World, precision: str) -> None:
        self.config, self.world = config, world
        self.zero_stage = config.parallel.zero_stage
        self.deepspeed: Any = parallelize(model, config, world, precision)
        self._partitions: Partitions | None = None
        if self.zero_stage in (1, 2):
            self._partitions = Partitions(self.deepspeed.optimizer, world.mesh, self.module)
        self._plain, self._fetching = reduced_at_the_end(config), Fetching()
        self._sends_early = self._plain and world.mesh.gradients.size > 1 and sent_while_it_ends(config)
        if (partitions := self._partitions) and self._plain:
            leave_gradients_alone(self.deepspeed.optimizer, lambda: self._fetching.fetch(partitions.norm()))
        elif self.zero_stage:
            if world.mesh.pipe.size > 1:
                most = max(world.mesh.pipe.gather(len(self.deepspeed.optimizer.bit16_groups)))
                take_part_in_all_norms(self.deepspeed.optimizer, most)
            ask_for_the_norm_once(self.deepspeed.optimizer, self.zero_stage, world.mesh, self._fetching.fetch)
        if self.zero_stage == 3 and world.device.type == "cuda":
            wait_on_the_device(self.deepspeed.optimizer)
        state = self.parameter_state()
        dtype = torch.bfloat16 if precision in AUTOCAST else torch.float32
        spread_matrices(state.base, self.deepspeed.module, state, world.mesh, world.device, dtype)
        self.at_segment: Callable[[], None] = lambda: None
        self.replay_buffer_bytes = 0
        self.frozen_from: Path | None = None
        self._clock = _RolloutClock(world.device)
        if self._partitions:
            self._partitions.reduction.waiting = self._clock.waiting
        self._gradient_norms: tuple[list[str], torch.Tensor] | None = None
        self.autocast = functools.partial(
            torch.autocast, world.device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST
        )
        self.loss_scale = LossScale(config.loss_scale) if precision == "fp16" else None
        self._weight_copies: WeightCopies | None = None
        if precision in AUTOCAST and self._sums_to_the_end:
            sums = STORED[config.training.gradient_accumulation_dtype]
            self._weight_copies = WeightCopies(self.deepspeed.module, AUTOCAST[precision], sums)

    @property
    @abc.abstractmethod
    def model(self) -> MemoryModel:
        """The model, to be asked for memories and losses without gradients."""

    @abc.abstractmethod
    def rollout_backward(self, rollout: Rollout, carry: Carry, counted_tokens: float, seed: int) -> RolloutResult:
        """Accumulates one rollout's gradients and reduces them over the processes.

        Args:
            rollout: The lanes of this process's replica.
            carry: Their state before it.
            counted_tokens: Valid targets of all lanes of all replicas, or the sum of their weights (`counted_tokens`).
            seed: Seed of the rollout's random numbers; each replica, group of lanes and segment has its own stream.
        """

    @abc.abstractmethod
    def lane_groups(self, rollout: Rollout, carry: Carry, seed: int) -> list[LaneGroup]:
        """The groups of the replica's lanes that a rollout is trained in.

        Args:
            rollout: The replica's lanes.
            carry: Their state before it.
            seed: Of the rollout, as in `rollout_backward`.
        """

    def own_segments(self, groups: list[LaneGroup], turn: int) -> list[range]:
        """The segments of each group that this process computes again in a turn (`token_losses`).

        There are as many turns as processes that share a rollout. In each a group's segments are on one of them, and
        follow those of the turn before.

        Args:
            groups: Those of `lane_groups`.
            turn: From 0.
        """
        return [range(group.rollout.num_segments) for group in groups]

    def at_own_pace(self) -> contextlib.AbstractContextManager[None]:
        """Inside, this process computes the segments of its turn, be they as many as the others' or not."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def token_losses(
        self, group: LaneGroup, index: int, memory: torch.Tensor, seed_stream: Callable[[int], None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of a group's segment computed again without a graph, with the random numbers of the training step.

        Args:
            group: One of `lane_groups`.
            index: The segment's number in the rollout.
            memory: The group's memory before it, [lanes, K, C].
            seed_stream: What `segment_seeds(group.seed, ...)` gives.

        Returns:
            Loss of each target in nats, [lanes, S], 0 beyond the valid length; and the next memory.
        """

    @property
    def module(self) -> torch.nn.Module:
        """What this process computes with: the model, or one stage of it."""
        return self.deepspeed.module  # type: ignore[no-any-return]

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """m_0 for each lane, [lanes, K, C], without gradient."""
        with torch.no_grad():
            return self.model.initial_memory(lanes).clone()

    def empty_carry(self, lanes: int) -> Carry:
        """The carry of lanes that have read nothing."""
        return Carry.empty(self.initial_memory(lanes), self.config.data.segment_length)

    def parameter_state(self) -> ParameterState:
        """Weights and optimizer states as pieces that any topology can load."""
        return ParameterState(self.deepspeed, self.zero_stage, self.world.mesh)

    def load_parameters(self, saved: FragmentReader) -> None:
        """Puts saved parameters and optimizer states in place, whatever topology they were saved from.

        Raises:
            ValueError: A parameter is missing or incomplete.
        """
        self.parameter_state().load(saved)

    def step(self, learning_rate: float, beside: torch.Tensor | None = None) -> StepReport:
        """Applies the reduced gradients, or skips the step on all processes if their norm is not finite.

        Args:
            learning_rate: Of the step.
            beside: What the host is to know as well, float64 [count]; it comes in the copy of the norm.
        """
        if beside is not None:
            self._fetching.take_along(beside)
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_factor"]
        report = self._step_unsharded() if self.zero_stage == 0 else self._step_sharded()
        if self.loss_scale is not None:
            report = dataclasses.replace(report, loss_scale=self.loss_scale.value)
            self.loss_scale.update(report.applied)
        return report if beside is None else dataclasses.replace(report, beside=tuple(self._fetching.taken_along()))

    def bad_parameters(self) -> list[str]:
        """Parameters whose gradient, on this process and before the reduction, was not finite in the last rollout.

        Empty where gradients are reduced by segment: none is whole then.
        """
        if self._gradient_norms is None:
            return []
        names, norms = self._gradient_norms
        return [name for name, finite in zip(names, norms.isfinite().tolist(), strict=True) if not finite]

    def rollout_seconds(self) -> float:
        """What this process's last rollout took by itself, without the reduction that waits for the others."""
        return self._clock.seconds()

    def whole_model(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the module's float32 parameters can be read directly on every process (ZeRO gathers them)."""
        if self._partitions:
            self._partitions.widen()
        return parameters_readable(self.module, self.zero_stage)

    @contextlib.contextmanager
    def master_weights(self) -> Iterator[None]:
        """Inside, the model computes with its float32 weights, and in float32 with those stored in 16 bits."""
        if self._partitions:
            self._partitions.widen()
        with gathered_in_float32(self.module, self.zero_stage), frozen_in_float32(self.module):
            yield

    def close(self) -> None:
        """Releases the engine's hooks and buffers."""
        self.deepspeed.destroy()
        from deepspeed.utils import groups

        groups.mpu = None  # it would take this engine's grid for the next one's
        if self.zero_stage == 3:
            give_linear_back()

    def _step_sharded(self) -> StepReport:
        self.deepspeed.set_gradient_accumulation_boundary(True)
        with self._partitions.gathering() if self._partitions else contextlib.nullcontext():
            self.deepspeed.step()
        norm = float(self.deepspeed.get_global_grad_norm())
        return StepReport(norm, applied=not self.deepspeed.optimizer.overflow)

    def _step_unsharded(self) -> StepReport:
        """Stage 0's optimizer is torch's own and knows no skipped steps, so norm, check and clipping are ours."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        if self.loss_scale is not None:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], self.loss_scale.value)
        norm = self._gradient_norm(parameters)
        finite = math.isfinite(norm_value := float(self._fetching.fetch(norm)))
        if not finite:
            self.deepspeed.zero_grad()
            return StepReport(norm_value, applied=False)
        if self.config.optimizer.gradient_clipping:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optimizer.gradient_clipping, norm)
        self.deepspeed.set_gradient_accumulation_boundary(True)
        self.deepspeed.step()
        return StepReport(norm_value, applied=True)

    def _gradient_norm(self, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
        """Of the whole model: slices count on every process of a replica, replicated parameters on one."""
        mesh = self.world.mesh
        if mesh.replica.size > 1:
            parameters = [p for p in parameters if mesh.tensor.rank == 0 or slice_of(p) is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm if mesh.replica.size == 1 else mesh.replica.sum(norm.square()).sqrt()

    def _denominator(self, counted_tokens: float) -> float:
        """What a process's losses are divided by, so that the average over the replicas is the mean of all targets.

        Where no target counts all losses are 0, and so is what they are divided into.
        """
        return (counted_tokens or 1) / self.world.mesh.gradients.size

    @contextlib.contextmanager
    def _gathered(self) -> Iterator[None]:
        """What ZeRO-3 keeps gathered while a rollout is trained."""
        if self.zero_stage == 3 and self.config.parallel.zero3_gather == "rollout":
            with parameters_gathered(self.module), coordinator_at_rest(self.module, self.deepspeed.optimizer):
                yield
        else:
            yield

    @property
    def _coalesced(self) -> bool:
        """Whether ZeRO reduces gradients once, at the rollout's end."""
        return self.zero_stage > 0 and self.config.parallel.gradient_reduction == "rollout"

    @property
    def _sums_to_the_end(self) -> bool:
        """Whether gradients are whole on this process until the rollout's end, and weights in their modules all along.

        A wavefront reads weights where they lie side by side.
        """
        if self.zero_stage == 3 and self.config.parallel.zero3_gather == "segment":
            return False
        return (self.zero_stage == 0 or self._coalesced) and not self.config.training.wavefront_window

    @contextlib.contextmanager
    def _accumulation(self) -> Iterator[None]:
        """Everything inside is one accumulation of gradients."""
        if self.loss_scale is not None and self.zero_stage > 0:
            self.deepspeed.optimizer.override_loss_scale(self.loss_scale.value)
        with contextlib.ExitStack() as stack:
            zero_kept_gradients(self.deepspeed.optimizer, self.zero_stage)
            stack.enter_context(self._gathered())
            if self._plain or self.zero_stage == 0:
                self.deepspeed.optimizer.zero_grad()  # those of a rollout that was given up
            elif self._coalesced:
                stack.enter_context(self.deepspeed.coalesce_grad_reduction())
            # Autocast drops its own 16-bit copies where its outermost context ends. Inside of this one, which casts
            # nothing, those of a segment serve the whole rollout; those of pass 1 have a graph too.
            stack.enter_context(torch.autocast(self.world.device.type, enabled=False))
            with self._weight_copies.in_place() if self._weight_copies else contextlib.nullcontext():
                self._clock.start()
                yield
                self._clock.stop()
            self._look_at_gradients()
            with span("reduction"):
                stack.close()
                if self._partitions and self._plain:
                    self._partitions.reduce()
                elif self.zero_stage == 0:
                    self.deepspeed.set_gradient_accumulation_boundary(True)
                    self.deepspeed.allreduce_gradients()

    def _forward(self, *inputs: Any) -> Any:
        """The module's forward with a graph, in the run's precision."""
        with span("segment forward"):
            if self._plain:  # DeepSpeed has no part in a segment before the reduction at the rollout's end
                with self.autocast():
                    return self.module(*inputs)
            return self.deepspeed(*inputs)

    def _back_propagate(self, objective: torch.Tensor, boundary: bool) -> None:
        """Back-propagates a scalar; `boundary` is the rollout's last, in which gradients may go on their way."""
        with span("segment backward"):
            self._autograd(objective, boundary)

    def _autograd(self, objective: torch.Tensor, boundary: bool) -> None:
        if self.loss_scale is not None and (self._plain or self.zero_stage == 0):
            objective = objective * self.loss_scale.value
        if self._plain:
            early = self._partitions if self._sends_early and boundary else None
            copies = self._weight_copies
            if early:
                with early.reduction.from_here(copies.leaves if copies else {}):
                    torch.autograd.backward(objective)
            else:
                with copies.adding_together() if copies else contextlib.nullcontext():
                    torch.autograd.backward(objective)
            return
        if not self._coalesced:
            # At stage 0 they are reduced at the rollout's end, when the module has its own weights again.
            self.deepspeed.set_gradient_accumulation_boundary(boundary and self.zero_stage > 0)
            if self.zero_stage == 3:
                # It would tell two backwards apart by the forward between them, and let the second's gradients replace
                # the first's where there was none.
                self.deepspeed.optimizer.clear_backward_seen_flag()
        # The objective is divided by the global count already.
        self.deepspeed.backward(objective, scale_wrt_gas=False)

    def _unscaled(self, result: RolloutResult) -> RolloutResult:
        if self.loss_scale is None:
            return result
        return dataclasses.replace(result, memory_gradient_norms=result.memory_gradient_norms / self.loss_scale.value)

    def _look_at_gradients(self) -> None:
        """Keeps the norm of each local gradient on the device; nothing waits for it unless a step is skipped."""
        self._gradient_norms = None
        if self.zero_stage and not self._coalesced:
            return
        norms = dict(self._partitions.reduction.norms) if self._partitions else {}
        here = [p for p in self.module.parameters() if p.grad is not None]
        if here:
            gradients: list[Any] = [p.grad for p in here]
            norms |= zip(here, torch._foreach_norm(gradients, 2, dtype=torch.float32), strict=True)
        names = [(name, norms[p]) for name, p in self.module.named_parameters() if p in norms]
        if names:
            self._gradient_norms = [name for name, _ in names], torch.stack([norm for _, norm in names])


class _RolloutClock:
    """Times rollouts without what they wait for others: by the device's events on a GPU, which works behind the host's
    back."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = functools.partial(torch.cuda.Event, enable_timing=True)
        self._on_gpu, self._runs = device.type == "cuda", False
        self._seconds = self._began = self._waited = 0.0
        self._spans: list[tuple[Any, Any]] = []
        """Beginnings and ends on the GPU: first of the rollout, then of each wait in it."""

    def start(self) -> None:
        self._runs = True
        self._began, self._waited = time.perf_counter(), collective_log.LOG.seconds
        if self._on_gpu:
            self._spans = [(self._event(), self._event())]
            self._spans[0][0].record()

    def stop(self) -> None:
        self._runs = False
        self._seconds = time.perf_counter() - self._began - (collective_log.LOG.seconds - self._waited)
        if self._on_gpu:
            self._spans[0][1].record()

    @contextlib.contextmanager
    def waiting(self, words: str) -> Iterator[None]:
        """Inside, this process waits for others, and what it then does on a GPU."""
        events = [self._event(), self._event()] if self._on_gpu and self._runs else []
        if events:
            events[0].record()
        with collective_log.LOG.waiting(words):
            yield
        if events:
            events[1].record()
            self._spans.append((events[0], events[1]))

    def seconds(self) -> float:
        if not self._spans:
            return self._seconds
        end = self._spans[0][1]
        if not end.query():
            end.synchronize()
        whole, *waits = (float(start.elapsed_time(stop)) / 1000 for start, stop in self._spans)
        return whole - sum(waits)
