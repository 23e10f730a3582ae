# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How many parameters and floating-point operations a configuration has, before any of it is built.

Counted are matrix products, a multiply-add as 2, for one full segment of one lane: S context tokens through the
encoder, S target tokens through the decoder. Attention counts all S*S (or S*K) pairs, causal or not, as the usual
definition of MFU does (Chowdhery et al., "PaLM", appendix B) and as `torch.utils.flop_counter` counts the fused
kernels. Softmax, norms and other elementwise work are left out.

Shapes: S tokens, K slots, D width, F feed-forward width, V vocabulary, T segments of a rollout.
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
    def advance(self) -> int:
        """The memory's own path, as `Memformer.advance` computes it: nothing where there is no memory to write."""
        return self.encoder + self.writer if self.writer else 0


def segment_flops(config: MemformerConfig, segment_length: int) -> SegmentFlops:
    """The forward operations of a full segment of `segment_length` tokens.

    Raises:
        ValueError: config.vocab_size is None.
    """
    s, k, d, f = segment_length, config.num_memory_slots, config.d_model, config.d_ff
    self_attention = 8 * s * d * d + 4 * s * s * d
    reader = 4 * s * d * d + 4 * k * d * d + 4 * s * k * d if k else 0
    feed_forward = 4 * s * d * f
    return SegmentFlops(
        encoder=config.num_encoder_layers * (self_attention + reader + feed_forward),
        writer=4 * k * d * d + 4 * s * d * d + 4 * k * s * d if k else 0,
        # Attention to the context costs what self-attention does: S queries, S keys.
        decoder=config.num_decoder_layers * (2 * self_attention + feed_forward),
        head=2 * s * d * _vocabulary(config),
    )


def model_flops_per_token(config: MemformerConfig, segment_length: int) -> float:
    """Operations a target token costs at least: forward, and a backward of twice that. The numerator of MFU."""
    return 3 * segment_flops(config, segment_length).forward / segment_length


def hardware_flops_per_token(
    config: MemformerConfig, segment_length: int, num_segments: int, replay: str, activation_checkpointing: str
) -> float:
    """Operations a target token really costs, recomputation included. The numerator of HFU.

    Args:
        config: The model.
        segment_length: S.
        num_segments: T of a rollout.
        replay: "mrbp" computes encoder and writer of T-1 segments twice; "bptt" computes nothing twice.
        activation_checkpointing: "full" computes every layer once more in its backward; "none" does not.
    """
    flops = segment_flops(config, segment_length)
    recomputed = 0.0
    if replay == "mrbp":
        recomputed += flops.advance * (num_segments - 1) / num_segments
    if activation_checkpointing == "full":
        recomputed += flops.encoder + flops.decoder
    return model_flops_per_token(config, segment_length) + recomputed / segment_length


def encoder_share(config: MemformerConfig, segment_length: int) -> float:
    """f, the part of one forward that the replay's first pass repeats (encoder and writer), 0 .. 1."""
    flops = segment_flops(config, segment_length)
    return flops.advance / flops.forward


def count_parameters(config: MemformerConfig) -> int:
    """Parameters of `Memformer(config)`, tied matrices counted once.

    Raises:
        ValueError: config.vocab_size is None.
    """
    k, d, f = config.num_memory_slots, config.d_model, config.d_ff
    norm, attention, feed_forward = 2 * d, 4 * d * d, 2 * d * f
    reader = norm + attention + (norm if config.memory_read_norm else 0)
    encoder_layer = 2 * norm + attention + feed_forward + (reader if k else 0)
    decoder_layer = 3 * norm + 2 * attention + feed_forward
    embeddings = _vocabulary(config) * d * (1 if config.tie_embeddings else 2)
    memory = 3 * d * d + k * d if k else 0
    return (
        embeddings
        + config.num_encoder_layers * encoder_layer
        + config.num_decoder_layers * decoder_layer
        + 2 * norm
        + memory
    )


def _vocabulary(config: MemformerConfig) -> int:
    if config.vocab_size is None:
        raise ValueError("vocab_size is None: take it from the tokenizer")
    return config.vocab_size
