# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Memformer`: encoder with memory reader, memory writer, decoder, and the two calls on a segment.

Shapes: B lanes, S tokens a segment, K slots, D width, V vocabulary. One segment costs one of two calls:
`advance` computes the next memory only (encoder and writer), `forward` also decodes and scores the targets.
"""

from typing import Any, Literal

import torch
from torch import nn

from memformer.models.construction import Construction
from memformer.models.memformer import computation
from memformer.models.memformer.config import MemformerConfig
from memformer.models.memformer.initialise import initialise
from memformer.models.memformer.layers import Attention, FeedForward, Norm, Rotary, as_multiplied
from memformer.models.memformer.memory import BiasedMemoryNormalisation, MemoryReader, MemoryWriter
from memformer.models.scoring import Head, of_targets, scored_targets
from memformer.replay.random_state import drawn
from memformer.replay.segment import Segment

SLOT_BIAS = "forget.bias"


class Dropout(nn.Dropout):
    """Dropout that draws by segment where several are computed as one batch (`replay.random_state.drawn`)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ...] -> the same."""
        return drawn(super().forward, x) if self.p and self.training else x


class EncoderLayer(nn.Module):
    """LN, bidirectional self-attention, +; LN, memory reader, +; LN, feed-forward, +."""

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.self_norm = Norm(config.d_model, config.norm_epsilon)
        self.self_attention = Attention(config)
        self.reader: MemoryReader | None = None
        if config.num_memory_slots:
            self.read_norm = Norm(config.d_model, config.norm_epsilon)
            self.reader = MemoryReader(config)
        self.ff_norm = Norm(config.d_model, config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x_BSD: torch.Tensor, memory_BKD: torch.Tensor, mask: torch.Tensor | None, rotary: Rotary
    ) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]; the mask is [B, 1, 1, S], True at valid tokens."""
        h = as_multiplied(self.self_norm(x_BSD))
        keys_values = self.self_attention.keys_values(h, rotary)
        x_BSD = x_BSD + self.dropout(self.self_attention.attend(h, keys_values, rotary, mask))
        if self.reader is not None:
            x_BSD = x_BSD + self.dropout(self.reader(self.read_norm(x_BSD), memory_BKD))
        return x_BSD + self.dropout(self.feed_forward(self.ff_norm(x_BSD)))


class DecoderLayer(nn.Module):
    """LN, causal self-attention, +; LN, attention to the encoder's output, +; LN, feed-forward, +."""

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.self_norm = Norm(config.d_model, config.norm_epsilon)
        self.self_attention = Attention(config)
        self.cross_norm = Norm(config.d_model, config.norm_epsilon)
        self.cross_attention = Attention(config)
        self.ff_norm = Norm(config.d_model, config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)
        self.rotary_cross_attention = config.rotary_cross_attention

    def context_keys_values(self, context_BLD: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's output for this layer, each [B, H, L, E]."""
        return self.cross_attention.keys_values(context_BLD, rotary if self.rotary_cross_attention else None)

    def attend_context_and_feed(
        self,
        x_BSD: torch.Tensor,
        context: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        rotary: Rotary,
    ) -> torch.Tensor:
        """The layer's second and third branch, [B, S, D] -> [B, S, D]."""
        positions = rotary if self.rotary_cross_attention else None
        x_BSD = x_BSD + self.dropout(self.cross_attention.attend(self.cross_norm(x_BSD), context, positions, mask))
        return x_BSD + self.dropout(self.feed_forward(self.ff_norm(x_BSD)))

    def forward(
        self,
        x_BSD: torch.Tensor,
        context_BLD: torch.Tensor,
        mask: torch.Tensor | None,
        context_rotary: Rotary,
        rotary: Rotary,
        seen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]; the mask is [B, 1, 1, L], True at valid context tokens.

        `seen` says which tokens of x a query sees, [B, 1, S, S]; None: those up to its own place.
        """
        h = as_multiplied(self.self_norm(x_BSD))
        keys_values = self.self_attention.keys_values(h, rotary)
        x_BSD = x_BSD + self.dropout(self.self_attention.attend(h, keys_values, rotary, seen, causal=seen is None))
        context = self.context_keys_values(context_BLD, context_rotary)
        return self.attend_context_and_feed(x_BSD, context, mask, rotary)


class Embedding(nn.Module):
    """Token embedding times sqrt(D), so that a matrix of std D^-0.5, shared with the head, gives unit-sized inputs."""

    def __init__(self, config: MemformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        self.scale = config.d_model**0.5
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] -> [B, S, D]."""
        return self.dropout(self.tokens(tokens_BS) * self.scale)


class Memformer(nn.Module):
    """A Memformer language model (the paper's section 1).

    Args:
        config: With `vocab_size` and `start_token_id` set.
        construction: How the parts come into being; None: whole.

    Raises:
        ValueError: vocab_size or start_token_id is None.
    """

    compiled_methods = ("write",)

    def __init__(self, config: MemformerConfig, construction: Construction | None = None) -> None:
        super().__init__()
        construction = construction or Construction()
        built = construction.built
        if config.vocab_size is None or config.start_token_id is None:
            raise ValueError("vocab_size and start_token_id are None: take them from the tokenizer")
        self.config = config
        self.start_token_id = config.start_token_id
        self.embedding = built(Embedding(config, config.vocab_size))
        self.encoder = nn.ModuleList(built(EncoderLayer(config)) for _ in range(config.num_encoder_layers))
        self.encoder_norm = built(Norm(config.d_model, config.norm_epsilon))
        self.writer: MemoryWriter | None = None
        if config.num_memory_slots:
            self.writer = built(MemoryWriter(config))
            self.forget = built(BiasedMemoryNormalisation(config))
        self.decoder = nn.ModuleList(built(DecoderLayer(config)) for _ in range(config.num_decoder_layers))
        self.decoder_norm = built(Norm(config.d_model, config.norm_epsilon))
        self.head = Head(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.tokens.weight
        built(self.head)
        initialise(self, config, construction)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.encoder_norm.weight.device

    def layers(self) -> list[nn.Module]:
        """Encoder layers, then decoder layers."""
        return [*self.encoder, *self.decoder]

    def undecayed(self) -> set[str]:
        """The slot bias: it is where slots start and what they decay to, not a map."""
        return set() if self.writer is None else {SLOT_BIAS}

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """m_0 = bias / ||bias|| of every slot for each lane, [B, K, D]; differentiable."""
        if self.writer is None:
            weight = self.encoder_norm.weight
            return torch.zeros(lanes, 0, self.config.d_model, dtype=weight.dtype, device=weight.device)
        return self.forget(None, lanes)

    def self_weights(self, segment: Segment, memory_BKD: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """The writer's weight of each slot on itself and what is left of the slot, means over the heads, [B, K] each.

        The third is the memory it was read with.
        """
        if self.writer is None:
            return None
        x_BSD, mask_BS, memory_BKD = self.encode(segment, memory_BKD)
        found = computation.observe(self.writer, self.forget, memory_BKD, x_BSD, mask_BS)
        return found.weights_BHKL[..., 0].mean(dim=1), found.retained_BHK.mean(dim=1), memory_BKD

    def encode(
        self, segment: Segment, memory_BKD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Reads a segment's context with the memory.

        Returns:
            The encoder's output [B, S, D]; the mask of its valid tokens, bool [B, S], or None when all are; and the
            memory it was read with [B, K, D], which is the initial one in lanes that start a document.
        """
        memory_BKD = computation.begin(segment.reset, memory_BKD, self.initial_memory(len(segment.reset)))
        tokens_BS, mask_BS = computation.context(segment, self.start_token_id)
        x_BSD = computation.read(self.encoder, self.embedding(tokens_BS), memory_BKD, mask_BS, self.config)
        return self.encoder_norm(x_BSD), mask_BS, memory_BKD

    def write(self, memory_BKD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        """The next memory [B, K, D] from the memory a segment was read with and the encoder's output."""
        if self.writer is None:
            return memory_BKD
        return computation.write(self.writer, self.forget, memory_BKD, x_BSD, mask_BS)

    def advance(self, segment: Segment, memory_BKD: torch.Tensor) -> torch.Tensor:
        """The next memory [B, K, D] alone: encoder and writer, without decoder and head; nothing without memory."""
        if self.writer is None:
            return memory_BKD
        x_BSD, mask_BS, memory_BKD = self.encode(segment, memory_BKD)
        return self.write(memory_BKD, x_BSD, mask_BS)

    def decode(self, segment: Segment, context_BSD: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        """What the head reads for the segment's targets, [B, S, D], teacher-forced (`computation.inputs`)."""
        tokens_BN, seen = computation.inputs(segment, self.start_token_id, self.config)
        y_BND = computation.respond(self.decoder, self.embedding(tokens_BN), seen, context_BSD, mask_BS, self.config)
        return self.decoder_norm(y_BND[:, -segment.target.shape[1] :])

    def logits(
        self, segment: Segment, memory_BKD: torch.Tensor, at_2N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, S, V] of the segment's targets, or [N, V] of some (`of_targets`); the next memory [B, K, D]."""
        x_BSD, mask_BS, memory_BKD = self.encode(segment, memory_BKD)
        logits = self.head.score.whole(self.head(of_targets(self.decode(segment, x_BSD, mask_BS), at_2N)))
        return logits, self.write(memory_BKD, x_BSD, mask_BS)

    def encode_and_write(self, segment: Segment, memory_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's output [B, S, D], which `score` needs, and the next memory [B, K, D]."""
        x_BSD, mask_BS, memory_BKD = self.encode(segment, memory_BKD)
        return x_BSD, self.write(memory_BKD, x_BSD, mask_BS)

    def score(self, segment: Segment, context_BSD: torch.Tensor) -> torch.Tensor:
        """`scoring.token_losses` of the segment, [B, S], from the encoder's output."""
        _, mask_BS = computation.context(segment, self.start_token_id)
        return self.head(self.decode(segment, context_BSD, mask_BS), scored_targets(segment))

    def losses(self, segment: Segment, memory_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`scoring.token_losses` of the segment, [B, S], and the next memory [B, K, D]."""
        x_BSD, mask_BS, memory_BKD = self.encode(segment, memory_BKD)
        losses_BS = self.head(self.decode(segment, x_BSD, mask_BS), scored_targets(segment))
        return losses_BS, self.write(memory_BKD, x_BSD, mask_BS)

    def forward(
        self, segment: Segment, memory_BKD: torch.Tensor, part: Literal["whole", "encode", "score"] = "whole"
    ) -> Any:
        """Scores a segment, or does a part of it: an engine knows one forward.

        Args:
            segment: Context, targets and their lengths.
            memory_BKD: The lanes' memory before the context is read; ignored in lanes that start a document. Of the
                part "score" the encoder's output [B, S, D].
            part: "encode" is `encode_and_write`, "score" is `score`.

        Returns:
            The sum of the valid targets' negative log-likelihoods in nats, times their weights (float32 or wider,
            scalar); the number of valid targets (int64, scalar); the next memory [B, K, D]. Of a part what it returns.
        """
        if part == "encode":
            return self.encode_and_write(segment, memory_BKD)
        if part == "score":
            return self.score(segment, memory_BKD)
        losses_BS, memory_BKD = self.losses(segment, memory_BKD)
        return segment.weighted(losses_BS).sum(), segment.target_length.sum(), memory_BKD
