# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The streams that a run opens from its settings: blends, addresses, and damage agreed on by real processes.

Covers: memformer/run/data.py
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import Blend, DocumentIndex, UserError, build_dataset, trace_rows
from memformer.config.schema import load_config
from memformer.processes.group import World
from memformer.processes.topology import Mesh
from memformer.run import jsonl
from memformer.run.data import TrainingData
from tests.data_pipeline.faulty_server import serving
from tests.data_pipeline.test_skipping import flip
from tests.distributed.processes import run_distributed


def read(world: World, file: str, batches: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    config = load_config(file)
    data = TrainingData.open(config.data)
    with data.train_stream(config, world) as stream:
        rows = [row for batch in itertools.islice(stream, batches) for row in trace_rows(batch, world.rank)]
        return rows, stream.state_dict()


def configuration(tmp_path: Path, **data: Any) -> str:
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    shape = {"num_lanes": 4, "segment_length": 64, "num_segments": 2}
    content = {"run_dir": str(run), "seed": 5, "data": {**shape, "cache_dir": str(tmp_path / "cache"), **data}}
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    return str(tmp_path / "config.yaml")


@pytest.mark.distributed
def test_processes_skip_alike_and_tell_it_once(dataset: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(dataset, tmp_path / "broken")
    flip(broken, 2, 7)
    file = configuration(tmp_path, path=str(broken), on_damage="skip")
    results = run_distributed(read, 2, file, 25)
    assert results[0][1] == results[1][1] and results[0][1]["skipped"] == "2 7"
    events = jsonl.records(tmp_path / "run" / "events.jsonl")
    assert sorted((event["event"], event["document"]) for event in events) == [
        ("skip_document", 2),
        ("skip_document", 7),
    ]
    assert all("does not have its checksum" in event["reason"] for event in events)
    single, _ = read(World(0, 1, 0, torch.device("cpu"), Mesh.of_data(0, 1)), file, 25)
    together = sorted(results[0][0] + results[1][0], key=lambda r: (r["step"], r["lane"], r["segment"]))
    assert [{**row, "rank": 0} for row in together] == sorted(
        single, key=lambda r: (r["step"], r["lane"], r["segment"])
    )


def test_settings_open_blends_splits_and_addresses(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    build_dataset([corpus], tmp_path / "split", validation_fraction=0.3)
    near = TrainingData.open(load_config(configuration(tmp_path, path=str(tmp_path / "split"))).data)
    assert isinstance(near.train, DocumentIndex) and near.held_out is not None
    sources = [{"path": str(tmp_path / "split"), "weight": 2}, {"path": str(dataset)}]
    blend = TrainingData.open(load_config(configuration(tmp_path, path=sources)).data)
    assert isinstance(blend.train, Blend) and blend.train.weights == (2.0, 1.0)
    assert blend.held_out is not None and blend.held_out.fingerprint == near.held_out.fingerprint
    assert blend.tokenizer_file.is_file()
    with serving(tmp_path) as server:
        for mode in ("spool", "range"):
            settings = configuration(tmp_path, path=f"{server.address}/split", remote_mode=mode)
            far = TrainingData.open(load_config(settings).data)
            assert far.train.fingerprint == near.train.fingerprint and far.held_out is not None
    with pytest.raises(UserError, match=r"data\.allow_pipe"):
        TrainingData.open(load_config(configuration(tmp_path, path="pipe:cat x")).data)
    with pytest.raises(UserError, match=r"data\.path"):
        load_config(configuration(tmp_path, path=[{"path": "x", "weight": -1}]))
