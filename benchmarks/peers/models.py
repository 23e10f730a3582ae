# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The peers: libraries' models as readers, at the sizes of one specification.

    Transformer-XL, windowed Transformer   x-transformers
    Compressive Transformer                compressive-transformer-pytorch
    Recurrent memory transformer           recurrent-memory-transformer-pytorch
    LSTM                                   torch
    A decoder with a memory                this project's family `backbone`, of transformers' blocks

`make peers` installs the libraries (the extra `peers`); without them `available` says so. Each is used as its authors
configure it: rotary positions and pre-norm layers for x-transformers, GRU gating off in the Compressive Transformer
(it would be a third of its parameters), its auxiliary reconstruction loss on. transformer-xl-modern has what `block:
modern` gives a Memformer, transformer-xl-modern-fan-in besides what `initial_values: fan_in` gives a backbone.
"""

import bisect
import contextlib
import dataclasses
import functools
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.peers.reader import (
    MemformerReader,
    MemoryReader,
    Reader,
    State,
    TruncatedReader,
    parameters,
    shifted,
)
from memformer import MemformerConfig

LIBRARIES = {
    "transformer-xl": "x_transformers",
    "transformer-xl-modern": "x_transformers",
    "transformer-xl-modern-fan-in": "x_transformers",
    "windowed": "x_transformers",
    "compressive": "compressive_transformer_pytorch",
    "rmt": "recurrent_memory_transformer_pytorch",
    "backbone-slots": "transformers",
    "backbone-associative": "transformers",
}
D_KEY, WRITE_TOKENS, OVERLAP = 7, 4, 8
"""Of backbone-associative, whose one matrix has 6 D_KEY numbers for each of its width: a third of what Transformer-XL
caches of 32 tokens in four layers."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What all readers of a comparison share.

    Attributes:
        vocab_size: Token ids, the start token's included.
        start_token_id: Its id.
        segment_length: S.
        width: Width of the model.
        heads: Attention heads.
        layers: Decoder layers (LSTM layers).
        ff: Hidden width of the feed-forward blocks.
        memory: Tokens or slots that are carried from segment to segment.
        carried: Most numbers a document that Transformer-XL may carry; it keeps fewer tokens where `memory` are more.
    """

    vocab_size: int
    start_token_id: int
    segment_length: int
    width: int
    heads: int
    layers: int
    ff: int
    memory: int
    carried: int | None = None


def available(kind: str) -> bool:
    """Whether the library behind a kind of reader is installed."""
    return kind not in LIBRARIES or importlib.util.find_spec(LIBRARIES[kind]) is not None


class XTransformer(TruncatedReader):
    """Transformer-XL: each layer attends to its cached inputs of the last `memory` tokens; no gradient into them.

    Args:
        sizes: Its sizes; `carried` shortens the cache.
        name: For the tables.
        modern: SwiGLU and normalised queries and keys with a gain, layer norms kept, as `block: modern` of a Memformer.
        scaled: First values of `fan_in` instead of the library's.
    """

    def __init__(self, sizes: Sizes, name: str = "Transformer-XL", modern: bool = False, scaled: bool = False) -> None:
        from loguru import logger
        from x_transformers import Decoder, TransformerWrapper

        logger.disable("x_transformers")  # its advice on sizes, which are given here
        self.name, self.sizes = name, sizes
        most = sizes.memory if sizes.carried is None else sizes.carried // (sizes.layers * sizes.width)
        self.module = TransformerWrapper(
            num_tokens=sizes.vocab_size,
            max_seq_len=sizes.segment_length,
            max_mem_len=min(sizes.memory, most),
            use_abs_pos_emb=False,
            tie_embedding=True,
            attn_layers=Decoder(
                dim=sizes.width,
                depth=sizes.layers,
                heads=sizes.heads,
                attn_dim_head=sizes.width // sizes.heads,
                ff_mult=sizes.ff / sizes.width,
                rotary_pos_emb=True,
                rotary_emb_dim=sizes.width // sizes.heads,  # of every dimension of a head, as in this project
                attn_flash=True,
                ff_glu=modern,
                ff_swish=modern,
                attn_qk_rmsnorm=modern,
            ),
        )
        if scaled:
            fan_in(self.module, sizes.layers)

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Reads one segment; the state is the last token and every layer's cache."""
        previous, memories = (None, None) if state is None else state
        inputs = shifted(tokens_BS, previous, self.sizes.start_token_id)
        logits, memories = self.module(inputs, mems=memories, return_mems=True)
        return logits, (tokens_BS[:, -1], memories)


class Windowed(XTransformer):
    """A plain Transformer over a window: each segment is read anew behind the tokens before it, nothing is cached.

    The window is `memory` tokens and the segment.
    """

    def __init__(self, sizes: Sizes, name: str = "windowed Transformer") -> None:
        super().__init__(dataclasses.replace(sizes, memory=0), name)
        self.window = sizes.memory

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Reads one segment; the state is the window's tokens, the start token at the document's head."""
        before = torch.full_like(tokens_BS[:, :1], self.sizes.start_token_id) if state is None else state
        # The window is W tokens beside the one before the segment, which a cache of W would not hold either.
        inputs = torch.cat([before, tokens_BS[:, :-1]], dim=1)
        logits = self.module(inputs)[:, before.shape[1] - 1 :]
        return logits, torch.cat([before, tokens_BS], dim=1)[:, -self.window - 1 :]


class Compressive(TruncatedReader):
    """Compressive Transformer: what leaves the cache is compressed 4 to 1 by a convolution instead of dropped."""

    def __init__(self, sizes: Sizes, name: str = "Compressive Transformer") -> None:
        from compressive_transformer_pytorch import CompressiveTransformer

        self.name, self.sizes = name, sizes
        self._auxiliary: torch.Tensor | None = None
        self.module = CompressiveTransformer(
            num_tokens=sizes.vocab_size,
            dim=sizes.width,
            depth=sizes.layers,
            seq_len=sizes.segment_length,
            mem_len=sizes.memory,
            cmem_len=sizes.memory,
            cmem_ratio=4,
            heads=sizes.heads,
            gru_gated_residual=False,
        )
        # The library has no argument for the hidden width of the feed-forward blocks.
        for layer in self.module.ff_layers:
            layer.fn.fn.w1 = nn.Linear(sizes.width, sizes.ff)
            layer.fn.fn.w2 = nn.Linear(sizes.ff, sizes.width)

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Reads one segment; the state is the last token and both memories."""
        previous, memories = (None, None) if state is None else state
        inputs = shifted(tokens_BS, previous, self.sizes.start_token_id)
        logits, memories, self._auxiliary = self.module(inputs, memories=memories)
        # To keep the auxiliary loss from them, the library's forward detaches the key and value matrices in place; left
        # so they would take no gradient from the language model's loss either, in this segment and all later ones.
        self.module.requires_grad_()
        return logits, (tokens_BS[:, -1], tuple(memories))

    def auxiliary_loss(self) -> torch.Tensor | None:
        """The attention-reconstruction loss that trains the compression."""
        return None if self._auxiliary is None else self._auxiliary.squeeze()


class RecurrentMemory(TruncatedReader):
    """RMT: `memory` tokens beside the segment are read, written, and handed on with their gradient; no other cache."""

    through_state = True

    def __init__(self, sizes: Sizes, name: str = "RMT") -> None:
        from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer

        self.name, self.sizes = name, sizes
        with contextlib.redirect_stdout(io.StringIO()):
            self.module = RecurrentMemoryTransformer(
                dim=sizes.width,
                num_tokens=sizes.vocab_size,
                depth=sizes.layers,
                num_memory_tokens=sizes.memory,
                seq_len=sizes.segment_length,
                dim_head=sizes.width // sizes.heads,
                heads=sizes.heads,
                ff_mult=sizes.ff / sizes.width,
                use_flash_attn=False,
                use_xl_memories=False,
                add_write_to_next_write_mem=True,
                next_write_mem_stop_grad=False,
                emb_gradient_frac=1.0,
                num_residual_streams=1,
            )

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Reads one segment; the state is the last token and the memory tokens."""
        previous, memories = (None, None) if state is None else state
        inputs = shifted(tokens_BS, previous, self.sizes.start_token_id)
        logits, memories, _ = self.module(inputs, memories)
        return logits, (tokens_BS[:, -1], memories)


class _LSTMModel(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab_size, sizes.width)
        self.lstm = nn.LSTM(sizes.width, sizes.width, sizes.layers, batch_first=True)
        self.head = nn.Linear(sizes.width, sizes.vocab_size)

    def forward(self, inputs: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        hidden, state = self.lstm(self.embedding(inputs), state)
        return self.head(hidden), state


class LSTM(TruncatedReader):
    """An LSTM, back-propagated through time over the rollout."""

    through_state = True

    def __init__(self, sizes: Sizes, name: str = "LSTM") -> None:
        self.name, self.sizes = name, sizes
        self.module = _LSTMModel(sizes)

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Reads one segment; the state is the last token and the LSTM's."""
        previous, hidden = (None, None) if state is None else state
        logits, hidden = self.module(shifted(tokens_BS, previous, self.sizes.start_token_id), hidden)
        return logits, (tokens_BS[:, -1], hidden)


def fan_in(model: Any, layers: int) -> None:
    """Draws a model of x-transformers as `initial_values: fan_in` draws a backbone."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            last = name.endswith(("to_out", "ff.2"))  # of a residual branch
            nn.init.normal_(module.weight, std=(module.in_features * (2 * layers if last else 1)) ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    last_norm = model.attn_layers.final_norm.gamma
    nn.init.constant_(last_norm, last_norm.numel() ** -0.25)


def _backbone(sizes: Sizes, memory: Any, name: str, **settings: Any) -> Reader:
    """The family `backbone` trained from nothing: one decoder, of modern blocks, with a memory."""
    from memformer.models.backbone.config import BackboneConfig
    from memformer.models.backbone.model import Backbone

    decoder = {
        "model_type": "qwen3",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.ff,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "head_dim": sizes.width // sizes.heads,
        "max_position_embeddings": 2 * sizes.segment_length + 16,
        "tie_word_embeddings": True,
    }
    config = BackboneConfig(
        backbone=decoder,
        memory=memory,
        vocab_size=sizes.vocab_size,
        start_token_id=sizes.start_token_id,
        segment_length=sizes.segment_length,
        **settings,
    )
    return MemoryReader(Backbone(config), name)


def backbone_with_slots(sizes: Sizes) -> Reader:
    """A decoder that reads and writes `memory` slots; it begins with the last quarter of the segment before."""
    from memformer.models.backbone.config import MemoryConfig

    return _backbone(sizes, MemoryConfig("slots", num_slots=sizes.memory), "decoder with slots")


def backbone_with_matrix(sizes: Sizes) -> Reader:
    """A decoder with an associative memory at its second layer, whose first values fit its width.

    Of the segment before it sees the last few tokens again.
    """
    from memformer.models.backbone.config import MemoryConfig

    memory = MemoryConfig("associative", layers=(1,), d_key=D_KEY, num_write_tokens=WRITE_TOKENS)
    settings = {"overlap": min(OVERLAP, sizes.segment_length), "segment_bos": False, "initial_values": "fan_in"}
    return _backbone(sizes, memory, "decoder with a matrix", **settings)


PEERS: dict[str, Callable[[Sizes], Reader]] = {
    "transformer-xl": XTransformer,
    "transformer-xl-modern": functools.partial(XTransformer, name="Transformer-XL, modern blocks", modern=True),
    "transformer-xl-modern-fan-in": functools.partial(
        XTransformer, name="Transformer-XL, modern blocks, fan-in", modern=True, scaled=True
    ),
    "windowed": Windowed,
    "compressive": Compressive,
    "rmt": RecurrentMemory,
    "lstm": LSTM,
    "backbone-slots": backbone_with_slots,
    "backbone-associative": backbone_with_matrix,
}
KINDS = ("memformer", *PEERS)


def make(kind: str, sizes: Sizes, memformer: MemformerConfig) -> Reader:
    """A reader of a kind; `memformer` gives the sizes of this project's model, `sizes` of all others."""
    return MemformerReader(memformer) if kind == "memformer" else PEERS[kind](sizes)


def at_parameters(kind: str, sizes: Sizes, target: int, tolerance: float = 0.03) -> Reader:
    """The peer with `target` parameters: at the nearest width, and the hidden width that makes up for the rest.

    Args:
        kind: One of `PEERS`.
        sizes: Layers, heads and the like, which are kept; widths keep their ratio as nearly as they can.
        target: Parameters.
        tolerance: Largest relative difference.

    Raises:
        ValueError: No width comes within the tolerance.
    """

    def counted(width: int, ff: int) -> int:
        return parameters(PEERS[kind](dataclasses.replace(sizes, width=width, ff=ff)))

    def least(enough: Callable[[int], bool], most: int) -> int:
        return bisect.bisect_left(range(1, most), True, key=enough) + 1

    seed = torch.initial_seed()
    # Heads of even size, so that rotary positions fit; an LSTM has none.
    step = 1 if kind == "lstm" else 2 * sizes.heads
    ratio = sizes.ff / sizes.width
    above = least(lambda steps: counted(step * steps, round(step * steps * ratio)) >= target, 4096 // step)
    nearest = min(
        (steps for steps in (above - 1, above) if steps),
        key=lambda steps: abs(counted(step * steps, round(step * steps * ratio)) - target),
    )
    width = step * nearest
    ff = sizes.ff if kind == "lstm" else least(lambda ff: counted(width, ff) >= target, 16 * width)
    torch.manual_seed(seed)  # not moved on by the models that were only counted
    reader = PEERS[kind](dataclasses.replace(sizes, width=width, ff=ff))
    found = parameters(reader)
    if abs(found - target) > tolerance * target:
        raise ValueError(
            f"{kind}: the nearest to {target:,} parameters are {found:,} at width {width}, not within "
            f"{tolerance:.0%}: change layers or heads"
        )
    return reader
