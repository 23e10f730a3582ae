# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`StageModel`: the layers of one pipeline stage, under the names that they have in the whole model.

Shapes: B lanes of a micro-batch, S tokens a segment, K slots, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from memformer.models.memformer import Memformer
from memformer.parallel.pipeline.channels import Channels, Transfer
from memformer.parallel.pipeline.split import Split, lanes_of_groups
from memformer.replay import Segment

EVALUATION = "evaluation"
"""Kind of the messages of what is computed without gradients."""


class StageModel(Memformer):
    """A part of a Memformer, on its way from token ids to losses.

    What training computes is `encode_part` and `decode_part`. Where a whole model is asked for something without
    gradients (`losses`, `initial_memory`, `self_weights`), all stages are asked together and all get the answer.

    The token embedding is used on up to three stages: by the encoder, by the decoder, and, tied, by the head. Stage 0
    owns it; the others have a copy, which is no parameter (`copy`): the engine adds its gradient to the owner's, and
    refreshes it after each step. So one optimizer state exists of it, it counts once in the gradient's norm, and it
    stands once in a checkpoint.

    Args:
        whole: The model, or what `keep_layers` left of it; it is taken apart, and what this stage does not hold is
            not kept.
        split: Layers by stage.
        stage: Number of this stage.
        channels: To the other stages.
    """

    def __init__(self, whole: Memformer, split: Split, stage: int, channels: Channels) -> None:
        nn.Module.__init__(self)
        # What is neither parameter nor module: configuration, start token, how losses are computed.
        for name, value in vars(whole).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self.split, self.stage, self.channels = split, stage, channels
        self.first, self.last = stage == 0, stage == split.stages - 1
        self.writes, self.responds_first = stage == split.writer_stage, stage == split.decoder_stage
        keep_layers(whole, split, stage)
        self.encoder, self.decoder = whole.encoder, whole.decoder
        if self.first or self.responds_first:
            self.embedding = whole.embedding
        self.writer = whole.writer if self.writes else None
        if self.writes:
            self.encoder_norm = whole.encoder_norm
            if whole.writer is not None:
                self.forget = whole.forget
        if self.last:
            self.decoder_norm, self.head = whole.decoder_norm, whole.head
        self.copy: torch.Tensor | None = None
        if not self.first:
            shared = whole.embedding.tokens.weight
            copy = shared.detach().clone()
            for module in list(self.modules()):
                if getattr(module, "weight", None) is shared:
                    # A buffer lies where the model lies, but is neither optimized nor saved here.
                    del module.weight
                    module.register_buffer("weight", copy, persistent=False)
                    self.copy = copy

    def encode_part(
        self,
        segment: Segment,
        memory_BKD: torch.Tensor,
        x_BSD: torch.Tensor | None,
        next_reset_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """This stage's encoder layers.

        Args:
            segment: The segment.
            memory_BKD: The memory it is read with, as `begin` gives it.
            x_BSD: What the stage before made of it; None on stage 0.
            next_reset_B: Lanes that start a document with the segment after it; None after the last one.

        Returns:
            The stream for the next stage [B, S, D]; or, on the writer's stage, the encoder's output [B, S, D] and, of
            a model with memory, the memory that the next segment is read with [B, K, D].
        """
        tokens_BS, mask_BS = self.context(segment)
        x_BSD = self.read(self.embedding(tokens_BS) if x_BSD is None else x_BSD, memory_BKD, mask_BS)
        if not self.writes:
            return (x_BSD,)
        x_BSD = self.encoder_norm(x_BSD)
        if self.writer is None:
            return (x_BSD,)
        memory_BKD = self.write(memory_BKD, x_BSD, mask_BS)
        return x_BSD, memory_BKD if next_reset_B is None else self.begin(next_reset_B, memory_BKD)

    def decode_part(
        self, segment: Segment, context_BSD: torch.Tensor, y_BSD: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """This stage's decoder layers.

        Args:
            segment: The segment.
            context_BSD: The encoder's output.
            y_BSD: What the stage before made of the decoder's input; None on the first decoder stage.

        Returns:
            The stream for the next stage [B, S, D]; on the last stage the losses [B, S] (`token_losses`).
        """
        _, mask_BS = self.context(segment)
        y_BSD = self.respond(self.embedding(self.inputs(segment)) if y_BSD is None else y_BSD, context_BSD, mask_BS)
        return (self.token_losses(self.head(self.decoder_norm(y_BSD)), segment) if self.last else y_BSD,)

    def begin(self, reset_B: torch.Tensor, memory_BKD: torch.Tensor) -> torch.Tensor:
        """`Memformer.begin`, on the writer's stage."""
        if self.writer is None:
            return memory_BKD
        initial_BKD = super().initial_memory(len(reset_B)).to(memory_BKD.dtype)
        return torch.where(reset_B[:, None, None], initial_BKD, memory_BKD)

    def forward(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """`encode_part`, `decode_part` or `begin`, in a tuple: an engine knows one forward."""
        if part == "begin":
            return (self.begin(*inputs),)
        return (self.encode_part if part == "encode" else self.decode_part)(*inputs)

    @torch.no_grad()
    def initial_memory(self, batch_size: int) -> torch.Tensor:
        """`Memformer.initial_memory`, from the writer's stage, without a graph."""
        own = super().initial_memory(batch_size).contiguous() if self.writer is not None else None
        return self._from_writer(own, batch_size)

    @torch.no_grad()
    def losses(
        self, segment: Segment, memory_BKD: torch.Tensor, seed_part: Callable[[bool], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`Memformer.losses`; groups of lanes follow each other through the stages (a forward-only pipeline).

        Args:
            segment: The segment.
            memory_BKD: The lanes' memory before it.
            seed_part: Called before this stage's encoder layers (False) and decoder layers (True) draw random numbers;
                the lanes then stay one group, since masks depend on how many there are.
        """
        losses = torch.zeros_like(segment.target, dtype=torch.float32)
        memory_BKD = self._from_writer(self.begin(segment.reset, memory_BKD), len(memory_BKD))
        after = memory_BKD.clone()
        under_way: list[Transfer] = []
        size = None if seed_part is None else len(memory_BKD)
        seed_part = seed_part or _unseeded
        for start, stop in lanes_of_groups(len(memory_BKD), self.split.stages, size):
            part = segment.lanes(start, stop)
            context = None
            if self.encoder:
                seed_part(False)
                context = self._encode(part, memory_BKD[start:stop], after[start:stop], under_way)
                if self.writes and not self.decoder:
                    under_way.append(self.channels.send(EVALUATION, context, self.stage + 1))
            if self.decoder:
                seed_part(True)
                losses[start:stop] = self._decode(part, context, under_way)
        for transfer in under_way:
            transfer.wait()
        self.channels.broadcast(losses, self.split.stages - 1)
        return losses, self._from_writer(after, len(after))

    @torch.no_grad()
    def self_weights(self, segment: Segment, memory_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`Memformer.self_weights`."""
        if not self.config.num_memory_slots:
            return None
        memory_BKD = self._from_writer(self.begin(segment.reset, memory_BKD), len(memory_BKD))
        own_BK = memory_BKD.new_zeros(memory_BKD.shape[:2])
        under_way: list[Transfer] = []
        if self.encoder:
            context = self._encode(segment, memory_BKD, memory_BKD.clone(), under_way)
            if self.writer is not None:
                own_BK.copy_(self.writer.weight_on_itself(memory_BKD, context, self.context(segment)[1]))
        for transfer in under_way:
            transfer.wait()
        return self.channels.broadcast(own_BK, self.split.writer_stage), memory_BKD

    def _encode(
        self, segment: Segment, memory: torch.Tensor, after: torch.Tensor, under_way: list[Transfer]
    ) -> torch.Tensor:
        """The encoder's output of a group of lanes, on the writer's stage; the memory after it goes into `after`."""
        x = None if self.first else self._receive(len(memory), self.stage - 1, segment)
        x, *written = self.encode_part(segment, memory, x)
        if written:
            after.copy_(written[0])
        if not self.writes:
            under_way.append(self.channels.send(EVALUATION, x, self.stage + 1))
        return x

    def _decode(self, segment: Segment, context: torch.Tensor | None, under_way: list[Transfer]) -> torch.Tensor:
        """The losses of a group of lanes on the last stage; elsewhere zeros, and the stream goes on."""
        y = None if self.responds_first else self._receive(len(segment.target), self.stage - 1, segment)
        if context is None:
            context = self._receive(len(segment.target), self.stage - 1, segment)
        (y,) = self.decode_part(segment, context, y)
        if self.last:
            return y
        under_way += [self.channels.send(EVALUATION, each, self.stage + 1) for each in (y, context)]
        return segment.target.new_zeros(segment.target.shape, dtype=torch.float32)

    def _receive(self, lanes: int, source: int, segment: Segment) -> torch.Tensor:
        shape = (lanes, segment.target.shape[1], self.config.d_model)
        return self.channels.receive(EVALUATION, shape, source).wait()

    def _from_writer(self, memory: torch.Tensor | None, lanes: int) -> torch.Tensor:
        """The writer's stage's memory on all stages, in the weights' dtype, [lanes, K, D]."""
        weight = next(self.parameters())
        shared = weight.new_empty(lanes, self.config.num_memory_slots, self.config.d_model)
        if self.writes and memory is not None:
            shared.copy_(memory)
        return self.channels.broadcast(shared, self.split.writer_stage) if shared.numel() else shared


def _unseeded(decoder: bool) -> None:
    """The random numbers are left as they come."""


def keep_layers(model: Memformer, split: Split, stage: int) -> None:
    """Drops the layers of other stages; the numbers of those that stay remain part of their names."""
    model.encoder = _numbered(model.encoder, split.encoder(stage))
    model.decoder = _numbered(model.decoder, split.decoder(stage))


def _numbered(layers: nn.ModuleList, numbers: range) -> nn.ModuleList:
    kept, found = nn.ModuleList(), dict(layers.named_children())
    for number in numbers:
        kept.add_module(str(number), found[str(number)])
    return kept
