# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run says at its start: numbers that follow from its settings, and what may not be meant, with the mend."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import UserError, build_dataset
from memformer.config.schema import parse_config
from memformer.processes.group import World
from memformer.processes.topology import Mesh
from memformer.run.data import TrainingData
from memformer.training.description import LOG, describe_run, told_to_services
from tests.books import TINY_MODEL, small_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, data: Path) -> Any:
    """Describes a run of some sections; what was said, and what of it is a warning."""
    monkeypatch.setattr(LOG, "propagate", True)
    caplog.set_level("INFO", LOG.name)

    def describe(**sections: Any) -> tuple[str, list[str]]:
        caplog.clear()
        values = {"run_dir": "r", "data": {"path": str(data), "num_lanes": 2, "segment_length": 32}, **sections}
        config = parse_config(values, "test")
        documents = TrainingData.open(config.data)
        model = documents.complete(config.model, config.data.segment_length)
        world = World(0, 1, 0, torch.device("cpu"), Mesh.of_data(0, 1))
        describe_run(config, model, documents, world, "fp32" if config.precision == "auto" else config.precision)
        return caplog.text, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return describe


def test_a_run_that_is_meant_so_warns_of_nothing(said: Any) -> None:
    text, warnings = said(model=TINY_MODEL, training={"max_steps": 100})
    assert not warnings
    assert "tokens in all, read " in text and "36,512 parameters" in text


def test_without_a_section_model_the_default_is_named(said: Any) -> None:
    _, warnings = said()
    assert len(warnings) == 1 and "no section model" in warnings[0] and "--model.d_model 128" in warnings[0]


def test_data_with_loss_weights_says_what_counts_and_is_refused_where_nothing_does(said: Any, tmp_path: Path) -> None:
    def built(name: str, ranges: list[list[float]]) -> dict[str, Any]:
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "memory " * 40, "loss_weights": ranges}))
        build_dataset([tmp_path / f"{name}.jsonl"], tmp_path / name, loss_weights_key="loss_weights")
        return {"path": str(tmp_path / name), "num_lanes": 1, "segment_length": 32, "num_segments": 2}

    text, warnings = said(model=TINY_MODEL, data=built("part", [[0, 70, 1]]), training={"eval_interval": 0})
    assert not warnings and "loss: of 25 % of these tokens, by the weights in the data; tokens and speed" in text
    with pytest.raises(
        UserError, match=r"data\.path: no token of .*none counts in the loss, all its loss weights are 0"
    ):
        said(model=TINY_MODEL, data=built("none", []))


def test_less_text_than_a_step_reads_is_named(said: Any, data: Path) -> None:
    values = {"path": str(data), "num_lanes": 64, "segment_length": 512}
    _, warnings = said(model=TINY_MODEL, data=values)
    assert (
        len(warnings) == 1 and "fewer than the 131,072 of one step" in warnings[0] and "give more text" in warnings[0]
    )


def test_fewer_documents_than_lanes_are_named(said: Any, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text("memory " * 400)
    build_dataset([tmp_path], tmp_path / "books")
    values = {"path": str(tmp_path / "books"), "segment_length": 32, "num_segments": 2}
    quiet = {"model": TINY_MODEL, "training": {"eval_interval": 0}}
    _, warnings = said(data={**values, "num_lanes": 4}, **quiet)
    assert len(warnings) == 1 and "holds 3 documents, fewer than the 4 lanes" in warnings[0]
    assert "data.num_lanes" in warnings[0]
    assert not said(data={**values, "num_lanes": 3}, **quiet)[1]


def test_no_held_out_documents_are_named_unless_none_are_wanted(said: Any, data: Path) -> None:
    values = {"path": str(data / "train"), "num_lanes": 2, "segment_length": 32}
    _, warnings = said(model=TINY_MODEL, data=values)
    assert len(warnings) == 1 and "no held-out documents" in warnings[0] and "--validation-fraction" in warnings[0]
    assert not said(model=TINY_MODEL, data=values, training={"eval_interval": 0})[1]


def test_a_stream_in_16_bits_without_16_bits_is_named(said: Any) -> None:
    model = {**TINY_MODEL, "residual_dtype": "compute"}
    _, warnings = said(model=model, training={"max_steps": 100})
    assert len(warnings) == 1 and "changes no number here: precision auto is fp32 on cpu" in warnings[0]
    assert "leave model.residual_dtype out" in warnings[0]


def test_sums_in_16_bits_without_16_bits_are_named(said: Any) -> None:
    training = {"max_steps": 100, "gradient_accumulation_dtype": "bfloat16"}
    _, warnings = said(model=TINY_MODEL, training=training)
    assert len(warnings) == 1 and "changes no number here: precision auto is fp32 on cpu" in warnings[0]
    assert "leave training.gradient_accumulation_dtype out" in warnings[0]
    assert not said(model=TINY_MODEL, training=training, precision="bf16")[1]


def test_services_are_told_nothing_secret(data: Path) -> None:
    config = parse_config({"run_dir": "r", "data": {"path": str(data)}}, "test")
    documents = TrainingData.open(config.data)
    model = documents.complete(config.model, config.data.segment_length)
    identity = {"settings": {"data": {"path": "https://host/set?sig=secret"}}}
    known = told_to_services(identity, config, model)
    assert known["settings"]["data"]["path"] == "https://host/set?***" and known["parameters"] > 0
