# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The external memory: how it is read, written and forgotten.

Shapes: B lanes, S tokens, K slots, D width, H writer heads, E = D/H. The memory is [B, K, D]; each slot has unit
L2 norm at all times.

Slots have length 1 and layer-normed tokens have length sqrt(D), yet the writer projects both with one key matrix.
So slots are multiplied by sqrt(D) before any projection. For the reader's matrices and the writer's query this only
renames W to W/sqrt(D); for the shared key it states that slots and tokens enter it at one length, without which a
slot's own logit would be sqrt(D) times smaller than a token's. The paper does not say how x is scaled. In the same way
the writer's values are divided by sqrt(D), so that a matrix of ordinary size writes unit vectors: a small matrix
would do so too, but an optimizer that moves every weight by a like amount would blow it up within some twenty steps,
and all slots would then hold the same average.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.configuration import Forgetting
from memformer.models.heads import Heads
from memformer.models.memformer.config import MemformerConfig
from memformer.models.memformer.layers import Attention, merge_heads, split_heads

FUSED_SLOTS = 256
"""From so many slots on the writer's softmax is left to torch's fused attention, in float32 and wider.

Measured on a CPU (docs/results/cpu-logits-and-writer.md): 1 to 3 % slower at less than half of the memory, and a tenth
for 1,024 slots and 4,096 tokens. With fewer slots the wider keys and values cost more than they save. In bf16 it is a
quarter slower, and a slot's weight on itself would be rounded to 8 bits at every write.
"""


class MemoryReader(nn.Module):
    """Multi-head attention of every token over every slot (the paper's section 1, "Read")."""

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.scale = config.d_model**0.5
        self.attention = Attention(config)
        self.norm = nn.LayerNorm(config.d_model, config.norm_epsilon) if config.memory_read_norm else nn.Identity()

    def forward(self, x_BSD: torch.Tensor, memory_BKD: torch.Tensor) -> torch.Tensor:
        """What the tokens read, [B, S, D]."""
        keys_values = self.attention.keys_values(self.norm(memory_BKD * self.scale), None)
        return self.attention.attend(x_BSD, keys_values)


class Written(NamedTuple):
    """What a write gives, of all heads of the writer, before forgetting.

    Attributes:
        memory_BKD: The slots.
        overwritten_BKH: The share of a head's part of a slot that the write has replaced, 1 - a_h; None where the
            model's forgetting does not ask.
    """

    memory_BKD: torch.Tensor
    overwritten_BKH: torch.Tensor | None = None


def before_normalisation(written: Written, bias_KD: torch.Tensor, forgetting: Forgetting | bool) -> torch.Tensor:
    """A written slot m with what forgetting adds to it, [B, K, D]: the next slot is this at length 1.

    | forgetting | m becomes | what lies across the bias b, if the writer keeps the slot (a_h = 1) |
    |---|---|---|
    | off | m | stays |
    | written | m + (1 - a_h) b in the part of head h | stays |
    | paper | m + b (the paper's section 1, "Forget") | is divided by 1 plus about the length of b |

    Args:
        written: What the writer gives; with the shares for `written`.
        bias_KD: Where the slots start.
        forgetting: The model's mode.
    """
    if forgetting == "off":
        return written.memory_BKD
    if forgetting == "paper":
        return written.memory_BKD + bias_KD
    share_BKH = written.overwritten_BKH
    assert share_BKH is not None
    pulled_BKHE = share_BKH.unsqueeze(-1) * bias_KD.unflatten(-1, (share_BKH.shape[-1], -1))
    return written.memory_BKD + pulled_BKHE.flatten(-2)


class BiasedMemoryNormalisation(nn.Module):
    """Forgetting: a slot gets a part of its bias, or none, and length 1 (`before_normalisation`).

    The bias is a parameter per slot. It is also where a slot starts, whatever the mode.
    """

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.num_memory_slots, config.d_model))
        self.forgetting = config.memory_forgetting

    def forward(self, written: Written | None, batch_size: int = 0, lengths: bool = False) -> torch.Tensor:
        """The next memory on the unit sphere, or, given None, the initial memory of `batch_size` lanes.

        One method for all, because ZeRO-3 gathers a parameter only around the forward of the module that owns it.

        Args:
            written: What was written.
            batch_size: Lanes of an initial memory.
            lengths: Give the length of each slot before normalisation instead, [B, K]: what lies across the next slot
                is divided by it.
        """
        if written is None:
            return F.normalize(self.bias, dim=-1).expand(batch_size, -1, -1)
        biased_BKD = before_normalisation(written, self.bias, self.forgetting)
        return biased_BKD.norm(dim=-1) if lengths else F.normalize(biased_BKD, dim=-1)


class MemoryWriter(nn.Module):
    """Memory slot attention (the paper's section 1, "Write"), once a segment after the last encoder layer.

    Slot i attends to itself and to every token, to no other slot. What it keeps of itself is the raw slot, not a
    projection, so a weight of 1.0 on itself is an exact copy. There is no gate, residual or output projection.
    Each slot has one private column (itself) beside the tokens' columns, K*(S+1) logits: `weights` writes the softmax
    out, which is the reference and what is looked at; of many slots `attended` never has all logits.

    Attributes:
        fused: Whether it does; None: from `FUSED_SLOTS` on.
    """

    fused: bool | None = None

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads = config.effective_writer_heads
        self.tells_shares = config.memory_forgetting == "written"
        self.threshold = config.memory_write_threshold
        self.heads = Heads()
        self.slot_scale = width**0.5
        self.value_scale = width**-0.5
        self.logit_scale = (width // self.num_heads) ** -0.5 / config.memory_temperature
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def weights(self, memory_BKD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        """Attention of every slot on [itself ; every token], [B, H, K, 1 + S], rows summing to 1, of the heads here."""
        q_BHKE, own_BHK1 = self._queries(memory_BKD)
        tokens_BHKS = q_BHKE @ split_heads(self.key(x_BSD), self.num_heads).transpose(-1, -2)
        if mask_BS is not None:
            tokens_BHKS = tokens_BHKS.masked_fill(~mask_BS[:, None, None, :], float("-inf"))
        weights_BHKL = torch.cat([own_BHK1, tokens_BHKS.to(own_BHK1.dtype)], dim=-1).softmax(dim=-1)
        if not self.threshold:
            return weights_BHKL  # parts of it, joined again, would be a second one
        return torch.cat(self._above_threshold(weights_BHKL[..., :1], weights_BHKL[..., 1:]), dim=-1)

    def forward(self, memory_BKD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None) -> Written:
        """The written memory before forgetting.

        Args:
            memory_BKD: The memory the segment was read with.
            x_BSD: Output of the last encoder layer.
            mask_BS: True at valid tokens; None when all are.
        """
        memory_BKD = self.heads.enter(memory_BKD)
        if self._fuses(memory_BKD):
            return self._joined(*self.attended(memory_BKD, x_BSD, mask_BS), memory_BKD)
        return self.mixed(self.weights(memory_BKD, x_BSD, mask_BS), memory_BKD, x_BSD)

    def attended(
        self, memory_BKD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A slot's weight on itself, [B, h, K, 1], and what it takes from the tokens, [B, h, K, E], of the heads here.

        By one call of torch's attention, whose softmax over a block of keys at a time has all its gradients. The slot
        itself becomes one key more. It has a 1 in a column of its own, where a query has its logit on itself and tokens
        have 0; its value is 1 in that column and 0 in those of the tokens, so that its weight comes out there.
        """
        q_BHKE, own_BHK1 = self._queries(memory_BKD)
        size = q_BHKE.shape[-1]
        more = 8 - size % 8  # a column, and what GPUs need for aligned rows
        k_BHLM = _with_own_key(split_heads(self.key(x_BSD), self.num_heads), more)
        v_BHLM = _with_own_key(self._values(x_BSD), more)
        q_BHKM = torch.cat([q_BHKE, own_BHK1, q_BHKE.new_zeros(*q_BHKE.shape[:-1], more - 1)], dim=-1)
        mask = None if mask_BS is None else F.pad(mask_BS, (0, 1), value=True)[:, None, None, :]
        out_BHKM = F.scaled_dot_product_attention(q_BHKM, k_BHLM, v_BHLM, attn_mask=mask, scale=1.0)
        return self._above_threshold(out_BHKM[..., size : size + 1], out_BHKM[..., :size])

    def _above_threshold(self, own_BHK1: torch.Tensor, tokens_BHKX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A slot's weight on itself and its weights on tokens, or what it takes from them, without small writes.

        The share that a write replaces, 1 - a_h, becomes (1 - a_h - threshold) / (1 - threshold), at least 0: where it
        is 0 a head keeps its part of the slot, to the last bit. A softmax alone never gives a weight of 0.
        """
        if not self.threshold:
            return own_BHK1, tokens_BHKX
        # In float32 at least: rounded to 16 bits, 1 - threshold would let a share grow beyond 1.
        share_BHK1 = 1 - own_BHK1.to(torch.promote_types(own_BHK1.dtype, torch.float32))
        written_BHK1 = (share_BHK1 - self.threshold).clamp(min=0) / (1 - self.threshold)
        scale_BHK1 = written_BHK1 / share_BHK1.clamp(min=self.threshold)
        return (1 - written_BHK1).to(own_BHK1.dtype), (tokens_BHKX * scale_BHK1).to(tokens_BHKX.dtype)

    def _fuses(self, memory_BKD: torch.Tensor) -> bool:
        if self.fused is not None:
            return self.fused
        narrow = torch.is_autocast_enabled(memory_BKD.device.type) or self.key.weight.element_size() < 4
        return memory_BKD.shape[1] >= FUSED_SLOTS and not narrow

    def _queries(self, memory_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots' queries, [B, h, K, E], scaled, and their logits on themselves, [B, h, K, 1]."""
        slots_BKD = memory_BKD * self.slot_scale
        q_BHKE = split_heads(self.query(slots_BKD), self.num_heads) * self.logit_scale
        return q_BHKE, (q_BHKE * split_heads(self.key(slots_BKD), self.num_heads)).sum(-1, keepdim=True)

    def _values(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """The tokens' values, [B, h, S, E]."""
        return split_heads(self.value(x_BSD) * self.value_scale, self.num_heads)

    def mixed(self, a_BHKL: torch.Tensor, memory_BKD: torch.Tensor, x_BSD: torch.Tensor) -> Written:
        """The written memory before forgetting, from the attention of the heads here, [B, h, K, 1 + S]."""
        v_BHSE = self._values(x_BSD)
        return self._joined(a_BHKL[..., :1], a_BHKL[..., 1:].to(v_BHSE.dtype) @ v_BHSE, memory_BKD)

    def _joined(self, own_BHK1: torch.Tensor, taken_BHKE: torch.Tensor, memory_BKD: torch.Tensor) -> Written:
        """What all heads write, from the weights of slots on themselves and what they take, of the heads here."""
        written_BHKE = own_BHK1 * split_heads(self.heads.own(memory_BKD), self.num_heads) + taken_BHKE
        if not self.tells_shares:
            return Written(self.heads.join(merge_heads(written_BHKE)))
        # The share of a head is one column more of it, so that all are joined at once.
        with_share = torch.cat([written_BHKE, 1 - own_BHK1.to(written_BHKE.dtype)], dim=-1)
        joined_BKHE = self.heads.join(merge_heads(with_share)).unflatten(-1, (-1, with_share.shape[-1]))
        return Written(joined_BKHE[..., :-1].flatten(-2), joined_BKHE[..., -1])


def _with_own_key(x_BHSE: torch.Tensor, more: int) -> torch.Tensor:
    """Keys or values of tokens with that of the slot itself behind them, [B, h, S + 1, E + more]."""
    padded = F.pad(x_BHSE, (0, more, 0, 1))
    padded.detach()[..., -1, x_BHSE.shape[-1]] = 1  # a constant: the gradient of the padding knows nothing of it
    return padded
