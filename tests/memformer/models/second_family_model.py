# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The model of the second family (see second_family.py)."""

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.construction import Construction
from memformer.models.segment_reader import SegmentReader
from memformer.replay import Segment
from tests.memformer.models.second_family import RecurrentConfig


class Layer(nn.Module):
    """Causal self-attention and a feed-forward block, each behind a norm and added."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm, self.feed_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.mix, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.up, self.down = nn.Linear(config.width, 4 * config.width), nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        heads = self.mix(self.norm(x_BLD)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x_BLD = x_BLD + self.dropout(self.out(mixed))
        return x_BLD + self.dropout(self.down(F.gelu(self.up(self.feed_norm(x_BLD)))))


class Rows(nn.Module):
    """K learned rows for every lane; a module of its own, since ZeRO-3 gathers what a module owns."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.rows = nn.Parameter(0.5 * torch.randn(config.num_slots, config.width))

    def forward(self, lanes: int) -> torch.Tensor:
        return self.rows.expand(lanes, -1, -1)


class RecurrentDecoder(nn.Module):
    """The model; `models.protocol.MemoryModel`."""

    def __init__(self, config: RecurrentConfig, construction: Construction | None = None) -> None:
        super().__init__()
        assert config.vocab_size is not None and config.start_token_id is not None
        built = (construction or Construction()).built
        self.config, self.start_token_id = config, config.start_token_id
        embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(embedding.weight, std=config.width**-0.5)
        self.embedding = built(embedding)
        self.first, self.write = built(Rows(config)), built(Rows(config))
        self.stack = nn.ModuleList(built(Layer(config)) for _ in range(config.num_layers))
        self.norm = built(nn.LayerNorm(config.width))
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        built(self.head)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def layers(self) -> list[nn.Module]:
        return list(self.stack)

    def undecayed(self) -> set[str]:
        return {"first.rows", "write.rows"}

    def self_weights(self, segment: Segment, memory: torch.Tensor) -> None:
        return None

    def initial_memory(self, lanes: int) -> torch.Tensor:
        return self.first(lanes)

    def run(self, tokens_BS: torch.Tensor, memory_BKD: torch.Tensor, reset_B: torch.Tensor) -> torch.Tensor:
        """Outputs [B, L, D] of [memory ; start, tokens ; write tokens]."""
        first = self.initial_memory(len(tokens_BS)).to(memory_BKD.dtype)
        memory_BKD = torch.where(reset_B[:, None, None], first, memory_BKD)
        start = tokens_BS.new_full((len(tokens_BS), 1), self.start_token_id)
        words = self.embedding(torch.cat([start, tokens_BS], 1))
        x_BLD = torch.cat([memory_BKD.to(words.dtype), words, self.write(len(tokens_BS)).to(words.dtype)], 1)
        for layer in self.stack:
            x_BLD = layer(x_BLD)
        return self.norm(x_BLD)

    def next_memory(self, segment: Segment, memory: torch.Tensor, out_BLD: torch.Tensor) -> torch.Tensor:
        written = out_BLD[:, -self.config.num_slots :].to(memory.dtype)
        return torch.where((segment.target_length > 0)[:, None, None], written, memory)

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        return self.next_memory(segment, memory, self.run(segment.target, memory, segment.reset))

    def losses(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out_BLD = self.run(segment.target, memory, segment.reset)
        places = out_BLD[:, self.config.num_slots :][:, : segment.target.shape[1]]
        logits = self.head(places).float() if out_BLD.dtype != torch.float64 else self.head(places)
        valid = torch.arange(segment.target.shape[1], device=self.device) < segment.target_length[:, None]
        each = F.cross_entropy(logits.transpose(1, 2), segment.target, reduction="none")
        return torch.where(valid, each, 0), self.next_memory(segment, memory, out_BLD)

    def forward(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        losses_BS, memory = self.losses(segment, memory)
        return losses_BS.sum(), segment.target_length.sum(), memory


class RecurrentReader(SegmentReader):
    """Computes the segment again for every token: the shortest reader that is right."""

    def _decode(self, rows: list[int]) -> torch.Tensor:
        segment = self._segment(rows)
        out_RLD = self.model.run(segment.target, self._of(self._memory, rows), segment.reset)
        last_R = self.model.config.num_slots + segment.target_length
        logits_RV: torch.Tensor = self.model.head(out_RLD[torch.arange(len(rows), device=self.device), last_R])
        return logits_RV
