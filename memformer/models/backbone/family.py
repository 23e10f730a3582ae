# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The family `backbone`: what the system needs to know of it. Imports neither torch nor transformers by itself."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from memformer.models.backbone.config import BackboneConfig
from memformer.models.backbone.exports import (
    CODE_FILE,
    base_files,
    config_json,
    files_beside,
    memory_facts,
    weight_place,
)
from memformer.models.family_record import Export, Family

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


def _weights(config: BackboneConfig) -> Iterator[tuple[str, Any]]:
    if config.pretrained is None:
        return iter(())
    from memformer.models.backbone.pretrained import weights

    return weights(config)


FAMILY = Family(
    name=BackboneConfig.family,
    architecture="Backbone",
    config=BackboneConfig,
    build=_build,
    flops=_flops,
    reader=_reader,
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
)
