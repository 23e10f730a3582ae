# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of a layer: rotary positions, multi-head attention, feed-forward block.

Shapes: B lanes, S tokens of a query segment, L keys, D width, H heads, E = D/H.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.graphed import recorded
from memformer.models.memformer.config import MemformerConfig


class Rotary(NamedTuple):
    """Cosines and sines of consecutive positions, each [positions, E/2]."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def table(cls, start: int, stop: int, config: MemformerConfig, device: torch.device) -> "Rotary":
        """The table of positions start .. stop-1, in float32 (float64 for models in float64 loses nothing by it)."""
        return cls.at(torch.arange(start, stop, device=device), config)

    @classmethod
    def at(cls, positions_N: torch.Tensor, config: MemformerConfig) -> "Rotary":
        """The table of some positions, integers."""
        head_size = config.d_model // config.num_heads
        exponents = torch.arange(0, head_size, 2, device=positions_N.device, dtype=torch.float32) / head_size
        angles = torch.outer(positions_N.float(), config.rotary_base**-exponents)
        return cls(angles.cos(), angles.sin())

    @classmethod
    def kept(cls, start: int, stop: int, config: MemformerConfig, x: torch.Tensor) -> "Rotary":
        """The table for what is computed from x, made once and kept: all segments have the same.

        Where autocast is on it has the dtype of products, to which `rotate` would cast it in every layer.
        """
        kind, dtype = x.device.type, torch.float32
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves as it is
            dtype = torch.get_autocast_dtype(kind)
        key = start, stop, config.d_model // config.num_heads, config.rotary_base, x.device, dtype
        alone = recorded(x.device)  # a graph has its own: what is kept may make room for others
        found = None if alone else _TABLES.get(key)
        if found is None:
            with torch.inference_mode(False):  # training may come after an evaluation, and has it in its graphs
                found = cls(*(each.to(dtype) for each in cls.table(start, stop, config, x.device)))
            if not alone and type(found.cos) is torch.Tensor:  # and not one without numbers, of a trace
                if len(_TABLES) == _MOST_TABLES:
                    del _TABLES[next(iter(_TABLES))]
                _TABLES[key] = found
        return found

    def rows(self, start: int, stop: int) -> "Rotary":
        """The positions start .. stop-1 of this table."""
        return Rotary(self.cos[start:stop], self.sin[start:stop])

    def rotate(self, x_BHSE: torch.Tensor) -> torch.Tensor:
        """Rotates each head's (first half, second half) pairs by the angle of their position; keeps the dtype."""
        cos, sin = self.cos.to(x_BHSE.dtype), self.sin.to(x_BHSE.dtype)
        if torch.compiler.is_compiling():  # One kernel comes of it. What Rotation writes to would break the graph.
            # In the memory's order of the product before: attention answers in that of its queries, and heads in
            # another than `merge_heads` puts them would be copied.
            first, second = x_BHSE.transpose(1, 2).chunk(2, dim=-1)
            cos, sin = cos[:, None], sin[:, None]
            return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).transpose(1, 2)
        rotated: torch.Tensor = Rotation.apply(x_BHSE, cos, sin)
        return rotated


_TABLES: dict[tuple[Any, ...], Rotary] = {}
_MOST_TABLES = 16
"""An evaluation has segments of many lengths; tables of 2,048 positions take half a megabyte."""


class Rotation(torch.autograd.Function):
    """What `Rotary.rotate` computes, with a backward of its own: the rotation by the opposite angles.

    Four kernels that write into the halves of one result, where products, sums and a concatenation would be seven, and
    their backward ten. All of them do nothing but move bytes; these move about half as many.
    """

    @staticmethod
    def forward(ctx: Any, x_BHSE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[B, H, S, E] -> [B, H, S, E]."""
        ctx.save_for_backward(cos, sin)
        return _rotated(x_BHSE, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient_BHSE: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient of x."""
        cos, sin = ctx.saved_tensors
        return _rotated(gradient_BHSE, cos, -sin), None, None


def _rotated(x_BHSE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    out_BHSE = torch.empty_like(x_BHSE)
    (first, second), (low, high) = x_BHSE.chunk(2, dim=-1), out_BHSE.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(first, sin, out=high).addcmul_(second, cos)
    return out_BHSE


def as_multiplied(x: torch.Tensor) -> torch.Tensor:
    """A tensor in the dtype that autocast multiplies it in: cast once for all of the products that take it."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        return x.to(torch.get_autocast_dtype(kind))
    return x


class Norm(nn.LayerNorm):
    """A layer norm of the residual stream, which gives the dtype that it is given.

    torch's own, under autocast, widens what has 16 bits to float32, and hands that on.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]; mean and variance are float32, or wider."""
        if input.dtype == self.weight.dtype:
            return super().forward(input)
        weight, bias = cast(torch.Tensor, self.weight), cast(torch.Tensor, self.bias)
        if input.device.type != "cpu":  # There float32 weights are taken, without which the mean would have 16 bits.
            weight, bias = weight.to(input.dtype), bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


def split_heads(x_BSD: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[B, S, D] -> [B, H, S, E]."""
    return x_BSD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x_BHSE: torch.Tensor) -> torch.Tensor:
    """[B, H, S, E] -> [B, S, D]."""
    return x_BHSE.transpose(1, 2).flatten(2)


class HeadNorm(nn.Module):
    """Divides each head's queries, or keys, by their root mean square and multiplies them by a gain.

    The gain [D] has the place of a linear map's bias: where heads are spread over processes it is cut with them.
    """

    bias: None = None

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.d_model))

    def forward(self, x_BHSE: torch.Tensor) -> torch.Tensor:
        """[B, H, S, E] -> [B, H, S, E]; keeps the dtype."""
        head_size = x_BHSE.shape[-1]
        gain_H1E = self.weight.unflatten(0, (-1, 1, head_size))
        return (F.rms_norm(x_BHSE, (head_size,), eps=self.epsilon) * gain_H1E).to(x_BHSE.dtype)


class Attention(nn.Module):
    """Multi-head attention through `torch.nn.functional.scaled_dot_product_attention`.

    In modern blocks queries and keys are normalised (`HeadNorm`). Keys and values have a method of their own, so that
    generation can keep them.
    """

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads = config.num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        modern = config.block == "modern"
        self.query_norm, self.key_norm = (HeadNorm(config) if modern else None for _ in range(2))

    def keys_values(self, y_BLD: torch.Tensor, rotary: Rotary | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (rotated where positions are given) and values of y, each [B, H, L, E]."""
        y_BLD = as_multiplied(y_BLD)
        k_BHLE = split_heads(self.key(y_BLD), self.num_heads)
        if self.key_norm is not None:
            k_BHLE = self.key_norm(k_BHLE)
        v_BHLE = split_heads(self.value(y_BLD), self.num_heads)
        return (k_BHLE if rotary is None else rotary.rotate(k_BHLE)), v_BHLE

    def attend(
        self,
        x_BSD: torch.Tensor,
        keys_values: tuple[torch.Tensor, torch.Tensor],
        rotary: Rotary | None = None,
        mask: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        """Every token of x over the given keys.

        Args:
            x_BSD: Queries before projection, [B, S, D].
            keys_values: What `keys_values` returned, each [B, H, L, E].
            rotary: Positions of the queries, S rows; None for attention without positions.
            mask: True where a key may be seen, bool, broadcastable to [B, H, S, L].
            causal: Query i sees keys 0 .. i only.

        Returns:
            [B, S, D].
        """
        q_BHSE = split_heads(self.query(x_BSD), self.num_heads)
        if self.query_norm is not None:
            q_BHSE = self.query_norm(q_BHSE)
        if rotary is not None:
            q_BHSE = rotary.rotate(q_BHSE)
        k_BHLE, v_BHLE = keys_values
        out_BHSE = F.scaled_dot_product_attention(q_BHSE, k_BHLE, v_BHLE, attn_mask=mask, is_causal=causal)
        return self.output(merge_heads(out_BHSE))


class FeedForward(nn.Module):
    """D -> d_ff -> D with GELU; in modern blocks with SwiGLU, `up` times SiLU of `gate`."""

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.gate: nn.Linear | None = None
        if config.block == "modern":
            self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        x_BSD = as_multiplied(x_BSD)
        up_BSF = self.up(x_BSD)
        return self.down(F.gelu(up_BSF) if self.gate is None else F.silu(self.gate(x_BSD)) * up_BSF)
