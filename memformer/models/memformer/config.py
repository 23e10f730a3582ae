# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemformerConfig`: every size and choice of the model, checked when it is made."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from memformer.models.configuration import MOST_LAYERS, Forgetting, ModelConfig, forgetting_of, require

EMBEDDING, HEAD = "embedding.tokens.weight", "head.weight"
"""Names of the two parameters that `tie_embeddings` makes one."""


@dataclasses.dataclass(frozen=True)
class MemformerConfig(ModelConfig):
    """Sizes and choices of a Memformer (the paper's section 1; defaults are its WikiText-103 "4+16" model).

    Raises:
        ValueError: A value is out of range; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "memformer"
    stacks: ClassVar[tuple[str, ...]] = ("num_encoder_layers", "num_decoder_layers")
    weightless: ClassVar[frozenset[str]] = ModelConfig.weightless | {"overlap", "residual_dtype"}

    num_encoder_layers: int = 4
    """Encoder layers N; each reads the memory."""
    num_decoder_layers: int = 16
    """Decoder layers M; each attends to the encoder's output, never to the memory."""
    d_model: int = 512
    """Width D of tokens and memory slots."""
    num_heads: int = 8
    """Attention heads of every layer; must divide d_model into heads of even size (rotary positions)."""
    d_ff: int = 2048
    """Hidden width of the feed-forward blocks."""
    block: Literal["paper", "modern"] = "paper"
    """What layers are made of. paper: feed-forward blocks with GELU, attention by plain products.
    modern: SwiGLU, whose third matrix makes two thirds of d_ff as many parameters (Shazeer, 2020), and each
    head's queries and keys divided by their root mean square, with a learned gain, in all attention but the memory
    writer's (after Henry et al., 2020)."""
    num_memory_slots: int = 32
    """Slots K of the memory; 0 trains without memory (the encoder still sees the previous segment)."""
    memory_temperature: float = 0.25
    """Softmax temperature of the writer; below 1 sharpens it. The paper gives no value: 0.25 is our choice."""
    memory_forgetting: Forgetting | bool = "off"
    """What is added to a written slot m before it is normalised to length 1. b: the slot's bias, a parameter, which is
    also where the slot starts.
    off: nothing (an ablation of the paper). A slot changes by what is written into it alone.
    written: (1 - a_h) b in the part of each writer head h; a_h: the head's weight of the slot on itself. What is
    overwritten moves towards b; a slot that keeps itself forgets nothing.
    paper: b, at every segment, whatever is written: what lies across b shrinks to `1/(1 + |b|)` of itself each time.
    off is the default: at 10 times the training length it recalls 96 to 100 %, written 92 to 99 %, paper 12 to 25 %
    (means of copy, recall and needle, three seeds each; docs/results/cpu-memory-copy.md and those beside it). Books
    hardly tell them apart: 5.542, 5.548 and 5.541 in segments of 16; off 5.387 and paper 5.357 in segments of 32 (three
    seeds each; docs/results/cpu-long-text.md, cpu-peers-text.md). In the few steps of `make train`, which come to no
    use of a memory, paper is 3 % better (docs/results/cpu-quickstart.md).
    true and false, as older files have them, are paper and off."""
    memory_write_threshold: float = 0.0
    """Smallest share of its part of a slot that a writer head replaces, 0 to below 1. A share below it becomes 0, which
    keeps the part exactly; one above it becomes (share - threshold) / (1 - threshold). 0, the paper's, writes every
    slot at every segment: a softmax never gives a weight of 0, and small writes add up over thousands of segments.
    With forgetting off a needle 100,000 bytes back was found in 85 % with 0.2, in 69 % with 0 (three seeds each), and
    in 98 % with 0.2 and documents that grew to 80 segments in training (three seeds); recall gained nothing (three
    seeds), nor did written (two seeds; docs/results/cpu-memory-needle.md)."""
    writer_heads: int | None = None
    """Heads of the memory writer; null: num_heads. 1 is the paper's ablation "without multi-head writing"."""
    memory_read_norm: bool = False
    """Layer-norm the slots before they are read. Not decidable from the paper; off, since slots already have
    unit length."""
    overlap: int = 0
    """Last tokens w of the previous segment that stand in front of the decoder's input, at most a segment: it reads
    them itself, beside what the encoder made of them. 0: the start token stands there in every segment, as the paper
    has it. 1 puts the last token in its place, for nothing more; more cost the decoder w - 1 tokens a segment; of 1, 8
    and 32 with segments of 32, 8 was best. No weights belong to it: a run or an export may go on with another."""
    rotary_base: float = 10000.0
    """Base of the rotary positions. The paper's V1 adds relative-position terms, which fused attention kernels
    do not take; rotary positions are relative too."""
    rotary_cross_attention: bool = True
    """Rotary positions in the decoder's attention to the encoder's output as well, the target segment following
    on from the context. The paper is silent; on, so that the decoder knows which context tokens are near."""
    dropout: float = 0.0
    """Dropout probability on embeddings and on the output of every residual branch."""
    tie_embeddings: bool = True
    """Share one matrix between the token embedding and the output head."""
    norm_epsilon: float = 1e-5
    """Epsilon of the layer norms."""
    residual_dtype: Literal["float32", "compute"] = "float32"
    """What precision bf16 keeps the residual stream and its gradient in, from layer to layer. compute: in bfloat16, as
    the products that add to it are; norms take their mean and variance in float32 either way. Elsewhere it has no
    meaning: a model whose weights are float32 computes in float32."""
    vocab_size: int | None = None
    """Token ids; null: taken from the data set's tokenizer."""
    start_token_id: int | None = None
    """Id of the start token; null: taken from the data set's tokenizer."""
    segment_length: int | None = None
    """Tokens S of a segment; null: taken from data.segment_length. Generation and evaluation read it."""

    def __post_init__(self) -> None:
        """Checks ranges and divisibility."""
        for name in ("num_encoder_layers", "num_decoder_layers", "d_model", "num_heads", "d_ff"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "set it to 1 or more")
        for name in self.stacks:
            require(getattr(self, name) <= MOST_LAYERS, name, getattr(self, name), f"set it to at most {MOST_LAYERS}")
        object.__setattr__(self, "memory_forgetting", forgetting_of(self.memory_forgetting, "memory_forgetting"))
        require(self.block in ("paper", "modern"), "block", self.block, "choose paper or modern")
        kept = self.residual_dtype
        require(kept in ("float32", "compute"), "residual_dtype", kept, "choose float32 or compute")
        require(self.num_memory_slots >= 0, "num_memory_slots", self.num_memory_slots, "set it to 0 or more")
        require(self.overlap >= 0, "overlap", self.overlap, "set it to 0 or more")
        require(self.memory_temperature > 0, "memory_temperature", self.memory_temperature, "set it above 0")
        threshold = self.memory_write_threshold
        require(0 <= threshold < 1, "memory_write_threshold", threshold, "set it to at least 0 and below 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "set it to at least 0 and below 1")
        require(
            self.d_model % (2 * self.num_heads) == 0,
            "num_heads",
            self.num_heads,
            f"choose a divisor of d_model/2 = {self.d_model / 2:g}, so that heads have an even size",
        )
        heads = self.effective_writer_heads
        require(
            heads >= 1 and self.d_model % heads == 0,
            "writer_heads",
            heads,
            f"choose a divisor of d_model {self.d_model}",
        )
        for name in ("vocab_size", "segment_length"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "set it to 1 or more, or leave it out")
        if self.start_token_id is not None and self.vocab_size is not None:
            require(
                0 <= self.start_token_id < self.vocab_size,
                "start_token_id",
                self.start_token_id,
                f"choose an id below vocab_size {self.vocab_size}",
            )

    @property
    def effective_writer_heads(self) -> int:
        """The writer's heads with the default filled in."""
        return self.num_heads if self.writer_heads is None else self.writer_heads

    @property
    def memory_shape(self) -> tuple[int, int]:
        """[K, D]: slots of the width of tokens."""
        return self.num_memory_slots, self.d_model

    def advanced_counts(self) -> dict[str, int]:
        """The encoder's layers alone: the memory needs no decoder."""
        return {"num_encoder_layers": self.num_encoder_layers, "num_decoder_layers": 0}

    def prefix_length(self, segment_length: int) -> int:
        """Tokens P in front of the targets in the decoder's input: the overlap, or the start token."""
        return max(1, min(self.overlap, segment_length))

    def decoder_length(self, segment_length: int) -> int:
        """Tokens N of the decoder's input: those in front, and all targets but the last."""
        return self.prefix_length(segment_length) + segment_length - 1

    def summary(self) -> str:
        """Layers, width and slots."""
        return (
            f"{self.num_encoder_layers}+{self.num_decoder_layers} layers, width {self.d_model}, "
            f"{self.num_memory_slots} memory slots"
        )

    def rows(self) -> dict[str, str]:
        """Layers, width and slots."""
        return {
            "layers": f"{self.num_encoder_layers} encoder, {self.num_decoder_layers} decoder",
            "width": f"{self.d_model:,} ({self.num_heads} heads, feed-forward {self.d_ff:,})",
            "memory": f"{self.num_memory_slots} slots",
        }

    def tied(self) -> Mapping[str, str]:
        """The head is the token embedding, where `tie_embeddings` says so."""
        return {HEAD: EMBEDDING} if self.tie_embeddings else {}
