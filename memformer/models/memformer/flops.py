# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How many floating-point operations a segment costs, by part of the model.

Counted are matrix products, a multiply-add as 2, for one full segment of one lane: S context tokens through the
encoder, S target tokens with the overlap in front of them through the decoder. Attention counts all S*S (or S*K)
pairs, causal or not, as the usual definition of MFU does (Chowdhery et al., "PaLM", appendix B) and as
`torch.utils.flop_counter` counts the fused kernels. Softmax, norms and other elementwise work are left out.

Shapes: S tokens, N of the decoder's input, K slots, D width, F feed-forward width, V vocabulary.
"""

import dataclasses

from memformer.models.memformer.config import MemformerConfig


@dataclasses.dataclass(frozen=True)
class SegmentFlops:
    """Operations of one forward of one lane's segment, by part of the model."""

    encoder: int
    writer: int
    decoder: int
    head: int

    @property
    def forward(self) -> int:
        """The whole segment, as `Memformer.forward` computes it."""
        return self.encoder + self.writer + self.decoder + self.head

    @property
    def layers(self) -> int:
        """What layer checkpointing computes again."""
        return self.encoder + self.decoder

    @property
    def advance(self) -> int:
        """The memory's own path, as `Memformer.advance` computes it: nothing where there is no memory to write."""
        return self.encoder + self.writer if self.writer else 0


def segment_flops(config: MemformerConfig, segment_length: int) -> SegmentFlops:
    """The forward operations of a full segment of `segment_length` tokens.

    Raises:
        ValueError: config.vocab_size is None.
    """
    s, k, d, f = segment_length, config.num_memory_slots, config.d_model, config.d_ff
    n = config.decoder_length(s)
    self_attention = 8 * s * d * d + 4 * s * s * d
    reader = 4 * s * d * d + 4 * k * d * d + 4 * s * k * d if k else 0
    maps = 3 if config.block == "modern" else 2  # of a feed-forward block
    feed_forward = 2 * maps * s * d * f
    return SegmentFlops(
        encoder=config.num_encoder_layers * (self_attention + reader + feed_forward),
        writer=4 * k * d * d + 4 * s * d * d + 4 * k * s * d if k else 0,
        # Self-attention of N tokens; N queries and S keys of the context; feed-forward.
        decoder=config.num_decoder_layers
        * (8 * n * d * d + 4 * n * n * d + 4 * (n + s) * d * d + 4 * n * s * d + 2 * maps * n * d * f),
        head=2 * s * d * _vocabulary(config),
    )


def _vocabulary(config: MemformerConfig) -> int:
    if config.vocab_size is None:
        raise ValueError("vocab_size is None: take it from the tokenizer")
    return config.vocab_size
