# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The family `backbone`: what the system needs to know of it. Imports neither torch nor transformers by itself."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memformer.models.backbone.architectures import sliced_sizes
from memformer.models.backbone.config import BackboneConfig, is_adapter
from memformer.models.backbone.exports import (
    CODE_FILE,
    base_files,
    config_json,
    files_beside,
    memory_facts,
    weight_place,
)
from memformer.models.configuration import require
from memformer.models.family_record import Export, Family, LayerFlops, Role, Sharding, Stages, Wavefronts

if TYPE_CHECKING:
    from memformer.models.backbone.flops import SegmentFlops
    from memformer.models.backbone.model import Backbone
    from memformer.models.construction import Construction


def _build(config: BackboneConfig, construction: "Construction | None" = None) -> "Backbone":
    from memformer.models.backbone.model import Backbone

    return Backbone(config, construction)


def _flops(config: BackboneConfig, segment_length: int) -> "SegmentFlops":
    from memformer.models.backbone.flops import segment_flops

    return segment_flops(config, segment_length)


def _reader(model: "Backbone", batch_size: int = 1, segment_length: int | None = None) -> Any:
    from memformer.models.backbone.reader import BackboneReader

    return BackboneReader(model, batch_size, segment_length)


def _check_wavefront(config: BackboneConfig, trained: bool = False) -> None:
    """Whether each layer's memory depends on no other layer's; `trained`: and whether no random numbers are drawn.

    Raises:
        ValueError: It does, or they are.
    """
    kind = config.memory.kind
    mend = "all layers wait for it, and a wavefront needs matrices of each layer's own, which is associative"
    require(kind == "associative", "memory.kind", kind, mend)
    drawn = {"dropout": config.dropout, "lora.dropout": config.lora.dropout if config.lora else 0}
    for name, value in drawn.items():
        require(not (trained and value), name, value, "a wavefront draws no masks")


def _wavefront(model: "Backbone", recompute: bool = False, moved: bool = True) -> Any:
    from memformer.models.backbone.wavefront import BackboneWavefront

    _check_wavefront(model.config)
    return BackboneWavefront(model, recompute, moved)


def _check_stages(config: BackboneConfig) -> None:
    """Whether each layer's memory can stay on the layer's stage.

    Raises:
        ValueError: It cannot.
    """
    kind = config.memory.kind
    mend = "all layers share it, and stages need matrices of each layer's own, which is associative: set it to that"
    require(kind == "associative", "memory.kind", kind, mend)


def _kind(part: Any) -> str | None:
    from memformer.models.backbone.associative import AssociativeWriter
    from memformer.models.backbone.computation import BackboneLayer

    return {BackboneLayer: "layer", AssociativeWriter: "writer"}.get(type(part))


def _costs(config: BackboneConfig, segment_length: int) -> list[LayerFlops]:
    from memformer.models.backbone.flops import layer_flops

    return layer_flops(config, segment_length)


def _cut(model: "Backbone", layers: range, _: range) -> Any:
    from memformer.models.backbone.stage import BackboneStage

    return BackboneStage(model, layers)


def _trained(config: BackboneConfig, train: str) -> list[bool]:
    """Of the memory, the first layer has the write tokens, those with a matrix its reader and writer."""
    return [train != "memory" or layer in (0, *config.memory_layers) for layer in range(config.num_layers)]


def _rows(config: BackboneConfig) -> tuple[int, ...]:
    each = config.memory_shape[0] // len(config.memory_layers)
    return tuple(each * (layer in config.memory_layers) for layer in range(config.num_layers))


def _inspect(model: "Backbone") -> Any:
    if model.config.memory.kind != "slots":
        return None
    from memformer.models.backbone.looking import BackboneSlots

    return BackboneSlots(model)


def _look(model: "Backbone", segment: Any, memory: Any) -> Any:
    from memformer.models.backbone.looking import look

    return look(model, segment, memory)


def _roles(module: Any) -> Iterator[tuple[Any, Role]]:
    from memformer.models.backbone.roles import roles

    return roles(module)


def _sizes(config: BackboneConfig) -> dict[str, int]:
    """What the number of tensor-parallel processes must divide.

    Raises:
        ValueError: It is not built for the architecture, or for dropout.
    """
    found = {f"backbone.{name}": size for name, size in sliced_sizes(config.backbone, config.architecture).items()}
    for name, size in found.items():
        require(type(size) is int and size >= 1, name, size, "give a whole number above 0")
    # Each process has heads of its own, and would drop what one process never does.
    mend = "the processes of parallel.tensor share the attention that has it: set it to 0, or that to 1"
    require(not config.dropout, "dropout", config.dropout, mend)
    return found | ({"memory.num_heads": config.memory_heads} if config.memory.kind == "slots" else {})


def _weights(config: BackboneConfig) -> Iterator[tuple[str, Any]] | None:
    if config.pretrained is None:
        return None
    from memformer.models.backbone.pretrained import weights

    return weights(config)


def _of_memory(name: str) -> bool:
    """What is the memory's own, and the readers beside the backbone's layers."""
    parts = name.split(".")
    return parts[0] == "memory" or (parts[0] == "stack" and parts[2] == "reader")


def _merge(config: BackboneConfig, tensor_of: Callable[[str], Any]) -> tuple[BackboneConfig, Callable[[str], Any]]:
    from memformer.models.backbone.lora import merged_weight

    return dataclasses.replace(config, lora=None), lambda name: merged_weight(name, config, tensor_of)


def _beside(config: BackboneConfig, directory: Path, names: Iterable[str], tensor_of: Callable[[str], Any]) -> None:
    if config.lora is None:
        return
    from memformer.models.backbone.lora import write_adapter

    write_adapter(directory, config, names, tensor_of)


FAMILY = Family(
    name=BackboneConfig.family,
    architecture="Backbone",
    config=BackboneConfig,
    build=_build,
    flops=_flops,
    reader=_reader,
    shard=Sharding(_sizes, _roles),
    stages=Stages(
        layers=lambda config: (config.num_layers, 0),
        words="the layers of model.backbone or model.pretrained",
        stacks=lambda config: [config.stacks[layer not in config.memory_layers] for layer in range(config.num_layers)],
        costs=_costs,
        width=lambda config: int(config.width),
        lengths=lambda config, segment_length: (config.length_of(segment_length),) * 2,
        kind=_kind,
        places=lambda config: {"layer": range(config.num_layers), "writer": config.memory_layers},
        trained=_trained,
        cut=_cut,
        home={"embedding": "first", "positions": "first", "memory": "first", "norm": "last", "head": "last"},
        rows=_rows,
        check=_check_stages,
    ),
    inspect=_inspect,
    look=_look,
    memory=_of_memory,
    adapter=is_adapter,
    merge=_merge,
    beside=_beside,
    weights=_weights,
    export=Export(
        code="backbone_lm",
        code_file=CODE_FILE,
        config=config_json,
        place=weight_place,
        facts=memory_facts,
        beside=files_beside,
        base=base_files,
    ),
    wavefront=Wavefronts(_check_wavefront, _wavefront),
)
