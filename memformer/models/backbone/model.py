# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Backbone`: a language model of transformers with a memory, as a cell.

transformers' own modules are run by a loop of ours over embedding, positions, layers, norm and head, so that `advance`
can stop behind the last layer that the memory depends on, and each module's parameters are used where it runs (ZeRO-3).

Shapes: B lanes, S tokens a segment, L inputs of the backbone, [K, C] a lane's memory, D width, V ids of the backbone.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from memformer.models.backbone.architectures import Architecture, sliding_window
from memformer.models.backbone.associative import AssociativeMemory
from memformer.models.backbone.config import BackboneConfig
from memformer.models.backbone.lora import adapted
from memformer.models.backbone.memory import AddedMemory, LayerOutput, TokenMemory
from memformer.models.backbone.parts import Parts
from memformer.models.backbone.reading import positions, read, with_memory
from memformer.models.backbone.slots import SlotMemory
from memformer.models.construction import Construction
from memformer.models.overlap import causal_mask
from memformer.models.scoring import of_targets, scored_targets
from memformer.models.segment_cache import SegmentCache
from memformer.replay.segment import Segment

KINDS: dict[str, Any] = {"associative": AssociativeMemory, "slots": SlotMemory, "tokens": TokenMemory}


class BackboneLayer(nn.Module):
    """A layer of the backbone and what it reads from the memory.

    Args:
        block: transformers' layer.
        reader: What is added to its input; None: nothing.
        architecture: What it calls its parts.
        plan: Names of modules within it -> how transformers' tensor parallelism cuts them.
    """

    def __init__(
        self, block: nn.Module, reader: nn.Module | None, architecture: Architecture, plan: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.block, self.reader, self.architecture, self.plan = block, reader, architecture, plan

    def forward(
        self,
        x_BLD: torch.Tensor,
        memory_BKC: torch.Tensor | None,
        mask: torch.Tensor | None,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        cache: SegmentCache | None = None,
    ) -> torch.Tensor:
        """The input of the next layer, [B, L, D]; with a cache, of inputs behind those that it holds.

        Without a memory it is transformers' layer alone.
        """
        if self.reader is not None and memory_BKC is not None:
            x_BLD = x_BLD + self.reader(x_BLD, memory_BKC)
        more: dict[str, Any] = {} if cos is None else {"position_embeddings": (cos, sin)}
        if cache is not None:
            more[self.architecture.cache] = cache
        return self.block(x_BLD, attention_mask=mask, **more)


class Run(NamedTuple):
    """What a run of the layers gives.

    Attributes:
        scored: Output of the last layer that ran at the tokens that predict the targets, [B, S, D].
        memory: The next memory, [B, K, C].
    """

    scored: torch.Tensor
    memory: torch.Tensor


class Backbone(nn.Module):
    """The model; `models.protocol.MemoryModel`.

    Args:
        config: With `vocab_size` and `start_token_id` set. Weights are drawn; those of `config.pretrained` are read by
            `pretrained.weights`.
        construction: How the parts come into being; None: whole.

    Raises:
        ValueError: transformers is not installed, or refuses the sizes.
    """

    def __init__(self, config: BackboneConfig, construction: Construction | None = None) -> None:
        super().__init__()
        construction = construction or Construction()
        if config.vocab_size is None or config.start_token_id is None:
            raise ValueError("vocab_size and start_token_id are None: take them from the tokenizer")
        self.config, parts = config, Parts(config, construction)
        self.start_token_id, self.bos = config.start_token_id, config.bos
        self.embedding = parts.embedding()
        self.positions = parts.other(config.architecture.positions)
        self.embedding_dropout = parts.other(config.architecture.embedding_dropout)
        self.rotary = parts.rotary()
        self.memory: AddedMemory = KINDS[config.memory.kind](config, parts.std, construction)
        architecture, plan = config.architecture, parts.plan()
        self.stack = nn.ModuleList(
            construction.built(BackboneLayer(adapted(block, config), self.memory.reader(number), architecture, plan))
            for number, block in enumerate(parts.layers())
        )
        self.norm = parts.norm()
        self.head = parts.head(self.embedding if config.tied() else None)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.embedding.weight.device

    def layers(self) -> list[nn.Module]:
        """The layers, each with its reader."""
        return list(self.stack)

    def undecayed(self) -> set[str]:
        """Embeddings of the memory's own tokens, first slots and gates: no maps."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith("memory.") and name.endswith((".rows", ".gate.weight"))
        }

    def self_weights(self, segment: Segment, memory: torch.Tensor) -> None:
        """None: what is looked at goes by `Family.look`, with the segment that is written."""

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """The memory [lanes, K, C] of lanes that have read nothing."""
        return self.memory.initial(lanes)

    def begun(self, segment: Segment, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The memory [B, K, C] that a segment is read with: the initial one in lanes that start a document."""
        first_BKC = self.initial_memory(len(segment.reset)).to(memory_BKC.dtype)
        return torch.where(segment.reset[:, None, None], first_BKC, memory_BKC)

    def run(self, segment: Segment, memory_BKC: torch.Tensor, depth: int) -> Run:
        """Reads a segment with the memory by the first `depth` layers, which are at least the memory's own."""
        config, length = self.config, segment.target.shape[1]
        memory_BKC = self.begun(segment, memory_BKC)
        reading = read(segment, config.overlap_of(length), self.bos, config.segment_bos, self.start_token_id)
        words_BND = self.embedding(reading.tokens)
        front, behind = self.memory.front(memory_BKC), self.memory.behind(memory_BKC)
        added = [each if each is None else each.to(words_BND.dtype) for each in (front, behind)]
        x_BLD = torch.cat([each for each in (added[0], words_BND, added[1]) if each is not None], 1)
        end = x_BLD.shape[1] - config.memory.back
        scored = slice(end - length, end)

        seen_BL = with_memory(reading.seen, config.memory.front, config.memory.back)
        mask = causal_mask(seen_BL)
        x_BLD, cos, sin = self.placed(x_BLD, positions(seen_BL, x_BLD.shape[1], x_BLD.device))
        written = []
        for number, layer in enumerate(self.layers()[:depth]):
            x_BLD = layer(x_BLD, memory_BKC, mask, cos, sin)
            rows = self.memory.after(number, LayerOutput(x_BLD, memory_BKC, scored, reading.scored))
            if rows is not None:
                written.append(rows)
        next_BKC = torch.cat(written, 1).to(memory_BKC.dtype)
        next_BKC = torch.where((segment.target_length > 0)[:, None, None], next_BKC, memory_BKC)
        return Run(x_BLD[:, scored], next_BKC)

    def placed(
        self, x_BLD: torch.Tensor, at_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The first layer's input from embeddings at positions int64 [B or 1, L], and cosines and sines, if any."""
        cos = sin = None
        if self.positions is not None:
            x_BLD = x_BLD + self.positions(at_BL)
        if self.embedding_dropout is not None:
            x_BLD = self.embedding_dropout(x_BLD)
        if self.rotary is not None:
            cos, sin = self.rotary(x_BLD, position_ids=at_BL)
        return x_BLD, cos, sin

    def advance(self, segment: Segment, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The next memory [B, K, C] alone: no layer behind those that it depends on, no norm, no head."""
        return self.run(segment, memory_BKC, self.memory.depth).memory

    def logits(
        self, segment: Segment, memory_BKC: torch.Tensor, at_2N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, S, V] of the segment's targets, or [N, V] of some (`of_targets`); the next memory [B, K, C]."""
        found = self.run(segment, memory_BKC, len(self.stack))
        return self.head.score.whole(self.head(of_targets(self.norm(found.scored), at_2N))), found.memory

    @property
    def context(self) -> int:
        """See `models.protocol.Standalone`: the backbone's positions; its sliding window, where that is shorter."""
        window = sliding_window(self.config.backbone, self.config.architecture)
        return min(self.config.positions, window or self.config.positions)

    def without_memory(self, tokens_N: torch.Tensor, places_P: torch.Tensor, part: int) -> Iterator[torch.Tensor]:
        """See `models.protocol.Standalone`: what transformers' own model says, adapters included."""
        start = tokens_N.new_tensor([self.bos])
        inputs_1N = torch.cat([start, tokens_N[:-1].masked_fill(tokens_N[:-1] == self.start_token_id, self.bos)])[None]
        at_1N = positions(None, inputs_1N.shape[1], inputs_1N.device)
        x_1ND, cos, sin = self.placed(self.embedding(inputs_1N), at_1N)
        for layer in self.layers():
            x_1ND = layer(x_1ND, None, None, cos, sin)
        for some in places_P.split(part):
            yield self.head.score.whole(self.head(self.norm(x_1ND[0, some])))

    def losses(self, segment: Segment, memory_BKC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`scoring.token_losses` of the segment, [B, S], and the next memory [B, K, C]."""
        found = self.run(segment, memory_BKC, len(self.stack))
        return self.head(self.norm(found.scored), self.targets(segment)), found.memory

    def targets(self, segment: Segment) -> torch.Tensor:
        """What `scoring.Head` scores, in the backbone's ids, int64 [B, S]."""
        if self.start_token_id != self.bos:
            target = segment.target.masked_fill(segment.target == self.start_token_id, self.bos)
            segment = segment._replace(target=target)
        return scored_targets(segment)

    def forward(self, segment: Segment, memory_BKC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores a segment.

        Returns:
            The sum of the valid targets' losses in nats, times their weights; their number; the next memory [B, K, C].
        """
        losses_BS, memory_BKC = self.losses(segment, memory_BKC)
        return segment.weighted(losses_BS).sum(), segment.target_length.sum(), memory_BKC
