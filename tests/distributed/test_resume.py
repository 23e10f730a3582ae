# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Two real processes train, one life breaks off, a second life resumes: nothing may differ from a run in one life.

Covers: memformer/checkpoints/saving.py, memformer/checkpoints/state.py, memformer/engine/parameter_state.py,
memformer/training/evaluation.py, memformer/training/loop.py, memformer/training/measuring.py,
memformer/training/reports.py, memformer/training/save_schedule.py, memformer/training/trainer.py
"""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from memformer import load_model
from memformer.checkpoints import directory as checkpoint_files
from memformer.checkpoints.exporting import export
from memformer.config.schema import Config, parse_config
from memformer.engine.making import make_engine
from memformer.processes.group import World
from memformer.run import jsonl
from memformer.run.directory import TIMING_FIELDS, RunDirectory
from memformer.training import Callback, TrainingState, train
from tests.books import small_dataset
from tests.distributed.processes import Crew

STEPS, CRASH_AT = 6, 5
CRASHES = (3, "fp32")
VARIANTS = [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"), (3, "fp16"), (3, "tensor")]
VARIANTS += [(stage, "wavefront") for stage in (0, 1)]
MEMFORMER = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "d_model": 32,
    "num_heads": 2,
    "d_ff": 64,
    "num_memory_slots": 4,
    "dropout": 0.1,
}
BACKBONE = {
    "family": "backbone",
    "backbone": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "memory": {"d_key": 3, "num_write_tokens": 2, "layers": [0, 2]},
    "lora": {"rank": 2},
}


class Crash(BaseException):
    """Breaks a run off."""


class CrashAfter(Callback):
    """Breaks a run off between an optimizer step and its log line.

    Args:
        step: The step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == self.step:
            raise Crash


class CopyAfter(Callback):
    """Copies what a crash at the same moment would leave: in the run directory, between a step and its log line.

    Args:
        step: The step.
        run: The directory that becomes the copy.
    """

    def __init__(self, step: int, run: Path) -> None:
        self.step, self.run = step, run

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == self.step:
            dist.barrier()
            if dist.get_rank() == 0:
                # Not the lock, which says truly that this process still runs.
                shutil.copytree(state.config.run_dir, self.run, ignore=shutil.ignore_patterns("lock"))
            dist.barrier()


def config_of(root: Path, name: str, stage: int, precision: str) -> Config:
    """The variants in fp16 are also those with offload, and with a loss scale that overflows and grows. Pictures of the
    memory are drawn in one life of each: that they change no figure is compared too. A wavefront comes with adapters.
    """
    fp16, wavefront = precision == "fp16", precision == "wavefront"
    return parse_config(
        {
            "run_dir": str(root / f"{name}-{stage}-{precision}"),
            "precision": "fp32" if precision in ("tensor", "wavefront") else precision,
            "model": BACKBONE if wavefront else MEMFORMER,
            "data": {
                "path": str(root / "data"),
                "num_lanes": 4,
                "segment_length": 32,
                "num_segments": 3,
                "audit": True,
            },
            "training": {
                "max_steps": STEPS,
                "eval_interval": 3,
                "eval_segments": 4,
                "diagnostics_interval": 2,
                "wavefront_window": 2 if wavefront else 0,
                "train": "lora" if wavefront else "all",
                "memory_pictures_interval": STEPS if stage == 3 and name == "whole" else 0,
            },
            "optimizer": {"warmup_steps": 2},
            "parallel": {
                "zero_stage": stage,
                "tensor": 2 if precision == "tensor" else 1,
                "offload_optimizer": "cpu" if fp16 else "none",
                "offload_parameters": "cpu" if fp16 and stage == 3 else "none",
            },
            "loss_scale": {"initial": 2.0**20, "growth_interval": 2},
            "checkpoint": {"interval": 2, "keep_last": 5},
        },
        "test",
    )


def two_lives(config: Config, crash_at: int) -> None:
    with pytest.raises(Crash):
        train(config, callbacks=[CrashAfter(crash_at)])
    train(config)


def crash_and_resume(world: World, root: str, stage: int, precision: str) -> None:
    """One life, and one that goes on between checkpoints, from what that one had left by then.

    One variant crashes there in truth; tests/faults kills such runs at other moments.
    """
    whole, broken = (config_of(Path(root), name, stage, precision) for name in ("whole", "broken"))
    if (stage, precision) == CRASHES:
        train(whole)
        two_lives(broken, CRASH_AT)
    else:
        train(whole, callbacks=[CopyAfter(CRASH_AT, Path(broken.run_dir))])
        train(broken)


def crash_early(world: World, root: str) -> None:
    two_lives(config_of(Path(root), "early", 1, "fp32"), crash_at=1)


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew(2) as processes:
        yield processes


Runs = Callable[[int, str], Path]
"""Gives the directory of a variant's runs; they are trained when it is first asked for."""


@pytest.fixture(scope="module")
def runs(crew: Crew, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    small_dataset(root)

    @functools.cache
    def trained(stage: int, precision: str) -> Path:
        crew.run(crash_and_resume, str(root), stage, precision)
        return root

    return trained


def metrics_of(run: RunDirectory) -> list[dict[str, Any]]:
    rows = jsonl.records(run.metrics)
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]


@pytest.mark.parametrize(("stage", "precision"), VARIANTS)
def test_resumed_run_is_bit_equal(runs: Runs, stage: int, precision: str) -> None:
    """Losses, gradient norms, memory figures: equal to the last bit, each step once; so is what was read."""
    whole, broken = (
        RunDirectory(runs(stage, precision) / f"{name}-{stage}-{precision}") for name in ("whole", "broken")
    )
    assert metrics_of(broken) == metrics_of(whole)
    assert [row["step"] for row in metrics_of(whole)] == list(range(1, STEPS + 1))
    for rank in (0, 1) if precision != "tensor" else (0,):
        name = f"rank-{rank:05d}.jsonl"
        assert (broken.audit / name).read_text() == (whole.audit / name).read_text()
    events = jsonl.records(broken.events)
    if precision == "fp16":
        scales = [row["loss_scale"] for row in metrics_of(whole)]
        assert len(set(scales)) > 2 and scales != sorted(scales, reverse=True), scales
    assert [event["step"] for event in events if event["event"] == "resume"] == [4]


def test_a_run_that_broke_off_before_its_first_checkpoint_starts_afresh(runs: Runs, crew: Crew) -> None:
    """What the first life logged is trained again: it stands in the files once."""
    root = runs(1, "fp32")
    crew.run(crash_early, str(root))
    whole, early = RunDirectory(root / "whole-1-fp32"), RunDirectory(root / "early-1-fp32")
    assert metrics_of(early) == metrics_of(whole)
    assert (early.audit / "rank-00001.jsonl").read_text() == (whole.audit / "rank-00001.jsonl").read_text()


@pytest.mark.parametrize(("stage", "precision"), VARIANTS)
def test_export_of_any_stage_gives_the_trained_weights(runs: Runs, tmp_path: Path, stage: int, precision: str) -> None:
    """Both lives export the same weights, and their losses are those the checkpoint recorded."""
    exported = []
    for name in ("whole", "broken"):
        result = export(runs(stage, precision) / f"{name}-{stage}-{precision}", tmp_path / name)
        assert result["step"] == STEPS
        assert result["largest_loss_difference"] < 1e-5
        exported.append(load_model(tmp_path / name).state_dict())
    assert all(torch.equal(exported[0][key], exported[1][key]) for key in exported[0])


def trained_logits(world: World, root: str, stage: int) -> list[float]:
    """The last checkpoint's losses on a fixed input, by the engine that loads it."""
    from memformer import Memformer
    from memformer.checkpoints.state import load_parameters
    from memformer.models.probe import probe
    from memformer.run.data import TrainingData

    config = config_of(Path(root), "whole", stage, "fp32")
    model = TrainingData.open(config.data).complete(config.model, config.data.segment_length)
    torch.manual_seed(99)
    engine = make_engine(Memformer(model), config, world, "fp32")
    load_parameters(checkpoint_files.locate(config.run_dir), engine)
    engine.model.eval()
    losses = probe(engine.model, world.device)
    engine.close()
    return losses


def test_exported_model_scores_like_the_engine(runs: Runs, crew: Crew, tmp_path: Path) -> None:
    from memformer.models.probe import probe

    root = runs(3, "fp32")
    expected = crew.run(trained_logits, str(root), 3)[0]
    export(root / "whole-3-fp32", tmp_path / "model")
    assert probe(load_model(tmp_path / "model"), torch.device("cpu")) == pytest.approx(expected, abs=1e-5)


def test_pictures_of_the_memory_are_images_of_tensorboard(runs: Runs) -> None:
    """Under ZeRO-3, where every process must take part and the bias is sharded."""
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(
        str(RunDirectory(runs(3, "fp32") / "whole-3-fp32").tensorboard), size_guidance={"images": 0}
    )
    board.Reload()
    names = {"self_weight", "kinds", "similarity", "tokens", "perturbation"}
    assert set(board.Tags()["images"]) == {f"memory/{name}" for name in names}
    images = board.Images("memory/self_weight")
    assert [image.step for image in images] == [STEPS]
    assert images[0].width > 100 and images[0].encoded_image_string.startswith(b"\x89PNG")
