# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Runs of a pretrained backbone over pipeline stages, each of which keeps the memories of its own layers.

They start from the weights of its directory, of which each stage reads its layers; a checkpoint holds each lane's whole
memory, so that one written on two stages goes on on one process and back. Updates, bytes and precisions:
test_equivalence.py. Tolerances: tests/memformer/models/family_runs.py.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from memformer import load_model
from memformer.checkpoints.exporting import export
from memformer.config.schema import parse_config
from memformer.engine.making import make_engine
from memformer.models.backbone.stage import BackboneStage
from memformer.models.registry import family_of
from memformer.parallel.pipeline.split import split_of
from memformer.processes.group import World
from memformer.replay import Carry
from memformer.replay.random_state import mix_seed, segment_seeds
from memformer.run import jsonl
from memformer.training.initial_weights import construction_of
from tests.books import small_dataset
from tests.distributed.processes import Crew
from tests.distributed.short_runs import LANES, LENGTH, Case, config_of, model_of, rollout_of
from tests.memformer.models.backbone.test_training import pretrained
from tests.memformer.models.family_runs import (
    assert_alike,
    assert_resumed,
    break_off,
    life,
    metrics,
    run_settings,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

DROPOUT = Case(0, data=1, pipeline=2, backbone="lower", pipeline_layers=(1, 2), lanes_per_micro_batch=2, dropout=0.3)
CASE = Case(1, data=1, pipeline=2, backbone="lower", pipeline_layers=(2, 1))


def settings(root: Path, name: str, pipeline: int) -> dict[str, Any]:
    model = {"family": "backbone", "pretrained": str(root / "base"), "memory": {"layers": [0, 2], "d_key": 4}}
    values = run_settings(root, name, 1, model)
    values["parallel"]["pipeline"] = pipeline
    return values


@torch.no_grad()
def answered(model: Any) -> list[torch.Tensor]:
    """What a model says of two segments without gradients: losses, memories, some logits."""
    rollout = rollout_of(1)
    memory, found = model.initial_memory(LANES) + 0.1, []
    carry = Carry.empty(memory, LENGTH)
    for t in range(2):
        segment = rollout.segment(t, carry)
        found += [model.logits(segment, memory, torch.tensor([[0, 2, 2], [1, 0, 7]]))[0]]
        found.append(model.advance(segment, memory))
        losses, memory = model.losses(segment, memory)
        found += [losses, memory]
    return found


def answers_of_stages(world: World) -> list[Any]:
    engine = make_engine(model_of(CASE), config_of(CASE), world.arranged(1, 2), "fp32")
    found = [each.numpy() for each in answered(engine.model)]
    engine.close()
    return found


def gradients_with_dropout(world: World) -> dict[str, Any]:
    """Of this stage, by name."""
    engine = make_engine(model_of(DROPOUT), config_of(DROPOUT), world.arranged(1, 2), "fp32")
    engine.rollout_backward(rollout_of(1), Carry.empty(engine.initial_memory(LANES) + 0.1, LENGTH), 50, seed=7)
    found = {name: p.grad.numpy() for name, p in engine.model.named_parameters() if p.grad is not None}
    engine.close()
    return found


def reference_with_dropout(case: Case) -> dict[str, torch.Tensor]:
    """The same in one process: the stages called in turn, one graph over the rollout, masks from the same streams."""
    whole, rollout, objective = model_of(case), rollout_of(1), torch.zeros(())
    split = split_of(config_of(case), whole.config)
    stages = [BackboneStage(copy.deepcopy(whole), split.span(number)) for number in range(2)]
    with segment_seeds(mix_seed(7, 0), torch.device("cpu")) as seed_stream:
        for start in range(0, LANES, 2):
            part = rollout.lanes(start, start + 2)
            carry = Carry.empty(whole.initial_memory(2) + 0.1, LENGTH)
            memories = [carry.memory[:, split.memory(number)] for number in range(2)]
            for t in range(case.segments):
                x = None
                for number, stage in enumerate(stages):
                    seed_stream(2 * ((start * case.segments + t) * 2 + number))
                    x, memories[number] = stage.read_part(part.segment(t, carry), memories[number], x)
                objective = objective + x.sum()
    (objective / 50).backward()
    found = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    found["embedding.weight"] += stages[1].copy.grad
    return found


def held_by_stages(world: World, values: dict[str, Any]) -> int:
    """Elements that a process has drawn or read when its stage's model is made."""
    config, world = parse_config(values, "test"), world.arranged(1, 2)
    model = config.model.completed(257, 256, 16)
    made = family_of(model).build(model, construction_of(config, model, world))
    return sum(p.numel() for name, p in made.named_parameters() if name.startswith(("stack.", "memory.writers.")))


def on_two(world: World, root: str) -> list[Any]:
    runs = [settings(Path(root), name, 2) for name in ("stages", "to stages")]
    return [
        life(world, *runs),
        answers_of_stages(world),
        held_by_stages(world, runs[0]),
        gradients_with_dropout(world),
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stages")
    small_dataset(made, characters=6_000)
    pretrained(made)
    return made


@pytest.fixture(scope="module")
def found(root: Path) -> list[Any]:
    """Of each stage, what `on_two` returns; the runs are one, stages, and both ways between them, broken off or not."""
    with Crew(1) as alone, Crew(2) as both:
        assert alone.run(life, settings(root, "one", 1)) == [[0]]
        break_off(root / "one", "to stages")
        done = both.run(on_two, str(root))
        break_off(root / "stages", "from stages")
        break_off(root / "stages", "again")
        assert alone.run(life, settings(root, "from stages", 1)) == [[0]]
        assert both.run(life, settings(root, "again", 2)) == [[0]] * 2
    return done


def test_runs_on_stages_equal_one_process(root: Path, found: list[Any], tmp_path: Path) -> None:
    """Losses, evaluations, figures of the memory, exported weights; also where a checkpoint changed its topology."""
    assert [each[0] for each in found] == [[0, 0]] * 2
    weights = {}
    for name in ("one", "stages", "to stages", "from stages"):
        assert_alike(root / "one", root / name)
        assert export(root / name, tmp_path / name)["largest_loss_difference"] < 1e-5
        weights[name] = load_model(tmp_path / name).state_dict()
        evaluations = [event for event in jsonl.records(root / name / "events.jsonl") if event["event"] == "evaluation"]
        weights[name]["evaluated"] = torch.tensor(evaluations[-1]["with_memory"]["loss"])
        weights[name]["memory"] = torch.tensor([row["memory_gradient_norms"] for row in metrics(root / name)])
        for own, expected in zip(metrics(root / name), metrics(root / "one"), strict=True):
            assert own["memory"].keys() == expected["memory"].keys() >= {"retention", "read"}
            for figure, by_layer in expected["memory"].items():
                assert own["memory"][figure] == pytest.approx(by_layer, rel=1e-3, abs=1e-6), (name, figure)
    for name, own in weights.items():
        assert list(own) == list(weights["one"])
        for key, weight in weights["one"].items():
            torch.testing.assert_close(own[key], weight, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")


def test_a_resumed_run_is_equal_to_the_last_bit(root: Path, found: list[Any]) -> None:
    assert_resumed("again", root / "stages")


def test_stages_answer_together_as_the_whole_model(found: list[Any]) -> None:
    """Every stage has every answer; 1e-5 of rounding."""
    expected = answered(model_of(CASE))
    for _, answers, *_ in found:
        for own, value in zip(answers, expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(own), value, rtol=1e-5, atol=1e-5)


def test_dropout_is_replayed(found: list[Any]) -> None:
    """Gradients equal those of one graph with the same masks; rounding apart, 1e-5 of each gradient's norm."""
    expected, gradients = reference_with_dropout(DROPOUT), found[0][3] | found[1][3]
    assert gradients.keys() == expected.keys()
    without = reference_with_dropout(dataclasses.replace(DROPOUT, dropout=0.0))
    for name, gradient in gradients.items():
        difference = torch.from_numpy(gradient) - expected[name]
        assert float(difference.norm()) < 1e-5 * max(1e-3, float(expected[name].norm())), name
    name = "stack.1.block.self_attn.v_proj.weight"
    assert not torch.allclose(without[name], expected[name], rtol=0.1), "the masks matter"


def test_a_stage_makes_its_own_layers_alone(root: Path, found: list[Any]) -> None:
    model = parse_config(settings(root, "one", 1), "test").model.completed(257, 256, 16)
    whole = family_of(model).build(model).named_parameters()
    expected = sum(p.numel() for name, p in whole if name.startswith(("stack.", "memory.writers.")))
    own = [each[2] for each in found]
    assert sum(own) == expected and max(own) < 0.75 * expected
