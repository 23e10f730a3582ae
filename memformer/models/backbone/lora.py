# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Low-rank adapters of a backbone's linear maps (LoRA; Hu et al., 2021), and the form that PEFT has them in.

    y = W x + alpha / rank * B A x        A drawn as PEFT draws it, B zero, so that at first nothing is added

An adapted map keeps the names of its own parameters; beside `q_proj.weight` there are `q_proj.lora_A.weight` [rank,
inputs] and `q_proj.lora_B.weight` [outputs, rank]. PEFT (github.com/huggingface/peft) saves adapters as
adapter_config.json and adapter_model.safetensors, whose names are those of transformers behind `base_model.model.`.
What is here works on one tensor at a time, wherever the caller has them from: a model, a checkpoint, files.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from memformer.models.backbone.config import BackboneConfig, LoraConfig, is_adapter
from memformer.models.backbone.parts import file_names
from memformer.models.heads import Inputs

TensorOf = Callable[[str], torch.Tensor]
"""Name of a parameter of `Backbone` -> its tensor."""


class LoraLinear(nn.Module):
    """A linear map of the backbone with a low-rank one beside it.

    Args:
        base: `nn.Linear`, or transformers' Conv1D, whose weight is [inputs, outputs]. Its parameters become this one's.
        config: Rank, scale and dropout.
    """

    def __init__(self, base: Any, config: LoraConfig) -> None:
        super().__init__()
        self.transposed = not isinstance(base, nn.Linear)
        self.weight: nn.Parameter = base.weight
        self.bias: nn.Parameter | None = base.bias
        outputs, inputs = reversed(self.weight.shape) if self.transposed else self.weight.shape
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        self.inputs = Inputs()
        self.lora_A = nn.Linear(inputs, config.rank, bias=False)
        self.lora_B = nn.Linear(config.rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        if self.transposed:  # as Conv1D does it, to the same bits
            assert self.bias is not None
            y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)
        else:
            y = self.inputs.linear(x, self.weight, self.bias)
        added: torch.Tensor = self.lora_B(self.lora_A(self.inputs.dropout(x, self.dropout, self.training)))
        return y + self.scale * added


def adapted(block: nn.Module, config: BackboneConfig) -> nn.Module:
    """Puts the adapters that the configuration asks for into a layer of the backbone, which is returned."""
    if config.lora is None:
        return block
    named = [name for name, _ in block.named_modules() if name.rpartition(".")[2] in config.adapter_targets]
    for name in named:
        place, _, last = name.rpartition(".")
        setattr(block.get_submodule(place), last, LoraLinear(block.get_submodule(name), config.lora))
    return block


def merged_weight(name: str, config: BackboneConfig, tensor_of: TensorOf) -> torch.Tensor:
    """A parameter of the base with its adapter in it, W + alpha / rank * B A.

    Args:
        name: A parameter of `Backbone` that is no adapter's.
        config: The model with its adapters.
        tensor_of: Gives tensors; asked for the weight, and for its adapter where it has one.

    Returns:
        The sum, in float32 or what is wider, since an adapter is small beside a weight that bfloat16 may hold; the
        weight as it is where it has no adapter.
    """
    weight = tensor_of(name)
    place, _, last = name.rpartition(".")
    is_target = name.startswith("stack.") and ".block." in name and place.rpartition(".")[2] in config.adapter_targets
    if config.lora is None or last != "weight" or not is_target:
        return weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b = (tensor_of(f"{place}.lora_{part}.weight").to(weight.device, wide) for part in "AB")
    added = config.lora.alpha / config.lora.rank * (b @ a)
    return weight.to(wide) + (added.T if config.architecture.transposed else added)


def adapter_tensors(
    config: BackboneConfig, names: Iterable[str], tensor_of: TensorOf
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name, as PEFT has it, and tensor of every adapter's matrix among the parameters named."""
    for name in filter(is_adapter, names):
        base, _, rest = name.rpartition(".lora_")
        theirs = file_names(f"{base}.weight", config.architecture)[0].removesuffix(".weight")
        yield f"base_model.model.{theirs}.lora_{rest}", tensor_of(name)


def adapter_config(config: BackboneConfig) -> dict[str, Any]:
    """What PEFT's adapter_config.json says of the adapters."""
    assert config.lora is not None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.pretrained,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": list(config.adapter_targets),
        "fan_in_fan_out": config.architecture.transposed,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def write_adapter(directory: Path, config: BackboneConfig, names: Iterable[str], tensor_of: TensorOf) -> None:
    """Writes the adapters as PEFT does: adapter_config.json and adapter_model.safetensors.

    Args:
        directory: Is there.
        config: The model with its adapters.
        names: Of its parameters.
        tensor_of: Gives the tensor of a parameter.

    Raises:
        OSError: The directory cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in adapter_tensors(config, names, tensor_of)}
    weights, description = directory / "adapter_model.safetensors", directory / "adapter_config.json"
    save_file(tensors, weights, {"format": "pt"})
    description.write_text(json.dumps(adapter_config(config), indent=1) + "\n")
    shutil.copymode(description, weights)  # save_file makes a file for its owner alone, whatever the umask
