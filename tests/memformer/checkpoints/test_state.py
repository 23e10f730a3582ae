# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a checkpoint records of the model: without dropout, and the model goes on as it was."""

import contextlib
import types
from typing import Any

import pytest
import torch

from memformer.checkpoints.state import probe_losses
from memformer.models.probe import probe
from tests.memformer.examples import small_model


def engine_of(model: torch.nn.Module) -> Any:
    """As much of an engine as a probe needs."""
    world = types.SimpleNamespace(device=torch.device("cpu"))
    return types.SimpleNamespace(model=model, world=world, master_weights=contextlib.nullcontext)


def test_probe_losses_are_those_without_dropout() -> None:
    model = small_model(torch.float32, dropout=0.5)
    found = probe_losses(engine_of(model))
    assert all(module.training for module in model.modules())
    assert found == probe(model.eval(), torch.device("cpu"))


def test_a_probe_that_fails_leaves_the_model_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("broken off")

    model = small_model(torch.float32)
    monkeypatch.setattr(model, "losses", broken)
    with pytest.raises(RuntimeError, match="broken off"):
        probe_losses(engine_of(model))
    assert all(module.training for module in model.modules())
