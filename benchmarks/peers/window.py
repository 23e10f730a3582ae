# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`WindowModel`: a plain decoder-only Transformer that sees the last tokens and nothing else, asked as our models are.

What it carries from segment to segment is the text itself, the last W tokens as their ids, so that `models.protocol`
holds for it: with its "memory" it sees W + S tokens, with that reset the segment's own alone.

Shapes: B documents, W tokens that are carried, S tokens of a segment, V vocabulary.
"""

import torch
from torch import nn

from benchmarks.peers.cached_decoder import CachedDecoder
from benchmarks.peers.reader import State, TruncatedReader, shifted
from memformer import MemformerConfig
from memformer.models.overlap import causal_mask
from memformer.models.scoring import of_targets
from memformer.replay import Segment


class WindowModel(nn.Module):
    """A `CachedDecoder` behind the face of a memory model. Every row begins with the start token.

    Args:
        config: Sizes, vocabulary, start token, and segment_length S.
        layers: Of the decoder.
        window: W + S, the tokens of a row.
    """

    def __init__(self, config: MemformerConfig, layers: int, window: int) -> None:
        super().__init__()
        assert config.segment_length is not None and window >= config.segment_length
        self.config, self.carried = config, window - config.segment_length
        self.decoder = CachedDecoder(config, layers)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.decoder.embedding.weight.device

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """No tokens: [lanes, W, 1] of -1."""
        return torch.full((lanes, self.carried, 1), -1.0, device=self.device)

    def advance(self, segment: Segment, memory_BW1: torch.Tensor) -> torch.Tensor:
        """The last W tokens, those of the segment included; lanes without tokens keep theirs."""
        tokens_BN = torch.cat([self._begun(segment, memory_BW1), segment.target], 1)
        places = segment.target_length[:, None] + torch.arange(self.carried, device=self.device)
        return tokens_BN.gather(1, places)[..., None].to(memory_BW1.dtype)

    def logits(
        self, segment: Segment, memory_BW1: torch.Tensor, at_2N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, S, V] of the segment's targets, or [N, V] of some (`of_targets`); the next memory [B, W, 1]."""
        before_BW, start = self._begun(segment, memory_BW1), self.config.start_token_id
        assert start is not None
        # What is not there stands in front, unseen; the start token comes right before what is.
        known_B1 = (before_BW >= 0).sum(1, keepdim=True)
        at = torch.arange(self.carried, -1, -1, device=self.device)  # tokens of the row between it and the segment
        ids_BN = torch.cat([torch.full_like(known_B1, start), before_BW, segment.target[:, :-1]], 1)
        ids_BN = ids_BN.clamp(min=0).scatter(1, self.carried - known_B1, start)
        seen_BN = torch.cat([at <= known_B1, torch.ones_like(segment.target[:, 1:], dtype=torch.bool)], 1)
        logits_BNV = self.decoder(ids_BN, causal_mask(None if bool(seen_BN.all()) else seen_BN))
        return of_targets(logits_BNV[:, self.carried :], at_2N), self.advance(segment, memory_BW1)

    def _begun(self, segment: Segment, memory_BW1: torch.Tensor) -> torch.Tensor:
        """The carried tokens, int64 [B, W], -1 where there are none; none in lanes that start a document."""
        return memory_BW1[..., 0].round().long().masked_fill(segment.reset[:, None], -1)


class WindowReader(TruncatedReader):
    """Trains a `WindowModel` on documents that fit into its window, each read at once; nothing is carried."""

    def __init__(self, module: WindowModel, name: str = "plain Transformer") -> None:
        self.module: WindowModel = module
        self.name = name

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Logits [B, S, V] of whole documents."""
        start = self.module.config.start_token_id
        assert start is not None
        return self.module.decoder(shifted(tokens_BS, None, start)), None
