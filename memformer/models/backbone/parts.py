# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of a language model of transformers, made one after another so that each can be spread as it comes.

transformers makes the whole model without numbers (on the meta device); from that its parts are taken, and each gets
its memory when its turn comes. Numbers are drawn by transformers' own rule for the model, unless they are read next, or
`initial_values` has another:

| parameter | `initial_values: fan_in` |
|---|---|
| linear weights | normal, std 1/sqrt(inputs) |
| last linear weight of a residual branch | the same, divided by sqrt(2 layers) |
| embeddings and head | normal, std 1/sqrt(D) |
| weight of the last norm | D^-1/4, against large logits of the token that was read where head and embedding are one |
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from memformer.models.backbone.architectures import Architecture
from memformer.models.backbone.config import BackboneConfig, is_adapter
from memformer.models.construction import Construction
from memformer.models.scoring import Head

Part = TypeVar("Part", bound=nn.Module)


def transformers_config(config: BackboneConfig, **changes: Any) -> Any:
    """The configuration as transformers has it, dropout as ours says.

    Raises:
        ValueError: transformers is not installed, or refuses the values.
    """
    try:
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise ValueError(
            f"family backbone needs transformers ({error}): pip install --no-deps 'transformers>=5.24,<6', as the "
            "project's make setup does"
        ) from None
    dropouts = dict.fromkeys(config.architecture.dropouts, config.dropout)
    values = config.backbone | {"vocab_size": config.own_vocabulary} | dropouts | changes
    # Ids that the file names may lie beyond a vocabulary that is made smaller, and nothing here asks for them.
    values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if "layer_types" in values:  # of a model that is made shorter than its file says
        values["layer_types"] = values["layer_types"][: values[config.architecture.sizes[0]]]
    try:
        return CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except Exception as error:  # strict fields of transformers raise classes of their own
        raise _refused(error) from None


def language_model(config: BackboneConfig, **changes: Any) -> Any:
    """The whole model of transformers, on the device that torch makes tensors on by default.

    Raises:
        ValueError: As of `transformers_config`.
    """
    made = transformers_config(config, **changes)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(logging.ERROR)
    try:
        return AutoModelForCausalLM.from_config(made, attn_implementation="sdpa", dtype=torch.get_default_dtype())
    except Exception as error:  # whatever a constructor of transformers makes of sizes that do not go together
        raise _refused(error) from None


def _refused(error: Exception) -> ValueError:
    words = " ".join(str(error).split())
    return ValueError(f"backbone: transformers refuses its sizes ({type(error).__name__}: {words}): mend them")


class Parts:
    """The parts of a model, each with its memory and its first numbers when it is asked for.

    A pretrained one has none yet, where the construction reads them.

    Args:
        config: The backbone.
        construction: How the parts come into being.

    Raises:
        ValueError: transformers is not installed, or refuses the values.
    """

    def __init__(self, config: BackboneConfig, construction: Construction) -> None:
        self._fan_in = config.initial_values == "fan_in"
        with torch.device("meta"):
            # All linear maps but the last ones of residual branches have D inputs.
            self._model = language_model(config, **({"initializer_range": config.width**-0.5} if self._fan_in else {}))
        self._body = getattr(self._model, config.architecture.body)
        self._architecture, self._built = config.architecture, construction.built
        self._empty = construction.reads and config.pretrained is not None
        self.std = float(self._model.config.initializer_range)

    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        return self._made(getattr(self._body, self._architecture.embedding))

    def layers(self) -> Iterator[nn.Module]:
        """The layers in their order; each is drawn when the iterator comes to it, and is then the caller's to build."""
        layers = getattr(self._body, self._architecture.layers)
        for layer in layers:
            self._drawn(layer)
            if self._fan_in:
                self._draw_outputs(layer, len(layers))
            yield layer

    def plan(self) -> dict[str, str]:
        """What transformers' plan of tensor parallelism says of the modules within a layer; empty where it has none."""
        layers = f"{self._architecture.layers}.*."
        plan: dict[str, str] = self._model.config.base_model_tp_plan or {}
        return {name.removeprefix(layers): style for name, style in plan.items() if name.startswith(layers)}

    def norm(self) -> nn.Module:
        """The norm behind the last layer."""
        norm = self._drawn(getattr(self._body, self._architecture.norm))
        if self._fan_in:
            nn.init.constant_(norm.weight, norm.weight.numel() ** -0.25)
        return self._built(norm)

    def head(self, tied_to: nn.Embedding | None) -> Head:
        """The head, whose weight is that of an embedding where one is given."""
        theirs = self._model.get_output_embeddings()
        head = Head(theirs.in_features, theirs.out_features, bias=theirs.bias is not None, device="meta")
        if tied_to is None:
            return self._made(head)
        head.weight = tied_to.weight
        return self._built(head)

    def rotary(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
        """(input, position_ids) -> cosines and sines; None: the model has no rotary positions.

        No part of the model: its frequencies are no weights, and must neither be rounded with these nor left without
        numbers where a model is made to be loaded into.
        """
        if self._architecture.rotary is None:
            return None
        with torch.device("cpu"):
            rotary = type(getattr(self._body, self._architecture.rotary))(self._model.config)

        def cosines_and_sines(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # The frequencies follow the model: from the host they would be copied, and waited for, in every segment.
            return rotary.to(x.device).forward(x, position_ids=position_ids)

        return cosines_and_sines

    def other(self, name: str | None) -> nn.Module | None:
        """A part that not all models have, by its name in the body."""
        return None if name is None else self._made(getattr(self._body, name))

    def _draw_outputs(self, layer: nn.Module, layers: int) -> None:
        for name, module in layer.named_modules():
            if name.rpartition(".")[2] in self._architecture.outputs:
                inputs = module.weight.shape[0 if self._architecture.transposed else 1]
                nn.init.normal_(module.weight, std=(inputs * 2 * layers) ** -0.5)

    def _made(self, part: Part) -> Part:
        return self._built(self._drawn(part))

    @torch.no_grad()
    def _drawn(self, part: Part) -> Part:
        device = torch.get_default_device()
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=device)))
        if self._empty:
            return part
        for module in reversed(list(part.modules())):  # a layer of GPT-2 draws anew what its children have drawn
            self._model._init_weights(module)
        return part


def file_names(name: str, architecture: Architecture) -> list[str]:
    """The names that files of transformers may have for a parameter of the backbone; none for what is added to it."""
    if is_adapter(name):
        return []
    own = {
        "embedding.": f"{architecture.embedding}.",
        "positions.": f"{architecture.positions}.",
        "norm.": f"{architecture.norm}.",
    }
    if name.startswith("head."):
        return [f"{head}.{name.removeprefix('head.')}" for head in architecture.head]
    if name.startswith("stack."):
        _, number, part, rest = name.split(".", 3)
        inner = f"{architecture.layers}.{number}.{rest}" if part == "block" else None
    else:
        inner = next((new + name.removeprefix(old) for old, new in own.items() if name.startswith(old)), None)
    return [] if inner is None else [f"{architecture.body}.{inner}", inner]
