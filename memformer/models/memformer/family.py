# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The family `memformer`: what the system needs to know of the paper's model. Imports no torch by itself."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from memformer.models.family_record import Export, Family, LayerFlops, Role, Sharding, Stages
from memformer.models.memformer.config import MemformerConfig
from memformer.models.memformer.flops import segment_flops

if TYPE_CHECKING:
    from memformer.models.construction import Construction
    from memformer.models.memformer.model import Memformer
    from memformer.models.memformer.stage import MemformerStage


def _build(config: MemformerConfig, construction: "Construction | None" = None) -> "Memformer":
    from memformer.models.memformer.model import Memformer

    return Memformer(config, construction)


def _reader(model: "Memformer", batch_size: int = 1, segment_length: int | None = None) -> Any:
    from memformer.models.memformer.reader import MemformerReader

    return MemformerReader(model, batch_size, segment_length)


def _inspect(model: "Memformer") -> Any:
    from memformer.models.memformer.slots import MemformerSlots

    return MemformerSlots(model)


def _roles(module: Any) -> Iterator[tuple[Any, Role]]:
    from memformer.models.memformer.roles import roles

    return roles(module)


def _kind(part: Any) -> str | None:
    from memformer.models.memformer.model import DecoderLayer, EncoderLayer

    return {EncoderLayer: "encoder", DecoderLayer: "decoder"}.get(type(part))


def _cut(model: "Memformer", encoder: range, decoder: range) -> "MemformerStage":
    from memformer.models.memformer.stage import MemformerStage

    return MemformerStage(model, encoder, decoder)


def _sizes(config: MemformerConfig) -> dict[str, int]:
    """What the number of tensor-parallel processes must divide."""
    writer = {"writer_heads": config.effective_writer_heads} if config.num_memory_slots else {}
    return {"num_heads": config.num_heads} | writer | {"d_ff": config.d_ff}


def _of_memory(name: str) -> bool:
    """The readers in the encoder's layers with their norms, the writer, and the slots' bias."""
    first, *rest = name.split(".")
    return first in ("writer", "forget") or (first == "encoder" and rest[1] in ("reader", "read_norm"))


def _costs(config: MemformerConfig, segment_length: int) -> list[LayerFlops]:
    """Of encoder and decoder layers in their order; the writer is behind the last encoder layer."""
    flops = segment_flops(config, segment_length)
    encoder, decoder = flops.encoder // config.num_encoder_layers, flops.decoder // config.num_decoder_layers
    recurrent = config.num_memory_slots > 0
    found = [LayerFlops(encoder, 0, encoder * recurrent)] * (config.num_encoder_layers - 1)
    found.append(LayerFlops(encoder, flops.writer, (encoder + flops.writer) * recurrent))
    found += [LayerFlops(decoder)] * (config.num_decoder_layers - 1)
    return [*found, LayerFlops(decoder, flops.head)]


def _places(config: MemformerConfig) -> dict[str, range]:
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    return {"encoder": range(encoder), "decoder": range(encoder, encoder + decoder)}


def _trained(config: MemformerConfig, train: str) -> list[bool]:
    """Of the memory, every encoder layer has a reader."""
    return [True] * config.num_encoder_layers + [train == "all"] * config.num_decoder_layers


def _export_config(config: MemformerConfig, dtype: str) -> dict[str, Any]:
    """What transformers reads of config.json, beside the description that it is."""
    return {
        "model_type": "memformer",
        "architectures": ["MemformerForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_memformer.MemformerHubConfig",
            "AutoModelForCausalLM": "modeling_memformer.MemformerForCausalLM",
        },
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype],
        "vocab_size": config.vocab_size,
        "bos_token_id": config.start_token_id,
    }


FAMILY = Family(
    name=MemformerConfig.family,
    architecture="Memformer",
    config=MemformerConfig,
    build=_build,
    flops=segment_flops,
    reader=_reader,
    shard=Sharding(_sizes, _roles),
    stages=Stages(
        layers=lambda config: (config.num_encoder_layers, config.num_decoder_layers),
        words="model.num_encoder_layers + model.num_decoder_layers",
        stacks=lambda config: [stack for stack, count in config.layer_counts().items() for _ in range(count)],
        costs=_costs,
        width=lambda config: int(config.d_model),
        lengths=lambda config, segment_length: (segment_length, config.decoder_length(segment_length)),
        kind=_kind,
        places=_places,
        trained=_trained,
        cut=_cut,
        home={
            "embedding": "first",
            "encoder_norm": "writer",
            "writer": "writer",
            "forget": "writer",
            "decoder_norm": "last",
            "head": "last",
        },
    ),
    decoder_apart=True,
    inspect=_inspect,
    memory=_of_memory,
    export=Export("memformer_lm", "modeling_memformer.py", _export_config),
    compiled=True,
)
