# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What others wrap around a pretrained decoder, as benchmark code on transformers' own model: RMT and ARMT.

    RMT    Bulatov et al., 2022: embeddings of the memory before and behind the tokens of a segment; the outputs of the
           latter are the next memory
    ARMT   Rodkin et al., 2024: memory tokens behind the segment are written into a matrix for every layer, with DPFP-3
           keys and a normaliser; states live in the layers' wrappers

Both run the segments one after another and back-propagate through all of them, as their public code does with its
truncation off. A segment predicts its own tokens from the first on, the first from a start token.

Shapes: B lanes, T segments, S tokens, K memory tokens, D width, P features of a key.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.backbone.config import FEATURES

EPSILON = 1e-5


class RMT(nn.Module):
    """A recurrent memory transformer around a causal language model of transformers."""

    def __init__(self, base: Any, tokens: int) -> None:
        super().__init__()
        self.base, self.count = base, tokens
        embedded = base.get_input_embeddings().weight
        self.memory = nn.Parameter(torch.randn(tokens, embedded.shape[1]) * embedded.detach().std())

    def forward(self, inputs_BTS: torch.Tensor, targets_BTS: torch.Tensor) -> torch.Tensor:
        """Mean loss of a rollout."""
        memory_BKD, losses = self.memory.expand(len(inputs_BTS), -1, -1), []
        for inputs_BS, targets_BS in zip(inputs_BTS.unbind(1), targets_BTS.unbind(1), strict=True):
            words_BSD = self.base.get_input_embeddings()(inputs_BS)
            x_BLD = torch.cat([memory_BKD, words_BSD, memory_BKD], 1)
            h_BLD = self.base.base_model(inputs_embeds=x_BLD, use_cache=False).last_hidden_state
            memory_BKD = h_BLD[:, -self.count :]
            logits = self.base.get_output_embeddings()(h_BLD[:, self.count : -self.count])
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets_BS.flatten()))
        return torch.stack(losses).mean()


def dpfp(x: torch.Tensor) -> torch.Tensor:
    """DPFP-3, not normalised: [..., d] -> [..., 6 d]."""
    both = torch.cat([F.relu(x), F.relu(-x)], -1)
    return torch.cat([both * both.roll(shift, -1) for shift in (1, 2, 3)], -1)


class AssociativeLayer(nn.Module):
    """A layer of transformers that reads from a matrix before it runs, and writes into it behind."""

    def __init__(self, layer: nn.Module, width: int, d_key: int, tokens: int) -> None:
        super().__init__()
        self.layer, self.count, self.shape = layer, tokens, (FEATURES * d_key, width)
        self.query, self.key = nn.Linear(width, d_key, bias=False), nn.Linear(width, d_key, bias=False)
        self.value, self.gate = nn.Linear(width, width, bias=False), nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        self.matrix = self.normaliser = torch.zeros(0)

    def forget(self, lanes: int) -> None:
        """Empties the matrix, [B, P, D], and the normaliser, [B, P, 1]."""
        weight = self.value.weight
        self.matrix = torch.zeros(lanes, *self.shape, dtype=weight.dtype, device=weight.device)
        self.normaliser = self.matrix[..., :1]

    def found(self, features: torch.Tensor) -> torch.Tensor:
        """What the matrix holds at keys, [B, L, D]."""
        return features @ self.matrix / (features @ self.normaliser + EPSILON)

    def forward(self, x_BLD: torch.Tensor, *words: Any, **named: Any) -> torch.Tensor:
        """Reads, runs the layer, writes the states of the last tokens all at once."""
        x_BLD = x_BLD + self.found(dpfp(self.query(x_BLD)))
        x_BLD = self.layer(x_BLD, *words, **named)
        written = x_BLD[:, -self.count :]
        key, value, gate = dpfp(self.key(written)), self.value(written), torch.sigmoid(self.gate(written))
        old = self.found(key)
        share = 1 - key @ self.normaliser / (key.square().sum(-1, keepdim=True) + EPSILON)
        self.matrix = self.matrix + key.mT @ (gate * (value - old))
        self.normaliser = self.normaliser + key.mT @ share.clamp(0, 1).detach()
        return x_BLD


class ARMT(nn.Module):
    """An associative recurrent memory transformer around a causal language model of transformers."""

    def __init__(self, base: Any, tokens: int, d_key: int) -> None:
        super().__init__()
        self.base, self.count = base, tokens
        embedded = base.get_input_embeddings().weight
        self.words = nn.Parameter(torch.randn(tokens, embedded.shape[1]) * embedded.detach().std())
        layers = base.base_model.layers
        for number, layer in enumerate(layers):
            layers[number] = AssociativeLayer(layer, embedded.shape[1], d_key, tokens)

    def forward(self, inputs_BTS: torch.Tensor, targets_BTS: torch.Tensor) -> torch.Tensor:
        """Mean loss of a rollout."""
        for layer in self.base.base_model.layers:
            layer.forget(len(inputs_BTS))
        words_BKD, losses = self.words.expand(len(inputs_BTS), -1, -1), []
        for inputs_BS, targets_BS in zip(inputs_BTS.unbind(1), targets_BTS.unbind(1), strict=True):
            x_BLD = torch.cat([self.base.get_input_embeddings()(inputs_BS), words_BKD], 1)
            h_BLD = self.base.base_model(inputs_embeds=x_BLD, use_cache=False).last_hidden_state
            logits = self.base.get_output_embeddings()(h_BLD[:, : -self.count])
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets_BS.flatten()))
        return torch.stack(losses).mean()
