# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`roles`: what becomes of each module of a backbone when it is spread over tensor-parallel processes.

| part | sliced by | sums of [B, L, D] (forward + backward) |
|---|---|---|
| a layer's attention and its norms of heads | heads of queries, keys and values | 1 + 1 |
| its feed-forward | hidden width: gate and up rows, down columns | 1 + 1 |
| an adapter of what is cut by rows | B like it; A whole, its gradient summed | none: rank x inputs numbers, backward |
| an adapter of what is cut by columns | A like it; B whole | none: [B, L, rank], forward |
| slots: readers and writer | heads, as in a Memformer | 1 + 1 a reader; a gather of [B, K, D] + 1 of it |
| embedding, head, loss | vocabulary | 1 + 1, and 3 numbers a token |
| norms; associative and token memory | not at all: replicated, with equal gradients | |

Which linear maps of a layer are cut, and how, is what transformers' own plan says (`base_model_tp_plan`).
An associative memory is computed by every process: its readers' products are small beside a layer's, and a sum of what
the processes read would cost as much as a whole layer's.

Shapes: B lanes, L inputs of the backbone, D width, K slots.
"""

from collections.abc import Iterator

from torch import nn

from memformer.models.backbone.computation import BackboneLayer
from memformer.models.backbone.lora import LoraLinear
from memformer.models.backbone.model import Backbone
from memformer.models.backbone.slots import SlotReader, SlotWriter
from memformer.models.family_record import Role
from memformer.models.memformer import roles as of_memformer

STYLES = {"colwise": Role.COLUMNS, "rowwise": Role.ROWS, "replicated_with_grad_allreduce": Role.SUMMED}
"""Role by the style that transformers' plan names."""


def roles(module: nn.Module) -> Iterator[tuple[nn.Module, Role]]:
    """Every module inside that has a role.

    Args:
        module: A backbone, or a part of one as its construction makes them: the embedding, a layer, the head, which is
            the one part that is nothing but a linear map, or a part of the memory.

    Raises:
        ValueError: transformers' plan does not say what becomes of a layer's parameter.
    """
    if isinstance(module, nn.Embedding):
        yield module, Role.VOCABULARY
    if isinstance(module, nn.Linear):
        yield module, Role.HEAD
    for part in module.modules():
        match part:
            case Backbone():
                yield part.embedding, Role.VOCABULARY
                yield part.norm, Role.BEFORE
                yield part.head, Role.HEAD
            case BackboneLayer():
                yield from _of_layer(part)
            case SlotReader() | SlotWriter():
                yield part.norm, Role.BEFORE
                for inner in part.modules():
                    yield from of_memformer.own_roles(inner)


def _of_layer(layer: BackboneLayer) -> Iterator[tuple[nn.Module, Role]]:
    """Of transformers' layer, with its adapters."""
    found: list[tuple[nn.Module, Role]] = [
        (layer.block.get_submodule(name), Role.BEFORE) for name in layer.architecture.norms or ()
    ]
    for name, style in layer.plan.items():
        if style not in STYLES:
            raise ValueError(f"backbone: {name} is cut by the style {style}, not built: set parallel.tensor to 1")
        part, role = layer.block.get_submodule(name), STYLES[style]
        found.append((part, role))
        if isinstance(part, LoraLinear):
            found += _of_adapter(part, role)
    known = {id(parameter) for part, _ in found for parameter in part.parameters()}
    for name, parameter in layer.block.named_parameters():
        if id(parameter) not in known:
            raise ValueError(f"backbone: transformers does not say how {name} is cut: set parallel.tensor to 1")
    yield from found


def _of_adapter(part: LoraLinear, role: Role) -> Iterator[tuple[nn.Module, Role]]:
    if role is Role.COLUMNS:
        yield part.lora_A, Role.SUMMED
        yield part.lora_B, Role.COLUMNS
    else:
        yield part.lora_A, Role.ROWS
