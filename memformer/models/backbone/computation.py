# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a whole backbone and a stage of one compute alike: a segment on its way through some layers.

Shapes: B lanes, S tokens a segment, L inputs of the backbone, [K, C] a lane's memory, D width.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from memformer.models.backbone.architectures import Architecture
from memformer.models.backbone.config import BackboneConfig
from memformer.models.backbone.memory import LayerOutput
from memformer.models.backbone.reading import positions, read, with_memory
from memformer.models.overlap import causal_mask
from memformer.models.scoring import scored_targets
from memformer.models.segment_cache import SegmentCache
from memformer.replay.segment import Segment


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


def _is_trained(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


class Passed(NamedTuple):
    """What layers make of a segment.

    Attributes:
        x: Output of the last one that ran, [B, L, D].
        scored: Which of its L predict the targets.
        memory: The next memory of all layers here, [B, K, C].
    """

    x: torch.Tensor
    scored: slice
    memory: torch.Tensor


class BackbonePart(nn.Module):
    """Layers of a backbone, all of them or those of a stage, with what is on their way.

    Args:
        config: The whole model.

    Attributes:
        embedding: The token embedding; with it the first layer is here.
        positions: The embedding of absolute positions; None: there is none here.
        embedding_dropout: The dropout behind the embeddings; None: there is none here.
        rotary: (input, position_ids) -> cosines and sines; None: there are no rotary positions.
        memory: What is added (`memory.AddedMemory`); of the layers here.
        stack: The layers, named by their number in the whole model.

    Raises:
        ValueError: The configuration is not complete.
    """

    embedding: nn.Embedding
    positions: nn.Module | None
    embedding_dropout: nn.Module | None
    rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None
    memory: Any  # an AddedMemory; a stage's is an AssociativeMemory, cut
    stack: nn.ModuleList

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.vocab_size is None or config.start_token_id is None:
            raise ValueError("vocab_size and start_token_id are None: take them from the tokenizer")
        self.config = config
        self.start_token_id, self.bos = config.start_token_id, config.bos

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

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """The memory [lanes, K, C] of lanes that have read nothing."""
        return self.memory.initial(lanes)

    def begun(self, segment: Segment, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The memory [B, K, C] that a segment is read with: the initial one in lanes that start a document."""
        first_BKC = self.initial_memory(len(segment.reset)).to(memory_BKC.dtype)
        return torch.where(segment.reset[:, None, None], first_BKC, memory_BKC)

    def through(
        self, segment: Segment, memory_BKC: torch.Tensor, depth: int, x_BLD: torch.Tensor | None = None
    ) -> Passed:
        """Reads a segment with the memory by the layers here that are among the first `depth` of the whole model.

        Args:
            segment: The segment.
            memory_BKC: The memory before it, of all layers here.
            depth: At least up to the last layer here that writes.
            x_BLD: What the layers before made of the segment; None: it begins here.
        """
        config, length = self.config, segment.target.shape[1]
        if memory_BKC.shape[1]:  # not of a stage behind the last memory
            memory_BKC = self.begun(segment, memory_BKC)
        reading = read(segment, config.overlap_of(length), self.bos, config.segment_bos, self.start_token_id)
        if x_BLD is None:
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
        for name, layer in self.stack.named_children():
            if int(name) < depth:
                read_BKC = memory_BKC
                if layer.reader is None and memory_BKC.requires_grad and not _is_trained(layer):
                    # It has no gradient to give: computed again with one in its inputs, it would be asked for some.
                    read_BKC = memory_BKC.detach()
                x_BLD = layer(x_BLD, read_BKC, mask, cos, sin)
                rows = self.memory.after(int(name), LayerOutput(x_BLD, memory_BKC, scored, reading.scored))
                if rows is not None:
                    written.append(rows)
        if not written:
            return Passed(x_BLD, scored, memory_BKC)
        next_BKC = torch.cat(written, 1).to(memory_BKC.dtype)
        next_BKC = torch.where((segment.target_length > 0)[:, None, None], next_BKC, memory_BKC)
        return Passed(x_BLD, scored, next_BKC)

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

    def targets(self, segment: Segment) -> torch.Tensor:
        """What `scoring.Head` scores, in the backbone's ids, int64 [B, S]."""
        if self.start_token_id != self.bos:
            target = segment.target.masked_fill(segment.target == self.start_token_id, self.bos)
            segment = segment._replace(target=target)
        return scored_targets(segment)
