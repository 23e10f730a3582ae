# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`RolloutExecutor`: carries out a stage's instructions for one rollout, on real tensors.

Shapes: b lanes of a micro-batch, T segments, S tokens, [K, C] the memory that the stage reads of a lane, D width.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from memformer.parallel.channels import Transfer
from memformer.parallel.pipeline import tasks
from memformer.parallel.pipeline.schedule import Agree, Compute, Receive, Release, ReplaySchedule, Send
from memformer.parallel.pipeline.stage import StagedModel
from memformer.parallel.pipeline.tasks import Message, Task
from memformer.replay import Carry, ReplayBuffer, Rollout, Segment
from memformer.replay.objectives import given, with_gradient
from memformer.run.stop_requests import StepAbandoned

if TYPE_CHECKING:
    from memformer.parallel.pipeline.deepspeed_schedule import StageSchedule


class StageEngine(Protocol):
    """What the executor needs of the engine of a stage."""

    @property
    def model(self) -> StagedModel:
        """Its place among the stages."""

    def forward(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """A part of the stage with a graph, in the run's precision."""

    def evaluate(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """The same without a graph."""

    def backward(self, objective: torch.Tensor) -> None:
        """Back-propagates a scalar into the stage's gradients, which accumulate."""


class RolloutExecutor:
    """One rollout on one stage.

    Args:
        engine: The stage's engine.
        schedule: Of the rollout.
        program: This stage's part of it.
        groups: Of each micro-batch, its lanes of the rollout and their state before it, with the memory that the stage
            reads; all else is equal on all stages.
        denominator: What the losses are divided by.
        seed_task: Called with (micro-batch, segment, whether it is the decoder's) before anything random of a task.
        at_segment: Called T - 1 times, by all processes at corresponding points; may raise `StepAbandoned`.
        make_buffer: Makes what keeps a micro-batch's memories between the passes.
    """

    def __init__(
        self,
        engine: StageEngine,
        schedule: ReplaySchedule,
        program: "StageSchedule",
        groups: list[tuple[Rollout, Carry]],
        denominator: float,
        seed_task: Callable[[int, int, bool], None],
        at_segment: Callable[[], None],
        make_buffer: Callable[[], ReplayBuffer],
    ) -> None:
        self._engine, self._schedule, self._program, self._groups = engine, schedule, program, groups
        model, layout = engine.model, schedule.layout
        self._layout, self._stage, self._channels = layout, model.number, model.channels
        self._last, self._decodes = model.number == layout.stages - 1, layout.decodes(model.number)
        self._width, self._lengths, self._denominator = model.width, model.lengths, denominator
        self._seed_task, self._at_segment = seed_task, at_segment
        self._buffers = [make_buffer() for _ in groups]
        self._received: dict[Message, Transfer] = {}
        self._sent: dict[Message, Transfer] = {}
        # By micro-batch: the memory before the next segment of pass 1, and the gradient of the one that pass 2 is at.
        self._memory: dict[int, torch.Tensor] = {}
        self._memory_gradient: dict[int, torch.Tensor] = {}
        # By (micro-batch, segment): inputs and outputs of the graphs, what the decoder takes from the encoder beside
        # it, and what it gives back.
        self._graphs: dict[tuple[str, int, int], tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]] = {}
        self._context: dict[tuple[int, int], torch.Tensor] = {}
        self._context_gradient: dict[tuple[int, int], torch.Tensor] = {}
        device, segments = groups[0][0].tokens.device, schedule.layout.segments
        self.segment_losses = torch.zeros(segments, device=device)
        self.memory_gradient_squares = torch.zeros(segments - 1, device=device)
        self.final_memories: dict[int, torch.Tensor] = {}

    def run(self) -> None:
        """Executes all instructions; the results are attributes.

        On the last stage `segment_losses` [T]; on stages that write memory `memory_gradient_squares` [T - 1], of the
        gradient with respect to the memories between the segments, and `final_memories` [b, K, C] by micro-batch.

        Raises:
            StepAbandoned: `at_segment` did, on all processes; no message is left under way.
        """
        for step in self._program.steps():
            results: dict[str, torch.Tensor] = {}
            for command in step:
                match command.instruction:
                    case Agree(number):
                        try:
                            self._at_segment()
                        except StepAbandoned:
                            self._drain(number)
                            raise
                    case Receive(message):
                        self._post(message)
                    case Release(message):
                        self._sent.pop(message).wait()
                    case Compute(task):
                        results = self._compute(task)
                    case Send(message):
                        self._send(message, results[message.kind])

    def _shape(self, message: Message) -> tuple[int, int, int]:
        rollout, carry = self._groups[message.task.micro_batch]
        lanes, _, length = rollout.tokens.shape
        if message.kind in (tasks.MEMORY, tasks.MEMORY_GRADIENT):
            return lanes, carry.memory.shape[1], carry.memory.shape[2]
        return lanes, self._lengths(length)[message.decoded], self._width

    def _post(self, message: Message) -> None:
        self._received[message] = self._channels.receive(message.kind, self._shape(message), message.source)

    def _send(self, message: Message, content: torch.Tensor) -> None:
        self._sent[message] = self._channels.send(message.kind, content, message.target)

    def _drain(self, number: int) -> None:
        """Completes the messages that an agreement left half done, so that the next ones do not take their place.

        What was sent to this stage is received; where a receive was posted for what will not be sent any more, its
        sender sends zeros.
        """
        sent: list[Message] = []
        posted: list[Message] = []
        for stage in range(self._layout.stages):
            for step in self._schedule.steps(stage):
                if Agree(number) in step:
                    break
                sent += [each.message for each in step if isinstance(each, Send)]
                posted += [each.message for each in step if isinstance(each, Receive)]
        for message in posted:
            if message.source == self._stage and message not in sent:
                self._send(message, self.segment_losses.new_zeros(self._shape(message)))
        for message in sent:
            if message.target == self._stage and message not in posted:
                self._post(message)
        for transfer in (*self._received.values(), *self._sent.values()):
            transfer.wait()

    def _compute(self, task: Task) -> dict[str, torch.Tensor]:
        """Computes a task from its messages; returns what its own messages carry, by kind."""
        i, t = task.micro_batch, task.segment
        incoming: dict[str, torch.Tensor] = {}
        for message in self._layout.incoming(self._stage, task):
            content = self._received.pop(message).wait()
            if message.kind == tasks.MEMORY_GRADIENT:
                # One from each of the other encoder stages, always added in the same order.
                self._memory_gradient[i] = self._memory_gradient[i] + content
            else:
                incoming[message.kind] = content
        compute = {
            tasks.BEGIN: self._begin,
            tasks.ADVANCE: self._advance,
            tasks.REPLAY: self._replay,
            tasks.DECODE: self._decode,
            tasks.DECODE_BACKWARD: self._decode_backward,
            tasks.REPLAY_BACKWARD: self._replay_backward,
            tasks.END: self._end,
        }
        return compute[task.kind](i, t, incoming)

    def _segment(self, i: int, t: int) -> Segment:
        rollout, carry = self._groups[i]
        return rollout.segment(t, carry)

    def _next_reset(self, i: int, t: int) -> torch.Tensor | None:
        return self._groups[i][0].resets[:, t + 1] if t < self._layout.segments - 1 else None

    def _before(self, i: int, incoming: dict[str, torch.Tensor]) -> torch.Tensor:
        """The memory before the segment that pass 1 has come to: sent, written here, or the rollout's first."""
        return incoming.get(tasks.MEMORY, self._memory.get(i, self._groups[i][1].memory))

    def _begin(self, i: int, _: int, __: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rollout, carry = self._groups[i]
        (self._memory[i],) = self._engine.evaluate("begin", rollout.resets[:, 0], carry.memory)
        return {tasks.MEMORY: self._memory[i]}

    def _advance(self, i: int, t: int, incoming: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        memory = self._before(i, incoming)
        self._buffers[i].push(memory)
        self._seed_task(i, t, False)
        reset = self._next_reset(i, t)
        stream, *after = self._engine.evaluate(
            "advance", self._segment(i, t), memory, incoming.get(tasks.STREAM), reset
        )
        results = {tasks.STREAM: stream, tasks.CONTEXT: stream}
        if after:
            self._memory[i] = results[tasks.MEMORY] = after[0]
        if self._decodes and self._schedule.is_early(Task(tasks.ADVANCE, i, t)):
            self._context[i, t] = stream
        return results

    def _replay(self, i: int, t: int, incoming: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        last = t == self._layout.segments - 1
        stored = not last and self._layout.advances(self._stage)
        inputs = {tasks.MEMORY: self._buffers[i].pop() if stored else self._before(i, incoming)}
        if tasks.STREAM in incoming:
            inputs[tasks.STREAM] = incoming[tasks.STREAM]
        inputs = {kind: tensor.detach().requires_grad_() for kind, tensor in inputs.items()}
        self._seed_task(i, t, False)
        stream, segment, reset = inputs.get(tasks.STREAM), self._segment(i, t), self._next_reset(i, t)
        output, *after = self._engine.forward("read", segment, inputs[tasks.MEMORY], stream, reset)
        if self._last and not self._decodes:
            output = self._objective(t, segment, output)
        self._graphs[tasks.REPLAY, i, t] = inputs, (output, *after)
        if last and after:
            self.final_memories[i] = after[0].detach()
        if self._decodes and not self._schedule.is_early(Task(tasks.REPLAY, i, t)):
            self._context[i, t] = output.detach()
        return {tasks.STREAM: output, tasks.CONTEXT: output}

    def _decode(self, i: int, t: int, incoming: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {tasks.CONTEXT: incoming[tasks.CONTEXT] if tasks.CONTEXT in incoming else self._context.pop((i, t))}
        if tasks.STREAM in incoming:
            inputs[tasks.STREAM] = incoming[tasks.STREAM]
        inputs = {kind: tensor.detach().requires_grad_() for kind, tensor in inputs.items()}
        self._seed_task(i, t, True)
        context, stream, segment = inputs[tasks.CONTEXT], inputs.get(tasks.STREAM), self._segment(i, t)
        outputs = self._engine.forward("decode", segment, context, stream)
        if self._last:
            outputs = (self._objective(t, segment, outputs[0]),)
        self._graphs[tasks.DECODE, i, t] = inputs, outputs
        return {tasks.CONTEXT: context, tasks.STREAM: outputs[0]}

    def _objective(self, t: int, segment: Segment, losses: torch.Tensor) -> torch.Tensor:
        """A segment's part of what is differentiated."""
        loss = segment.weighted(losses).sum()
        self.segment_losses[t] += loss.detach()
        return loss / self._denominator

    def _decode_backward(self, i: int, t: int, incoming: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs, outputs = self._graphs.pop((tasks.DECODE, i, t))
        if self._last:
            self._engine.backward(outputs[0])
        else:
            self._engine.backward(given([outputs[0]], [incoming[tasks.STREAM_GRADIENT]]))
        gradient = _gradient(inputs[tasks.CONTEXT])
        if not self._last:
            gradient = gradient + incoming[tasks.CONTEXT_GRADIENT]
        if self._layout.context(self._stage, Task(tasks.REPLAY, i, t)):
            self._context_gradient[i, t] = gradient
            return {}
        results = {tasks.CONTEXT_GRADIENT: gradient}
        if tasks.STREAM in inputs:
            results[tasks.STREAM_GRADIENT] = _gradient(inputs[tasks.STREAM])
        return results

    def _replay_backward(self, i: int, t: int, incoming: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs, (output, *after) = self._graphs.pop((tasks.REPLAY, i, t))
        # Zeros rather than nothing after the last segment: the writer has a gradient when T = 1 too.
        last = t == self._layout.segments - 1
        gradients = [torch.zeros_like(each) if last else self._gradient_of_memory(i, t + 1) for each in after]
        if self._last and not self._decodes:
            objective = with_gradient(output, after[0], gradients[0]) if after else output
        else:
            received = incoming.get(tasks.STREAM_GRADIENT, incoming.get(tasks.CONTEXT_GRADIENT))
            own = self._context_gradient.pop((i, t)) if received is None else received
            objective = given([output, *after], [own, *gradients])
        self._engine.backward(objective)
        results = {tasks.STREAM_GRADIENT: _gradient(inputs[tasks.STREAM])} if tasks.STREAM in inputs else {}
        results[tasks.MEMORY_GRADIENT] = _gradient(inputs[tasks.MEMORY])
        if after:
            self._memory_gradient[i] = results[tasks.MEMORY_GRADIENT]
        return results

    def _gradient_of_memory(self, i: int, t: int) -> torch.Tensor:
        """What all who read it pass back to the memory before segment t; its norm is reported."""
        gradient = self._memory_gradient.pop(i)
        # In lanes that start a document it goes into the initial memory, and not back to segment t - 1.
        passed = torch.where(self._groups[i][0].resets[:, t, None, None], 0, gradient)
        self.memory_gradient_squares[t - 1] += passed.float().square().sum()
        return gradient

    def _end(self, i: int, _: int, __: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rollout, carry = self._groups[i]
        outputs = self._engine.forward("begin", rollout.resets[:, 0], carry.memory)
        self._engine.backward(given(list(outputs), [self._memory_gradient.pop(i)]))
        return {}


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    """The gradient that a backward left in an input; zeros where nothing depends on it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
