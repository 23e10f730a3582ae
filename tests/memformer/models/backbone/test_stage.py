# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Stages of a backbone, each with the memories of its own layers, against the whole model.

Stages are threads of one process here, which execute their schedules and send each other float64 numbers, so that a
gradient is held to full back-propagation to 1e-12 (seen: 2e-14, the order of sums). Real processes:
tests/distributed/test_equivalence.py and tests/distributed/test_backbone_pipeline.py.

Covers: memformer/models/backbone/computation.py, memformer/models/staging.py
"""

import collections
import copy
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from memformer.config.schema import parse_config
from memformer.models.backbone import Backbone
from memformer.models.backbone.family import FAMILY
from memformer.models.backbone.stage import BackboneStage
from memformer.models.construction import Construction
from memformer.parallel.pipeline.construction import StagedConstruction, keep_layers
from memformer.parallel.pipeline.deepspeed_schedule import StageSchedule
from memformer.parallel.pipeline.executor import RolloutExecutor
from memformer.parallel.pipeline.split import Split, Work, lanes_of_groups, replay_schedule, split_of
from memformer.parallel.pipeline.stage import StagedModel
from memformer.replay import Carry, ReplayBuffer, bptt_backward
from tests.distributed.short_runs import LANES, LENGTH, rollout_of
from tests.memformer.models.backbone.examples import SIZES, config_of, make

CUT = FAMILY.stages
CASES = [
    ("llama", "associative", (2, 1), 2, 3),  # a head that is tied to the first stage's embedding
    ("llama", "associative", (1, 1, 1), 1, 3),
    ("gpt2", "one layer", (1, 1, 1), 2, 3),  # positions; stages before and behind the only memory
    ("qwen3", "armt", (1, 2), 3, 1),
    ("gpt_neox", "associative", (1, 2), 1, 2),
]


class Line:
    """The messages from one stage to another, in their order."""

    def __init__(self) -> None:
        self.contents: Any = collections.defaultdict(Future)
        self.sent = self.posted = 0


@dataclasses.dataclass
class Transfer:
    content: Any

    def wait(self) -> Any:
        return self.content.result(timeout=60)


class Channels:
    """Those of one stage to the others of this process (`parallel.channels.Channels`)."""

    dtype = torch.float64

    def __init__(self, number: int, lines: dict[tuple[int, int], Line]) -> None:
        self.number, self.lines = number, lines

    def send(self, kind: str, tensor: torch.Tensor, target: int) -> Transfer:
        line = self.lines[self.number, target]
        content = line.contents[line.sent]
        line.sent += 1
        content.set_result((kind, tensor.detach().clone()))
        return Transfer(content)

    def receive(self, kind: str, shape: Any, source: int) -> Any:
        line = self.lines[source, self.number]
        content: Any = line.contents[line.posted]
        line.posted += 1

        class Received:
            def wait(self) -> torch.Tensor:
                found, tensor = content.result(timeout=60)
                assert (found, tuple(tensor.shape)) == (kind, tuple(shape)), "in the order of sending"
                return tensor

        return Received()


class Engine:
    """What the executor asks of an engine, without one."""

    def __init__(self, stage: BackboneStage, model: StagedModel) -> None:
        self.stage, self.model = stage, model

    def forward(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        return self.stage(part, *inputs)

    @torch.no_grad()
    def evaluate(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        return self.stage(part, *inputs)

    def backward(self, objective: torch.Tensor) -> None:
        objective.backward()


def stages_of(whole: Backbone, split: Split) -> list[BackboneStage]:
    """Every stage of a model, which stays as it is."""
    return [BackboneStage(copy.deepcopy(whole), split.span(number)) for number in range(split.stages)]


@pytest.mark.parametrize(("kind", "memory", "layers", "groups", "segments"), CASES)
def test_stages_train_as_the_whole_model(
    kind: str, memory: str, layers: tuple[int, ...], groups: int, segments: int
) -> None:
    whole = make(config_of(kind, memory), moved=0.1)
    rollout = rollout_of(1, segments)
    rollout = dataclasses.replace(rollout, tokens=rollout.tokens % 30)
    first = whole.initial_memory(LANES)
    carry = Carry.empty(first + 0.1 * torch.randn_like(first), LENGTH)
    expected = bptt_backward(whole, rollout, carry, denominator=50.0)

    split = Split(layers, 3, CUT.rows(whole.config))
    stages = stages_of(whole, split)
    for stage in stages:
        stage.zero_grad()
    spans = lanes_of_groups(LANES, split.stages, -(-LANES // groups))
    schedule = replay_schedule(split, Work.of(whole.config, LENGTH, segments), len(spans), window=2)
    lines: dict[tuple[int, int], Line] = {(a, b): Line() for a in range(3) for b in range(3)}

    def run(number: int) -> RolloutExecutor:
        model = StagedModel(stages[number], split, number, Channels(number, lines))  # type: ignore[arg-type]
        own = dataclasses.replace(carry, memory=carry.memory[:, split.memory(number)])
        executor = RolloutExecutor(
            Engine(stages[number], model),
            schedule,
            StageSchedule(schedule, number),
            [(rollout.lanes(*span), own.lanes(*span)) for span in spans],
            50.0,
            lambda *_: None,
            lambda: None,
            ReplayBuffer,
        )
        executor.run()
        return executor

    with ThreadPoolExecutor(split.stages) as pool:
        done = list(pool.map(run, range(split.stages)))

    exact = {"rtol": 1e-12, "atol": 1e-12}
    assert all(line.sent == line.posted for line in lines.values())
    torch.testing.assert_close(
        sum(each.segment_losses.double() for each in done), expected.segment_losses, rtol=1e-6, atol=0
    )
    squares = sum(each.memory_gradient_squares for each in done)
    torch.testing.assert_close(squares.sqrt().double(), expected.memory_gradient_norms, rtol=1e-6, atol=0)
    memory_BKC = torch.cat(
        [
            torch.cat([each.final_memories[group] for group in range(len(spans))])
            for each in done
            if each.final_memories
        ],
        1,
    )
    torch.testing.assert_close(memory_BKC, expected.carry.memory, **exact)
    gradients = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    if stages[-1].copy is not None:
        gradients["embedding.weight"] += stages[-1].copy.grad
    assert sum(len(list(stage.named_parameters())) for stage in stages) == len(gradients), "each has one owner"
    for name, parameter in whole.named_parameters():
        assert (gradients[name] - parameter.grad).norm() <= 1e-12 * parameter.grad.norm(), name


@pytest.mark.parametrize("stage", range(2))
def test_a_stage_draws_what_one_process_draws_and_keeps_its_layers(stage: int) -> None:
    config = config_of("qwen2", "armt")
    split = Split((1, 2), 3, CUT.rows(config))
    own = split.own(stage, CUT.places(config))
    torch.manual_seed(3)
    whole = Backbone(config)
    torch.manual_seed(3)
    model = Backbone(config, StagedConstruction(CUT.kind, own, Construction()))
    keep_layers(model, CUT.kind, own)
    kept = dict(model.named_parameters())
    assert all(torch.equal(parameter, whole.get_parameter(name)) for name, parameter in kept.items())
    cut = BackboneStage(model, split.span(stage))
    names = {name for name, _ in cut.named_parameters()}
    assert {name.split(".")[1] for name in names if name.startswith("stack.")} == ({"0"}, {"1", "2"})[stage]
    assert {name.split(".")[2] for name in names if name.startswith("memory.writers")} == {str(stage)}
    alone = {"embedding.weight", "memory.words.rows"}, {"norm.weight", "head.weight"}
    assert alone[stage] <= names and not alone[1 - stage] & names
    assert cut.undecayed() == whole.undecayed() & names


def run_of(kind: str = "llama", memory: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    sizes = SIZES[kind] | {"num_attention_heads": 4, "num_key_value_heads": 4}
    model = {"family": "backbone", "backbone": sizes, "overlap": 2, "memory": memory or {}}
    data = {"path": "unused", "segment_length": LENGTH}
    return {"run_dir": "unused", "model": model, "data": data, "parallel": {"pipeline": 2}} | sections


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (run_of(memory={"kind": "slots", "num_slots": 4}), "pipeline: model.memory.kind is slots: all layers share it"),
        (run_of(memory={"kind": "tokens"}), "pipeline: model.memory.kind is tokens: all layers share it"),
        (run_of(parallel={"pipeline": 4}), "parallel.pipeline is 4, but the model has 3 layers"),
        (run_of(parallel={"pipeline": 2, "zero_stage": 2}), "parallel.zero_stage is 2: a pipeline"),
        (run_of(parallel={"pipeline": 2, "pipeline_layers": [3, 1]}), "3 in all (the layers of model.backbone or"),
        (
            run_of(
                memory={"rule": "armt", "d_key": 1, "layers": [0, 1]},
                parallel={"pipeline": 2, "tensor": 4},
                activation_checkpointing={"partition_activations": True},
            ),
            "parallel.tensor 4 does not divide the 102 numbers of a layer's memory (6 x 17): set it to false",
        ),
    ],
    ids=["slots", "tokens", "layers", "zero", "by hand", "partitioned"],
)
def test_what_cannot_be_cut_is_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_config(values, "run.yaml")
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_stage_without_anything_to_train_is_refused() -> None:
    """Of the memory alone: the last layer has none here, and is a stage of its own."""
    values = run_of(memory={"layers": [0, 1]}, training={"train": "memory"})
    values["parallel"] |= {"pipeline_layers": [2, 1]}
    config = parse_config(values, "run.yaml")
    model = config.model.completed(31, 30, LENGTH)
    with pytest.raises(
        UserError, match=r"^training\.train is memory, of which the layers of stage 1 .* \(2\+1 layers\)"
    ):
        split_of(config, model)
    values["parallel"] |= {"pipeline_layers": [1, 2]}
    assert split_of(parse_config(values, "run.yaml"), model).layers == (1, 2)
