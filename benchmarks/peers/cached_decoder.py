# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Decoder-only peers for inference, of the same attention and feed-forward modules as the model itself.

Two caches, each in its leanest form, so that what is compared is the architecture:

* keys and values of every layer, in a buffer of fixed size that is written around: with `window` the last tokens, as
  Transformer-XL's memory of that length (a stronger form of it: the published one computes them anew); with a buffer
  for the whole document the Transformer with a KV cache.
* hidden states, as Transformer-XL is published: keys and values of the memory are computed anew for every segment.

Positions are rotary in place of Transformer-XL's relative terms, which would cost it more.

Shapes: B documents, S tokens at once, L keys, D width, H heads, E = D/H, V vocabulary.
"""

import torch
from torch import nn

from memformer import MemformerConfig
from memformer.models.memformer.layers import Attention, FeedForward, Rotary


class Layer(nn.Module):
    """LN, causal attention, +; LN, feed-forward, +."""

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(config.d_model), Attention(config)
        self.ff_norm, self.feed_forward = nn.LayerNorm(config.d_model), FeedForward(config)


class CachedDecoder(nn.Module):
    """A decoder-only Transformer of `layers` layers; sizes, vocabulary and start token from a Memformer's."""

    def __init__(self, config: MemformerConfig, layers: int) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.layers = nn.ModuleList(Layer(config) for _ in range(layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, tokens_BN: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, N, V] after each token of rows that are read at once, nothing cached.

        Args:
            tokens_BN: int64.
            mask: True where a key may be seen, bool, broadcastable to [B, H, N, N]; None: every token up to the query.
        """
        rotary = Rotary.table(0, tokens_BN.shape[1], self.config, tokens_BN.device)
        y_BND = self.embedding(tokens_BN) * self.config.d_model**0.5
        for layer in self.layers:
            h = layer.norm(y_BND)
            y_BND = y_BND + layer.attention.attend(
                h, layer.attention.keys_values(h, rotary), rotary, mask, causal=mask is None
            )
            y_BND = y_BND + layer.feed_forward(layer.ff_norm(y_BND))
        return self.head(y_BND)

    def head(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """Logits [B, S, V], with the embedding's matrix."""
        return self.norm(x_BSD) @ self.embedding.weight.T


class KeyValueReader:
    """Reads with cached keys and values.

    Args:
        model: The decoder.
        batch_size: B.
        block: Tokens S at once.
        window: Tokens before the block that are seen.
        seen: Tokens read so far; the cache is filled with random numbers, on which neither time nor memory depends.
    """

    def __init__(self, model: CachedDecoder, batch_size: int, block: int, window: int, seen: int = 0) -> None:
        config, weight = model.config, model.embedding.weight
        self.model, self.block, self.seen = model, block, seen
        self.size = window + block
        shape = (batch_size, config.num_heads, self.size, config.d_model // config.num_heads)
        options = {"dtype": weight.dtype, "device": weight.device}
        self.keys = [torch.randn(shape, **options) for _ in model.layers]
        self.values = [torch.randn(shape, **options) for _ in model.layers]
        places = torch.arange(self.size, device=weight.device)
        # Position of what lies in each place, the last ones read; those not read yet are in the future.
        self.positions = seen - 1 - (seen - 1 - places) % self.size
        self.positions = torch.where(self.positions < 0, torch.full_like(places, 1 << 40), self.positions)

    def tensors(self) -> list[torch.Tensor]:
        """The state."""
        return [*self.keys, *self.values, self.positions]

    @torch.no_grad()
    def read(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Reads a block; logits [B, S, V] after each of its tokens."""
        count = tokens_BS.shape[1]
        now = torch.arange(self.seen, self.seen + count, device=tokens_BS.device)
        # A full cache and one token: all is seen, no mask needed.
        full = count == 1 and self.seen >= self.size
        self.seen += count
        return self.step(tokens_BS, now, full)

    def step(self, tokens_BS: torch.Tensor, now: torch.Tensor, full: bool = True) -> torch.Tensor:
        """`read` of tokens at positions `now`, int64 [S]; as it is, of a full cache, it may be launched as a graph."""
        model, places = self.model, now % self.size
        self.positions[places] = now
        rotary = Rotary.at(now, model.config)
        mask = None if full else self.positions <= now[:, None]
        y_BSD = model.embedding(tokens_BS) * model.config.d_model**0.5
        for layer, keys, values in zip(model.layers, self.keys, self.values, strict=True):
            h = layer.norm(y_BSD)
            keys[:, :, places], values[:, :, places] = layer.attention.keys_values(h, rotary)
            y_BSD = y_BSD + layer.attention.attend(h, (keys, values), rotary, mask)
            y_BSD = y_BSD + layer.feed_forward(layer.ff_norm(y_BSD))
        return model.head(y_BSD)


class HiddenStateReader:
    """Reads with cached hidden states, the input of each layer for the last `window` tokens: Transformer-XL."""

    def __init__(self, model: CachedDecoder, batch_size: int, block: int, window: int, seen: int = 0) -> None:
        config, weight = model.config, model.embedding.weight
        self.model, self.block, self.window, self.seen = model, block, window, seen
        shape = (batch_size, window, config.d_model)
        self.states = [torch.randn(shape, dtype=weight.dtype, device=weight.device) for _ in model.layers]

    def tensors(self) -> list[torch.Tensor]:
        """The state."""
        return list(self.states)

    @torch.no_grad()
    def read(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Reads a block; logits [B, S, V] after each of its tokens."""
        model, count, window = self.model, tokens_BS.shape[1], self.window
        rotary = Rotary.table(0, window + count, model.config, tokens_BS.device)
        own = rotary.rows(window, window + count)
        mask = torch.ones(count, window + count, dtype=torch.bool, device=tokens_BS.device).tril(window)
        mask[:, : max(0, window - self.seen)] = False  # before the document's first token
        self.seen += count
        y_BSD = model.embedding(tokens_BS) * model.config.d_model**0.5
        for number, layer in enumerate(model.layers):
            seen = torch.cat([self.states[number], y_BSD], dim=1)
            h = layer.norm(seen)
            keys_values = layer.attention.keys_values(h, rotary)
            # The next memory takes the old one's place: at no time are there two of all layers.
            self.states[number] = seen[:, count:].clone()
            del seen
            y_BSD = y_BSD + layer.attention.attend(h[:, window:], keys_values, own, mask)
            y_BSD = y_BSD + layer.feed_forward(layer.ff_norm(y_BSD))
        return model.head(y_BSD)
