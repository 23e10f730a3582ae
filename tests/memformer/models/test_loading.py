# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Exported models: loaded with torch and safetensors alone, refused when they do not fit.

Covers: memformer/models/memformer/family.py, memformer/models/probe.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from memformer import Memformer, load_model
from memformer.models.exported import FORMAT
from memformer.models.probe import probe
from tests.memformer.examples import small_model

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        ours = name in {"data_pipeline", "data_pipeline.faces"}  # how packages show their names: no package is needed
        if not ours and first in {"deepspeed", "pydantic", "yaml", "webdataset", "data_pipeline", "tensorboard"}:
            raise ImportError(f"{name} is not to be had here")
sys.meta_path.insert(0, Refuse())
import torch
from memformer import load_model
from memformer.models.probe import probe
print([probe(load_model(directory), torch.device("cpu")) for directory in sys.argv[1:]])
"""


def export_by_hand(model: Memformer, directory: Path) -> Path:
    """The files of an export."""
    directory.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["head.weight"]
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"format": FORMAT, "model": model.config.to_dict()}))
    return directory


def test_torch_and_safetensors_are_enough(tmp_path: Path) -> None:
    """In a process where importing DeepSpeed, pydantic and the rest fails, models score as before, tied or not."""
    models = [small_model(torch.float32, tie_embeddings=tied).eval() for tied in (True, False)]
    directories = [export_by_hand(model, tmp_path / f"model-{number}") for number, model in enumerate(models)]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, directories)], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == [probe(model, torch.device("cpu")) for model in models]


def test_loaded_model_is_ready_to_use(tmp_path: Path) -> None:
    directory = export_by_hand(small_model(torch.float32), tmp_path / "model")
    model = load_model(directory, dtype=torch.bfloat16)
    assert not model.training
    assert model.head.weight is model.embedding.tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    directory = export_by_hand(small_model(torch.float32), tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_model(tmp_path)
    weights = load_file(directory / "model.safetensors")
    save_file({name: weights[name] for name in sorted(weights)[1:]}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: does not fit config.json: Missing key"):
        load_model(directory)
    description = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="is not a Memformer export of format"):
        load_model(directory)
