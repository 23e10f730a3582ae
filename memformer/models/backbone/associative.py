# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The associative memory: a matrix for each chosen layer, from features of keys to values.

| `memory.rule` | before layer l | behind layer l |
|---|---|---|
| delta | x + phi(q(x)) S | for each write token: S <- S + phi(k)^T b (v - phi(k) S) |
| armt | x + phi(q(x)) S / phi(q(x)) z | S <- S + sum phi(k)^T b (v - phi(k) S / phi(k) z), z <- z + sum g phi(k) |

armt is the rule of ARMT (Rodkin et al., 2024), whose keys (DPFP-3, Schlag et al., 2021) both have, of length 1 as in
their code; g = 1 - phi(k) z, at least 0, is how much of a key is new, and as in their code it carries no gradient. The
sum z is one more column of S. Values start from zero, so that every S is zero and the backbone says what it says alone
until something is learned.

The delta rule's token i changes S by phi(k_i)^T u_i with u_i = b_i (v_i - phi(k_i) (S + sum over j < i of
phi(k_j)^T u_j)): a triangular system of M equations, solved in one call (Yang et al., 2024) instead of M matrices that
the backward would keep.

Shapes: B lanes, L inputs, M write tokens, P = 6 d_key features, D width, C = D columns (armt: D + 1), n layers; the
memory is [n P, C].
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.backbone.config import FEATURES, BackboneConfig
from memformer.models.backbone.memory import LayerOutput, Rows
from memformer.models.construction import Construction
from memformer.models.staging import numbered

EPSILON = 1e-6
NOTHING_YET = 1e-5
"""Beside the sum z of features, which is 0 until something is written."""


def features(x: torch.Tensor) -> torch.Tensor:
    """DPFP-3 of keys or queries, of length 1: [..., d_key] -> [..., 6 d_key]."""
    both = torch.cat([F.relu(x), F.relu(-x)], -1)
    return F.normalize(torch.cat([both * both.roll(shift, -1) for shift in (1, 2, 3)], -1), dim=-1, eps=EPSILON)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """A tensor as it is, or in float32 where that is wider."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def recalled(found_BLC: torch.Tensor, normalised: bool) -> torch.Tensor:
    """The values [B, L, D] in what features find in a matrix; divided by their sum where that is the last column."""
    return found_BLC[..., :-1] / (found_BLC[..., -1:] + NOTHING_YET) if normalised else found_BLC


def written(
    matrix_BPC: torch.Tensor,
    keys_BMP: torch.Tensor,
    values_BMD: torch.Tensor,
    gates_BM1: torch.Tensor,
    normalised: bool,
) -> torch.Tensor:
    """The next matrix [B, P, C]: armt's rule where it is normalised, else the delta rule."""
    found_BMC = keys_BMP @ matrix_BPC
    if normalised:
        new_BM1 = (1 - found_BMC[..., -1:]).clamp(0, 1).detach()
        changes_BMD = gates_BM1 * (values_BMD - recalled(found_BMC, normalised=True))
        return matrix_BPC + keys_BMP.mT @ torch.cat([changes_BMD, new_BM1], -1)
    # What a token's key reads of the tokens before it, each of which was written likewise.
    likeness_BMM = (gates_BM1 * (keys_BMP @ keys_BMP.mT)).tril(-1)
    changes_BMD = torch.linalg.solve_triangular(
        likeness_BMM, gates_BM1 * (values_BMD - found_BMC), upper=False, unitriangular=True
    )
    return matrix_BPC + keys_BMP.mT @ changes_BMD


class AssociativeReader(nn.Module):
    """What a layer reads from its matrix.

    Args:
        config: The model.
        part: Number of the layer's matrix among all.
    """

    def __init__(self, config: BackboneConfig, part: int) -> None:
        super().__init__()
        count = FEATURES * config.memory.d_key
        self.rows, self.normalised = slice(part * count, (part + 1) * count), config.memory.rule == "armt"
        self.norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.memory.d_key, bias=False)

    def forward(self, x_BLD: torch.Tensor, memory_BKC: torch.Tensor) -> torch.Tensor:
        """[B, L, D], to be added to x."""
        q_BLP = features(self.query(self.norm(x_BLD)))
        found_BLC = q_BLP.to(memory_BKC.dtype) @ memory_BKC[:, self.rows]
        return recalled(found_BLC, self.normalised).to(x_BLD.dtype)


class AssociativeWriter(nn.Module):
    """Writes the states of write tokens into a layer's matrix, in float32 whatever the layers compute in.

    Weights that were loaded in half precision compute keys, values and gates in theirs; what is written stays float32.
    """

    multiplies_in_float32 = True
    """Its maps use all bits of their weights, under autocast too: ZeRO must not send them in 16."""

    def __init__(self, config: BackboneConfig, part: int) -> None:
        super().__init__()
        count = FEATURES * config.memory.d_key
        self.rows, self.normalised = slice(part * count, (part + 1) * count), config.memory.rule == "armt"
        self.norm = nn.LayerNorm(config.width)
        self.key = nn.Linear(config.width, config.memory.d_key, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.gate = nn.Linear(config.width, 1)
        nn.init.zeros_(self.value.weight)

    def forward(self, x_BMD: torch.Tensor, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The next matrix [B, P, C]."""
        with torch.autocast(x_BMD.device.type, enabled=False):
            # The maps are those of an export in bfloat16 too; what is summed up is not.
            x_BMD, matrix_BPC = self.norm(x_BMD.to(self.norm.weight.dtype)), at_least_float32(memory_BKC[:, self.rows])
            keys_BMP, values_BMD = features(at_least_float32(self.key(x_BMD))), at_least_float32(self.value(x_BMD))
            gates_BM1 = torch.sigmoid(at_least_float32(self.gate(x_BMD)))
            return written(matrix_BPC, keys_BMP, values_BMD, gates_BM1, self.normalised)


class AssociativeMemory(nn.Module):
    """The default memory; `memory.AddedMemory`."""

    def __init__(self, config: BackboneConfig, std: float, construction: Construction) -> None:
        super().__init__()
        self.config, self.at = config, config.memory_layers
        self.depth, self.count = config.memory_depth, config.memory.num_write_tokens
        self.kept, self.shape = None, config.memory_shape
        self.words = construction.built(Rows(self.count, config.width, std))
        self.writers = nn.ModuleList(
            construction.built(AssociativeWriter(config, part)) for part in range(len(self.at))
        )

    def initial(self, lanes: int) -> torch.Tensor:
        """Zeros, of float32 where the weights are in half precision: sums over a whole document."""
        weight = next(self.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.zeros(lanes, *self.shape, dtype=dtype, device=weight.device)

    def front(self, memory_BKC: torch.Tensor) -> None:
        """Nothing."""

    def behind(self, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The write tokens."""
        words: torch.Tensor = self.words(len(memory_BKC))
        return words

    def reader(self, layer: int) -> nn.Module | None:
        """The reader of a chosen layer."""
        return AssociativeReader(self.config, self.at.index(layer)) if layer in self.at else None

    def after(self, layer: int, output: LayerOutput) -> torch.Tensor | None:
        """The next matrix of a chosen layer."""
        if layer not in self.at:
            return None
        writer = self.writers.get_submodule(str(self.at.index(layer)))
        following: torch.Tensor = writer(output.x[:, -self.count :], output.memory)
        return following

    def leave(self, layers: range, readers: Iterable[Any]) -> None:
        """Leaves what a stage of some layers has: their writers, and the write tokens with the first of all layers.

        Args:
            layers: Their numbers.
            readers: Theirs; like the writers they find their rows in a memory [B, K, C] of these layers alone then.
        """
        parts = [part for part, layer in enumerate(self.at) if layer in layers]
        self.writers = numbered(self.writers, parts)
        if 0 not in layers:
            del self.words
        first, count = min(parts, default=0), self.shape[0] // len(self.at)
        for each in (*self.writers, *readers):
            each.rows = slice(each.rows.start - first * count, each.rows.stop - first * count)
        self.shape = len(parts) * count, self.shape[1]
