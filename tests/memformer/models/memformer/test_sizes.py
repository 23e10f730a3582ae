# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The shipped sizes in configs/model: each is what its name and its comment say."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from memformer import Memformer, MemformerConfig
from memformer.config.schema import load_config
from memformer.models.sizes import count_parameters
from tests import ROOT

FOLDER = ROOT / "configs" / "model"
FILES = sorted(FOLDER.glob("*.yaml"))
STATED = re.compile(r"^# Parameters: ([\d,]+) with a vocabulary of ([\d,]+)\.$", re.MULTILINE)


def stated(file: Path) -> tuple[int, int]:
    """(parameters, vocabulary) of a file's comment."""
    match = STATED.search(file.read_text())
    assert match, f"{file.name} does not state its parameters"
    return int(match[1].replace(",", "")), int(match[2].replace(",", ""))


def config_of(file: Path, folder: Path) -> MemformerConfig:
    """The model as a run that extends the file gets it, with the stated vocabulary."""
    run = folder / "run.yaml"
    run.write_text(yaml.safe_dump({"extends": [str(file)], "run_dir": "r", "data": {"path": "d"}}))
    return dataclasses.replace(load_config(run).model, vocab_size=stated(file)[1], start_token_id=0)


def test_the_sizes_are_there() -> None:
    wanted = "1.3b 350m 7b paper-mnist-2-6 paper-mnist-4-8 paper-wikitext-4-12 paper-wikitext-4-16 tiny"
    assert {file.stem for file in FILES} >= set(wanted.split())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_size_is_a_model_section_and_counts_as_stated(file: Path, tmp_path: Path) -> None:
    assert list(yaml.safe_load(file.read_text())) == ["model"]
    config, (parameters, _) = config_of(file, tmp_path), stated(file)
    assert count_parameters(config) == parameters
    with torch.device("meta"):
        assert sum(p.numel() for p in Memformer(config).parameters()) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("350m", 350e6), ("1.3b", 1.3e9), ("7b", 7e9)])
def test_names_are_within_5_percent(name: str, parameters: float) -> None:
    assert stated(FOLDER / f"{name}.yaml")[0] == pytest.approx(parameters, rel=0.05)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_paper_names_give_the_layers(file: Path, tmp_path: Path) -> None:
    match = re.fullmatch(r"paper-\w+-(\d+)-(\d+)", file.stem)
    if match:
        config = config_of(file, tmp_path)
        assert (config.num_encoder_layers, config.num_decoder_layers) == (int(match[1]), int(match[2]))
