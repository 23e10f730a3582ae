# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A run moves between numbers of processes, tensor parallelism, ZeRO stages and lanes: only rounding may change.

Covers: memformer/checkpoints/lane_states.py
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import memformer.engine.replay_engine
from memformer import Memformer, load_model
from memformer.checkpoints import directory as checkpoint_files
from memformer.checkpoints.exporting import export
from memformer.checkpoints.lane_states import LaneStates
from memformer.checkpoints.resuming import check_fits
from memformer.checkpoints.tensor_file import layout_of, write_tensors
from memformer.processes.group import World
from memformer.replay import Carry
from memformer.run.directory import RunDirectory
from memformer.training.trainer import train
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.faults.lives import assert_every_token_once, audit_of, events_of, metrics_of, tiny_config

PROCESSES = (2, 1, 4, 2)
LAST_STEPS = (3, 6, 9, 14)
STAGES = {
    "1-3-2-0": (1, 3, 2, 0),
    "0-2-1-3": (0, 2, 1, 3),
    "tensor 3-0-1-2": (3, 0, 1, 2),
    "tensor 0-1-3-2": (0, 1, 3, 2),
}
TENSOR = {"tensor 3-0-1-2": (2, 1, 2, 2), "tensor 0-1-3-2": (2, 1, 2, 1)}
LOOKS = {"eval_interval": 7, "eval_segments": 4, "diagnostics_interval": 7}
GROWING = {"num_segments": {0: 1, 4: 3, LAST_STEPS[2]: 2}}
"""Segments of a step change within a life, and between two."""
LANES = {"fewer and more": (8, 2, 8, 4)}

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def live(world: World, root: str, life: int) -> None:
    """One life of every run."""
    for name, stages in STAGES.items():
        training = {"max_steps": LAST_STEPS[life], **LOOKS}
        parallel = {"zero_stage": stages[life], "tensor": TENSOR.get(name, (1, 1, 1, 1))[life]}
        train(tiny_config(Path(root), name, data=GROWING, training=training, parallel=parallel))
    for name, lanes in LANES.items():
        frozen_life(world, Path(root), name, life, lanes[life])
    if world.size == 1:
        train(tiny_config(Path(root), "whole", data=GROWING, training={"max_steps": LAST_STEPS[-1], **LOOKS}))
        frozen_life(world, Path(root), "whole frozen", 3, 4, first=0)


def frozen_life(world: World, root: Path, name: str, life: int, lanes: int, first: int | None = None) -> None:
    """A life of a run whose weights stay as they are, with the loss of each segment of each lane written down."""
    first = (0, *LAST_STEPS)[life] if first is None else first
    own = lanes // world.size
    lines: list[str] = []
    original = memformer.engine.replay_engine.memory_replay_backward

    def recording(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        step, lane = first + 1 + len(lines) // own, world.rank * own + len(lines) % own
        lines.append(json.dumps({"step": step, "lane": lane, "losses": result.segment_losses.tolist()}))
        return result

    memformer.engine.replay_engine.memory_replay_backward = recording
    try:
        train(
            tiny_config(
                root,
                name,
                data={"num_lanes": lanes},
                training={"max_steps": LAST_STEPS[life], "lanes_per_micro_batch": 1},
                optimizer={"learning_rate": 1e-30, "weight_decay": 0.0},
            )
        )
    finally:
        memformer.engine.replay_engine.memory_replay_backward = original
    (root / name / f"losses-{life}-{world.rank}.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("elastic")
    small_dataset(root, characters=3_000)
    for life, processes in enumerate(PROCESSES):
        run_distributed(live, processes, str(root), life)
    return root


@pytest.mark.parametrize("name", STAGES)
def test_losses_equal_the_uninterrupted_run(runs: Path, name: str) -> None:
    moved, whole = metrics_of(RunDirectory(runs / name)), metrics_of(RunDirectory(runs / "whole"))
    assert [row["step"] for row in moved] == list(range(1, LAST_STEPS[-1] + 1))
    for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        assert [row[key] for row in moved] == pytest.approx([row[key] for row in whole], rel=tolerance)
    for ours, theirs in zip(moved, whole, strict=True):
        assert ours["memory_gradient_norms"] == pytest.approx(theirs["memory_gradient_norms"], rel=1e-4)
    assert [row["tokens"] for row in moved] == [row["tokens"] for row in whole]
    assert [row["num_segments"] for row in moved] == [1] * 4 + [3] * 5 + [2] * 5
    changes = [event["changes"] for event in events_of(RunDirectory(runs / name), "resume")]
    expected = [f"ZeRO {a} -> {b}" for a, b in zip(STAGES[name], STAGES[name][1:], strict=False)]
    assert [next(each for each in change if each.startswith("ZeRO")) for change in changes] == expected
    steps = [f"training.max_steps {a} -> {b}" for a, b in itertools.pairwise(LAST_STEPS)]
    assert [change[-1] for change in changes] == steps
    if name in TENSOR:
        assert changes[0][1] == "tensor 2 -> 1" and changes[1][1] == "tensor 1 -> 2"
    assert [change[0] for change in changes] == ["2 -> 1 processes", "1 -> 4 processes", "4 -> 2 processes"]


@pytest.mark.parametrize("name", STAGES)
def test_what_is_looked_at_on_the_way_equals_the_uninterrupted_run(runs: Path, name: str) -> None:
    """Held-out losses, and how the writer treats the memory, at steps that other processes computed."""
    moved, whole = RunDirectory(runs / name), RunDirectory(runs / "whole")
    for step in (7, 14):
        for mode in ("with_memory", "memory_reset"):
            ours, theirs = (next(e for e in events_of(r, "evaluation") if e["step"] == step) for r in (moved, whole))
            assert ours[mode]["tokens"] == theirs[mode]["tokens"] > 0
            assert ours[mode]["loss"] == pytest.approx(theirs[mode]["loss"], rel=1e-5)
        ours, theirs = (metrics_of(run)[step - 1]["memory"] for run in (moved, whole))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [*STAGES, *LANES])
def test_every_token_is_read_once(runs: Path, name: str) -> None:
    assert_every_token_once(RunDirectory(runs / name))


@pytest.mark.parametrize("name", LANES)
def test_a_memory_follows_its_document_to_any_lane(runs: Path, name: str) -> None:
    """With frozen weights a segment's loss depends on its memory and context alone: it is the same in any layout."""
    moved, whole = losses_by_segment(runs / name), losses_by_segment(runs / "whole frozen")
    common = moved.keys() & whole.keys()
    assert len(common) > 60
    carried = [key for key in common if key[2] > 0]
    assert len(carried) > 40, "no segment depends on a carry: the test proves nothing"
    assert [moved[key] for key in common] == pytest.approx([whole[key] for key in common], rel=1e-5)


def losses_by_segment(run: Path) -> dict[tuple[int, int, int], float]:
    """(epoch, document, start) -> sum of the segment's losses in nats."""
    losses = {
        (row["step"], row["lane"]): row["losses"]
        for path in run.glob("losses-*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }
    rows = audit_of(RunDirectory(run))
    return {
        (row["epoch"], row["document"], row["start"]): losses[row["step"], row["lane"]][row["segment"]] for row in rows
    }


def test_checkpoints_of_all_stages_export_the_same_model(runs: Path, tmp_path: Path) -> None:
    """To rounding, relative to what training has changed."""
    weights = {}
    for name in ("whole", *STAGES):
        assert export(runs / name, tmp_path / name)["largest_loss_difference"] < 1e-5
        model = load_model(tmp_path / name)
        weights[name] = torch.cat([p.flatten() for p in model.parameters()])
    torch.manual_seed(0)
    initial = torch.cat([p.detach().flatten() for p in Memformer(model.config).parameters()])
    for name in STAGES:
        error = (weights[name] - weights["whole"]).norm() / (weights["whole"] - initial).norm()
        assert error < 1e-4, name
        checkpoint_files.verify(checkpoint_files.locate(runs / name))


def test_checkpoints_of_the_format_before_are_read(runs: Path, tmp_path: Path) -> None:
    """Format 2 knew neither tensor parallelism nor blocks of rows and columns."""
    new = checkpoint_files.locate(runs / "1-3-2-0")
    old = tmp_path / "run" / "checkpoints" / new.name
    shutil.copytree(new, old)
    for path in (old / "parameters").iterdir():
        with safe_open(str(path), framework="pt") as opened:
            metadata = {name: text for name, text in opened.metadata().items() if name != "blocks"}
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # load_file maps it
        write_tensors(path, layout_of(tensors), tensors.__getitem__, metadata)
    state = checkpoint_files.read_state(old)
    for name in ("pipeline", "tensor", "replicas"):
        del state[name]
    (old / "state.json").write_text(json.dumps({**state, "format": 2}))
    manifest = {**checkpoint_files.read_manifest(old), "format": 2}
    manifest["files"] = {name: checkpoint_files.describe_file(old, name) for name in manifest["files"]}
    manifest["sha256"] = checkpoint_files._own_checksum(manifest)
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert check_fits(old, {**checkpoint_files.read_state(new), "world_size": 1}) == ["2 -> 1 processes"]
    assert export(old, tmp_path / "old")["largest_loss_difference"] < 1e-5


def test_a_waiting_carry_goes_to_the_lane_that_takes_it() -> None:
    memory = torch.arange(2.0)[:, None, None].expand(2, 3, 4)
    lanes = LaneStates(
        Carry(memory, torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 5]), ragged=False),
        {7: (torch.full((3, 4), 7.0), torch.full((5,), 7), torch.tensor(3))},
    )
    carry = lanes.before(np.array([-1, 7]))
    assert carry.memory[:, 0, 0].tolist() == [0.0, 7.0]
    assert carry.tokens[:, 0].tolist() == [0, 7] and carry.length.tolist() == [5, 3] and carry.ragged
    assert lanes.before(np.array([-1, -1])) is lanes.carry
    assert list(lanes.after(carry, [0, 1, 7]).waiting) == [7] and not lanes.after(carry, [0, 1]).waiting
