# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemformerStage`: the modules of one pipeline stage, under the names that they have in the whole model.

It computes, and knows nothing of the other stages but that they are there: who sends what to whom is
`memformer/parallel/pipeline`'s. Shapes: B lanes of a micro-batch, S tokens a segment, K slots, D width.
"""

from typing import Any

import torch
from torch import nn

from memformer.models.memformer import computation
from memformer.models.memformer.memory import MemoryWriter
from memformer.models.memformer.model import SLOT_BIAS, Memformer
from memformer.models.scoring import of_targets, scored_targets
from memformer.models.staging import numbered, replaced_by_copy
from memformer.replay.segment import Segment


class MemformerStage(nn.Module):
    """A part of a Memformer, on its way from token ids to losses (`models.protocol.Stage`).

    The embedding is with the first encoder layer, the writer with the last; the decoder's embedding with its first
    layer, the head with its last. So the token embedding is used on up to three stages: by the encoder, by the decoder,
    and, tied, by the head. Stage 0 owns it (`shared`); the others have a copy, which is no parameter (`copy`): an
    engine adds its gradient to the owner's, and refreshes it after each step. So one optimizer state exists of it, it
    counts once in the gradient's norm, and it stands once in a checkpoint.

    Args:
        whole: The model, or what is left of it once the layers of other stages are dropped; it is taken apart.
        encoder: Numbers of the stage's encoder layers.
        decoder: Numbers of its decoder layers.
    """

    def __init__(self, whole: Memformer, encoder: range, decoder: range) -> None:
        super().__init__()
        self.config, self.start_token_id = whole.config, whole.start_token_id
        self.first = 0 in encoder
        self.writes = self.config.num_encoder_layers - 1 in encoder
        self.scores = self.config.num_decoder_layers - 1 in decoder
        self.encoder, self.decoder = numbered(whole.encoder, encoder), numbered(whole.decoder, decoder)
        if self.first or 0 in decoder:
            self.embedding = whole.embedding
        self.writer: MemoryWriter | None = whole.writer if self.writes else None
        if self.writes:
            self.encoder_norm = whole.encoder_norm
        if self.writer is not None:
            self.forget = whole.forget
        if self.scores:
            self.decoder_norm, self.head = whole.decoder_norm, whole.head
        own = whole.embedding.tokens.weight
        self.copy: torch.Tensor | None = None if self.first else replaced_by_copy(self, own)

    @property
    def shared(self) -> torch.Tensor | None:
        """The token embedding [V, D], on stage 0, which owns it."""
        return self.embedding.tokens.weight if self.first else None

    def layers(self) -> list[nn.Module]:
        """Encoder layers, then decoder layers."""
        return [*self.encoder, *self.decoder]

    def undecayed(self) -> set[str]:
        """`Memformer.undecayed`, of what is here."""
        return set() if self.writer is None else {SLOT_BIAS}

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """`Memformer.initial_memory`, [B, K, D], on the writer's stage."""
        return self.forget(None, lanes)

    def begin(self, reset_B: torch.Tensor, memory_BKD: torch.Tensor) -> torch.Tensor:
        """The memory [B, K, D] that a segment is read with, on the writer's stage; elsewhere the one that is given."""
        if self.writer is None:
            return memory_BKD
        return computation.begin(reset_B, memory_BKD, self.initial_memory(len(reset_B)))

    def read_part(
        self,
        segment: Segment,
        memory_BKD: torch.Tensor,
        x_BSD: torch.Tensor | None,
        next_reset_B: torch.Tensor | None = None,
        at_2N: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """This stage's encoder layers, all of which pass 1 needs too.

        Args:
            segment: The segment.
            memory_BKD: The memory it is read with, as `begin` gives it.
            x_BSD: What the stage before made of it; None on stage 0.
            next_reset_B: Lanes that start a document with the segment after it; None after the last one.
            at_2N: Not asked for: the decoder scores.

        Returns:
            The stream for the next stage [B, S, D]; or, on the writer's stage, the encoder's output [B, S, D] and, of
            a model with memory, the memory that the next segment is read with [B, K, D].
        """
        tokens_BS, mask_BS = computation.context(segment, self.start_token_id)
        x_BSD = self.embedding(tokens_BS) if x_BSD is None else x_BSD
        x_BSD = computation.read(self.encoder, x_BSD, memory_BKD, mask_BS, self.config)
        if not self.writes:
            return (x_BSD,)
        x_BSD = self.encoder_norm(x_BSD)
        if self.writer is None:
            return (x_BSD,)
        memory_BKD = computation.write(self.writer, self.forget, memory_BKD, x_BSD, mask_BS)
        return x_BSD, memory_BKD if next_reset_B is None else self.begin(next_reset_B, memory_BKD)

    def decode_part(
        self,
        segment: Segment,
        context_BSD: torch.Tensor,
        y_BND: torch.Tensor | None,
        at_2N: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """This stage's decoder layers.

        Args:
            segment: The segment.
            context_BSD: The encoder's output.
            y_BND: What the stage before made of the decoder's input; None on the first decoder stage.
            at_2N: Lane and place of the targets whose logits are asked for, int64; None: the losses are.

        Returns:
            The stream for the next stage [B, N, D]; on the last stage the losses [B, S] (`scoring.token_losses`), or
            the logits [N, V].
        """
        _, mask_BS = computation.context(segment, self.start_token_id)
        tokens_BN, seen = computation.inputs(segment, self.start_token_id, self.config)
        y_BND = self.embedding(tokens_BN) if y_BND is None else y_BND
        y_BND = computation.respond(self.decoder, y_BND, seen, context_BSD, mask_BS, self.config)
        if not self.scores:
            return (y_BND,)
        y_BSD = self.decoder_norm(y_BND[:, -segment.target.shape[1] :])
        if at_2N is not None:
            return (self.head.score.whole(self.head(of_targets(y_BSD, at_2N))),)
        return (self.head(y_BSD, scored_targets(segment)),)

    def forward(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """`read_part`, also to advance; `decode_part`; or `begin`, in a tuple: an engine knows one forward."""
        if part == "begin":
            return (self.begin(*inputs),)
        return (self.decode_part if part == "decode" else self.read_part)(*inputs)

    def self_weights(self, segment: Segment, memory_BKD: torch.Tensor, context_BSD: torch.Tensor) -> torch.Tensor:
        """A slot's weight on itself and what is left of it, means over the heads, [2, B, K]; on the writer's stage.

        Args:
            segment: The segment.
            memory_BKD: The memory it was read with.
            context_BSD: The encoder's output.

        Raises:
            ValueError: There is no writer here.
        """
        if self.writer is None:
            raise ValueError("this stage has no writer")
        _, mask_BS = computation.context(segment, self.start_token_id)
        found = computation.observe(self.writer, self.forget, memory_BKD, context_BSD, mask_BS)
        return torch.stack([found.weights_BHKL[..., 0].mean(dim=1), found.retained_BHK.mean(dim=1)])
