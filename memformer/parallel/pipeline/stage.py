# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`StagedModel`: the stages of a pipeline, which answer together as one model.

Shapes: B lanes, S tokens a segment, [K, C] a lane's memory, of which a stage reads all, or the rows of its own layers.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from memformer.models.configuration import ModelConfig
from memformer.models.looking import Figure, Looked
from memformer.models.protocol import Stage
from memformer.models.registry import stages_of
from memformer.parallel.channels import Channels, Transfer
from memformer.parallel.pipeline.split import Split, lanes_of_groups
from memformer.replay import Segment

EVALUATION = "evaluation"
"""Kind of the messages of what is computed without gradients."""


class StagedModel:
    """A model that lies on several stages, seen from one of them (`models.protocol.MemoryModel`).

    What training computes is the stage's own, and its messages are a schedule's. Where the model is asked for something
    without gradients (the memory, losses, self-weights), all stages are asked together and all get the answer.

    Args:
        stage: This process's layers.
        split: Layers by stage.
        number: This process's stage.
        channels: To the other stages.
    """

    def __init__(self, stage: Stage, split: Split, number: int, channels: Channels) -> None:
        self.stage, self.split, self.number, self.channels = stage, split, number, channels
        self.config: ModelConfig = stage.config
        stages = stages_of(self.config)
        self.memory_shape, self.width = self.config.memory_shape, stages.width(self.config)
        self.lengths = functools.partial(stages.lengths, self.config)
        self._encodes, self._decodes = len(split.encoder(number)) > 0, len(split.decoder(number)) > 0
        self._encoded_further = number < split.stages - 1 and len(split.encoder(number + 1)) > 0
        self._writes, self._last = number in split.writer_stages, number == split.stages - 1

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return self.stage.training

    @property
    def device(self) -> torch.device:
        """Where this stage computes."""
        return self._weight().device

    def train(self, mode: bool = True) -> None:
        """Switches this stage's dropout."""
        self.stage.train(mode)

    def eval(self) -> None:
        """Switches this stage's dropout off."""
        self.stage.eval()

    def layers(self) -> list[nn.Module]:
        """This stage's."""
        return self.stage.layers()

    def undecayed(self) -> set[str]:
        """Of this stage's parameters."""
        return self.stage.undecayed()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This stage's."""
        return self.stage.named_parameters()

    @torch.no_grad()
    def initial_memory(self, lanes: int) -> torch.Tensor:
        """The memory [lanes, K, C] of lanes that have read nothing, from the stages that write it, without a graph."""
        has_memory = self._writes and self.memory_shape[0] > 0
        return self.whole_memory(self.stage.initial_memory(lanes) if has_memory else None, lanes)

    @torch.no_grad()
    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The next memory [B, K, C] alone, without a graph."""
        memory = self._given(segment, memory)
        after = memory.clone()
        if self.number <= self.split.writer_stage:
            self._read("advance", segment, memory, after, self.number < self.split.writer_stage)
        return self.whole_memory(after, len(after))

    def __call__(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum of the valid targets' losses times their weights, their number, next memory [B, K, C]), no graph."""
        losses, memory = self.losses(segment, memory)
        return segment.weighted(losses).sum(), segment.target_length.sum(), memory

    @torch.no_grad()
    def losses(
        self, segment: Segment, memory: torch.Tensor, seed_part: Callable[[bool], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of each target [B, S] and the next memory [B, K, C], as of a whole model.

        Args:
            segment: The segment.
            memory: The lanes' memory before it.
            seed_part: Called before this stage's encoder layers (False) and decoder layers (True) draw random numbers;
                the lanes then stay one group, since masks depend on how many there are.
        """
        losses = torch.zeros_like(segment.target, dtype=torch.float32)
        spans = lanes_of_groups(len(memory), self.split.stages, None if seed_part is None else len(memory))
        found, after = self._pass(segment, memory, spans, [None] * len(spans), seed_part or _unseeded)
        for (start, stop), each in zip(spans, found, strict=False):  # none but on the last stage
            losses[start:stop] = each
        return self.channels.broadcast(losses, self.split.stages - 1), self.whole_memory(after, len(after))

    @torch.no_grad()
    def logits(self, segment: Segment, memory: torch.Tensor, at_2N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, vocab_size] of some targets and the next memory [B, K, C], as of a whole model.

        Args:
            segment: The segment.
            memory: The lanes' memory before it.
            at_2N: Lane and place of the targets, int64.
        """
        spans = lanes_of_groups(len(memory), self.split.stages, None)
        rows = [(start <= at_2N[0]) & (at_2N[0] < stop) for start, stop in spans]
        wanted = [
            at_2N[:, each] - at_2N.new_tensor([[start], [0]]) for each, (start, _) in zip(rows, spans, strict=True)
        ]
        found, after = self._pass(segment, memory, spans, wanted, _unseeded)
        logits = torch.zeros(at_2N.shape[1], self.config.vocab_size or 0, device=self.device)
        for each, part in zip(rows, found, strict=False):
            logits[each] = part.float()
        if len(logits):
            self.channels.broadcast(logits, self.split.stages - 1)
        return logits, self.whole_memory(after, len(after))

    @torch.no_grad()
    def self_weights(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """`MemoryModel.self_weights`; None for a model without memory, or with one of each layer's own."""
        if not self.memory_shape[0] or self.split.rows is not None:
            return None
        memory, context = self._given(segment, memory), None
        if self._encodes:
            context = self._read("read", segment, memory, memory.clone(), self._encoded_further)
        found_2BK = memory.new_zeros(2, *memory.shape[:2])
        if self._writes and context is not None:
            found_2BK.copy_(self.stage.self_weights(segment, memory, context))
        return *self.channels.broadcast(found_2BK, self.split.writer_stage).unbind(), memory

    def look(self, segment: Segment, memory: torch.Tensor) -> Looked:
        """`models.protocol.Looking`: the figures of all stages' layers, in their order; no associations."""
        own, whole = self._given(segment, memory), [(0, len(memory))]
        looked = self.stage.look(segment, own, lambda: self._pass(segment, memory, whole, [None], _unseeded)[1])
        found = {name: (figure.part.cpu(), figure.whole.cpu()) for name, figure in looked.figures.items()}
        squares = {name: figure.squares for name, figure in looked.figures.items()}
        stages = [each for each in self.channels.gather((found, squares)) if each[0]]

        def joined(name: str, which: int) -> torch.Tensor:
            return torch.cat([figures[name][which] for figures, _ in stages], 1).to(self.device)

        figures = {name: Figure(joined(name, 0), joined(name, 1), stages[0][1][name]) for name in stages[0][0]}
        return Looked(self.whole_memory(looked.memory, len(memory)), figures)

    def _pass(
        self,
        segment: Segment,
        memory: torch.Tensor,
        spans: Sequence[tuple[int, int]],
        wanted: Sequence[torch.Tensor | None],
        seed_part: Callable[[bool], None],
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Groups of lanes follow each other through the stages (a forward-only pipeline).

        Args:
            segment: The segment.
            memory: The lanes' memory before it.
            spans: First lane of each group and the one behind its last.
            wanted: Targets of each group whose logits are asked for, int64 [2, N]; None: its losses are.
            seed_part: See `losses`.

        Returns:
            Losses or logits of each group, on the last stage, elsewhere nothing; the next memory of what the stage
            writes.
        """
        memory = self._given(segment, memory)
        after = memory.clone()
        under_way: list[Transfer] = []
        found = []
        for (start, stop), at_2N in zip(spans, wanted, strict=True):
            part = segment.lanes(start, stop)
            context = None
            if self._encodes:
                seed_part(False)
                context = self._encode("read", part, memory[start:stop], after[start:stop], at_2N)
                if self._last and not self._decodes:
                    found.append(context)
                elif not self._decodes:
                    under_way.append(self.channels.send(EVALUATION, context, self.number + 1))
            if self._decodes:
                seed_part(True)
                found += self._decode(part, context, at_2N, under_way)
        for transfer in under_way:
            transfer.wait()
        return found, after

    def _given(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The memory that this stage reads of a segment: with the initial one, where one stage alone has that."""
        if self.split.rows is not None:
            return memory[:, self.split.memory(self.number)]
        return self.whole_memory(self.stage.begin(segment.reset, memory), len(memory))

    def _read(self, part: str, segment: Segment, memory: torch.Tensor, after: torch.Tensor, sent: bool) -> torch.Tensor:
        """`_encode` for all lanes at once, sent on or not; complete when it returns."""
        found = self._encode(part, segment, memory, after)
        if sent:
            self.channels.send(EVALUATION, found, self.number + 1).wait()
        return found

    def _encode(
        self,
        part: str,
        segment: Segment,
        memory: torch.Tensor,
        after: torch.Tensor,
        at_2N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What this stage's encoder layers make of a group of lanes; the memory after it goes into `after`.

        Args:
            part: "read" or "advance" (`Stage.__call__`).
            segment: The group's.
            memory: What the stage reads.
            after: Of the same shape.
            at_2N: As of `Stage.read_part`.
        """
        x = None if self.number == 0 else self._receive(segment, self.lengths(segment.target.shape[1])[0])
        x, *written = self.stage(part, segment, memory, x, None, at_2N)
        if written:
            after.copy_(written[0])
        return x

    def _decode(
        self,
        segment: Segment,
        context: torch.Tensor | None,
        at_2N: torch.Tensor | None,
        under_way: list[Transfer],
    ) -> list[torch.Tensor]:
        """A group's losses or logits, alone in a list, on the last stage; elsewhere nothing, and the stream goes on."""
        encoded, decoded = self.lengths(segment.target.shape[1])
        y = None if self.number == self.split.decoder_stage else self._receive(segment, decoded)
        if context is None:
            context = self._receive(segment, encoded)
        (y,) = self.stage.decode_part(segment, context, y, at_2N)
        if self._last:
            return [y]
        under_way += [self.channels.send(EVALUATION, each, self.number + 1) for each in (y, context)]
        return []

    def _receive(self, segment: Segment, length: int) -> torch.Tensor:
        """What a layer hands to the next, [B, length, width], from the stage before."""
        return self.channels.receive(EVALUATION, (len(segment.target), length, self.width), self.number - 1).wait()

    def whole_memory(self, own: torch.Tensor | None, lanes: int) -> torch.Tensor:
        """The memory on all stages, as messages have it, [lanes, K, C], from what each of those writes that write it.

        Args:
            own: What this stage writes; read if it does.
            lanes: Of the memory.
        """
        shared = torch.empty(lanes, *self.memory_shape, dtype=self.channels.dtype, device=self.device)
        for stage in self.split.writer_stages if shared.numel() else ():
            rows = self.split.memory(stage)
            part = shared[:, rows].contiguous()
            if stage == self.number and own is not None:
                part.copy_(own)
            shared[:, rows] = self.channels.broadcast(part, stage)
        return shared

    def _weight(self) -> torch.Tensor:
        return next(self.stage.named_parameters())[1]


def _unseeded(decoder: bool) -> None:
    """The random numbers are left as they come."""
