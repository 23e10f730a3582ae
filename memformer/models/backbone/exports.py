# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How an export of a backbone is laid out: the language model as transformers has it, and its memory beside it.

    config.json  model.safetensors  tokenizer files  generation_config.json     what AutoModelForCausalLM opens
    memory.json  memory.safetensors  modeling_memory.py                         the memory, and code that knows it

The language model loads without the memory, with every tensor that it asks for and none besides. Imports no torch by
itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memformer.models.backbone.config import BackboneConfig
from memformer.models.backbone.directory import place, read_config, weight_places

CODE_FILE, CODE_CLASS = "modeling_memory.py", "BackboneForCausalLM"
BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
"""Files of a pretrained directory that go along with its weights, where it has them."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def weight_place(config: BackboneConfig) -> Callable[[str], tuple[str, tuple[str, ...]]]:
    """Where each parameter is: of the backbone under transformers' name, of the memory under ours."""
    from memformer.models.backbone.parts import file_names

    def placed(name: str) -> tuple[str, tuple[str, ...]]:
        names = file_names(name, config.architecture)
        return ("model", tuple(names)) if names else ("memory", (name,))

    return placed


def config_json(config: BackboneConfig, dtype: str) -> dict[str, Any]:
    """The language model's config.json; one that was given by its sizes alone gets what follows from the data."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    values = dict(config.backbone)
    if config.pretrained is None:
        ids = {"bos_token_id": config.bos, "eos_token_id": None, "pad_token_id": None}
        values = {"vocab_size": config.own_vocabulary, "tie_word_embeddings": bool(config.tied())} | ids | values
    return values | {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[values["model_type"]]],
        "dtype": _DTYPES[dtype],
        "auto_map": {"AutoModelForCausalLM": f"{CODE_FILE.removesuffix('.py')}.{CODE_CLASS}"},
    }


def memory_facts(config: BackboneConfig) -> dict[str, Any]:
    """The memory and what a segment sees, as memory.json has them at its top."""
    length = config.reading_length(None)
    return {
        "kind": config.memory.kind,
        "memory_shape": list(config.memory_shape),
        "memory_layers": [] if config.memory.kind == "tokens" else list(config.memory_layers),
        "segment_length": length,
        "overlap": config.overlap_of(length),
        "segment_bos": config.segment_bos,
        "start_token_id": config.start_token_id,
        "bos_token_id": config.bos,
    }


def files_beside(config: BackboneConfig) -> list[Path]:
    """Tokenizer files and the like of the directory that the run began with; none where it is gone, or another one."""
    if not _is_there(config):
        return []
    assert config.pretrained is not None
    return [file for name in BESIDE if (file := place(config.pretrained) / name).is_file()]


def base_files(config: BackboneConfig) -> tuple[Path, list[Path]] | None:
    """The directory that the run began with, and its weights' files; None: it began with drawn weights.

    Raises:
        ValueError: The directory is gone, or no longer a model; see `directory.weight_places`.
    """
    if config.pretrained is None:
        return None
    places = weight_places(config.pretrained)
    directory = place(config.pretrained).resolve()
    names = {"model.safetensors"} if places is None else {file.name for file in places.values()}
    return directory, [directory / name for name in sorted(names)]


def _is_there(config: BackboneConfig) -> bool:
    """Whether the directory still holds the model that the run began with, as far as its config.json says."""
    if config.pretrained is None:
        return False
    try:
        return read_config(config.pretrained) == config.backbone
    except ValueError:
        return False
