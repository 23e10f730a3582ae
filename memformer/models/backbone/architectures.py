# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which decoder-only models of transformers can be a backbone, and where each keeps its parts. Imports no torch.

A model that does more than embed, run its layers, norm and project (a cap on its logits, a scale of its embeddings, a
recurrence) is refused by name until that is built: to run it without would be another model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from memformer.models.configuration import LARGEST, MOST_LAYERS, require


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One `model_type` of transformers.

    Attributes:
        body: Attribute of the language model that holds all but the head; files may leave it out of the names.
        embedding: Attribute of the body: the token embedding.
        layers: The list of layers.
        norm: The norm behind the last of them.
        rotary: What makes the rotary positions; None: there are none.
        positions: The embedding of absolute positions; None: there is none.
        embedding_dropout: The dropout behind the embeddings; None: there is none.
        sizes: Keys of config.json for the number of layers, the width, the heads, and the longest input.
        keys: The other keys that a backbone without weights may be described by.
        dropouts: Keys that `model.dropout` sets.
        head: Names that files have for the head's module; the first is what transformers writes.
        tied: Whether head and embedding are one matrix where config.json does not say.
        window: The sliding window where config.json does not say; None: there is none.
        linear: Names of the linear maps within a layer, which a low-rank adapter may be beside; the first ones, up to
            `adapted`, are those that have one unless others are named.
        adapted: How many of them these are.
        outputs: Names of the last linear map of each residual branch.
        transposed: Whether their weights are [inputs, outputs] (transformers' Conv1D).
        cache: What a layer calls the cache of keys and values that it is given.
        norms: Names of the norms within a layer whose output goes into its linear maps alone. None: tensor parallelism
            is not built for it.
        key_value_heads: Heads of keys and values where config.json does not say; None: as many as of queries.
    """

    body: str
    embedding: str
    layers: str
    norm: str
    rotary: str | None
    positions: str | None
    embedding_dropout: str | None
    sizes: tuple[str, str, str, str]
    keys: frozenset[str]
    dropouts: tuple[str, ...]
    head: tuple[str, ...] = ("lm_head",)
    tied: bool = False
    window: int | None = None
    linear: tuple[str, ...] = ("q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapted: int = 2
    outputs: tuple[str, ...] = ("o_proj", "down_proj")
    transposed: bool = False
    cache: str = "cache"
    norms: tuple[str, ...] | None = None
    key_value_heads: int | None = None


_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
_ANY = "model_type vocab_size bos_token_id eos_token_id initializer_range tie_word_embeddings"
_ROTARY = f"{_ANY} intermediate_size hidden_act rope_theta rope_parameters attention_bias"
_LLAMA = Architecture(
    body="model",
    embedding="embed_tokens",
    layers="layers",
    norm="norm",
    rotary="rotary_emb",
    positions=None,
    embedding_dropout=None,
    sizes=_SIZES,
    keys=frozenset(f"{_ROTARY} num_key_value_heads head_dim rms_norm_eps mlp_bias sliding_window".split()),
    dropouts=("attention_dropout",),
    norms=("input_layernorm", "post_attention_layernorm"),
)

SUPPORTED: Mapping[str, Architecture] = {
    "llama": _LLAMA,  # SmolLM and SmolLM2 are llama too
    "qwen2": dataclasses.replace(_LLAMA, key_value_heads=32),
    "qwen3": dataclasses.replace(_LLAMA, key_value_heads=32),
    "mistral": dataclasses.replace(_LLAMA, window=4096, key_value_heads=8),
    "gpt_neox": Architecture(  # Pythia
        body="gpt_neox",
        embedding="embed_in",
        layers="layers",
        norm="final_layer_norm",
        rotary="rotary_emb",
        positions=None,
        embedding_dropout="emb_dropout",
        sizes=_SIZES,
        keys=frozenset(f"{_ROTARY} layer_norm_eps use_parallel_residual rotary_pct rotary_emb_base".split()),
        dropouts=("attention_dropout", "hidden_dropout"),
        head=("embed_out", "lm_head"),
        linear=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        adapted=1,
        outputs=("dense", "dense_4h_to_h"),
        cache="layer_past",
    ),
    "gpt2": Architecture(
        body="transformer",
        embedding="wte",
        layers="h",
        norm="ln_f",
        rotary=None,
        positions="wpe",
        embedding_dropout="drop",
        sizes=("n_layer", "n_embd", "n_head", "n_positions"),
        keys=frozenset(f"{_ANY} n_inner activation_function layer_norm_epsilon".split()),
        dropouts=("attn_pdrop", "resid_pdrop", "embd_pdrop"),
        tied=True,
        linear=("c_attn", "c_proj", "c_fc"),
        adapted=1,
        outputs=("c_proj",),
        transposed=True,
    ),
}

_REFUSED = {
    "gemma": "scales its embeddings",
    "gemma2": "caps its logits and scales its embeddings",
    "gemma3": "has sliding windows and scales its embeddings",
    "granite": "scales embeddings, residuals and logits",
    "cohere": "scales its logits",
    "smollm3": "leaves rotary positions out of some layers",
    "jamba": "is a hybrid with a recurrence of its own",
    "mamba": "is a recurrence of its own",
    "mixtral": "has experts",
}


def architecture_of(values: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that a config.json (or `model.backbone`) is of.

    Args:
        values: What it says.
        where: Names it in errors.

    Raises:
        ValueError: It is not supported, or says what is not built; the message names it and the mend.
    """
    kind = values.get("model_type")
    if kind not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        family = next((each for each in sorted(_REFUSED, reverse=True) if str(kind).startswith(each)), None)
        why = f"{kind} {_REFUSED[family]}, which is not built" if family else f"model_type is {kind}"
        raise ValueError(f"{where}: {why}: choose one of {known}")
    if "quantization_config" in values:
        raise ValueError(f"{where}: its weights are quantized (quantization_config): give the unquantized model")
    found = SUPPORTED[str(kind)]
    for key, most in zip(found.sizes, (MOST_LAYERS, LARGEST, LARGEST, LARGEST), strict=True):
        value = values.get(key)
        fits = type(value) is int and 1 <= value <= most
        require(fits, f"{where}: {key}", value, f"give a whole number above 0 and at most {most}")
    return found


def sliding_window(values: Mapping[str, Any], architecture: Architecture) -> int | None:
    """The number of tokens that a layer looks back at most; None: all of them."""
    if values.get("use_sliding_window") is False:
        return None
    if architecture.window is None and "use_sliding_window" not in values:
        return None
    window = values.get("sliding_window", architecture.window)
    return None if window is None else int(window)


def sliced_sizes(values: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Keys of config.json, with their values, that the number of tensor-parallel processes must divide.

    Raises:
        ValueError: Tensor parallelism is not built for this architecture.
    """
    if architecture.norms is None:
        built = ", ".join(name for name, each in SUPPORTED.items() if each.norms is not None)
        raise ValueError(
            f"model_type is {values['model_type']}, for which parallel.tensor above 1 is not built: set that to 1, or "
            f"choose one of {built}"
        )
    heads = values[architecture.sizes[2]]
    found = values.get("num_key_value_heads", architecture.key_value_heads)
    sizes = {architecture.sizes[2]: heads, "num_key_value_heads": heads if found is None else found}
    return sizes | {key: values[key] for key in ("intermediate_size",) if key in values}
