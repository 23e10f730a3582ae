# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Pipelines in real processes, beside test_equivalence.py: dropout, messages, skipped and given-up steps, runs.

Covers: memformer/engine/pipeline_engine.py, memformer/models/memformer/stage.py,
memformer/parallel/channels.py, memformer/parallel/pipeline/construction.py,
memformer/parallel/pipeline/deepspeed_schedule.py, memformer/parallel/pipeline/executor.py,
memformer/parallel/pipeline/stage.py, memformer/parallel/pipeline/traffic.py
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.activations import LiveTensors
from memformer import Memformer, load_model
from memformer.checkpoints.exporting import export
from memformer.engine.pipeline_engine import PipelineReplayEngine
from memformer.guards.faulty_steps import lane_losses
from memformer.models.construction import Construction
from memformer.models.memformer.family import FAMILY
from memformer.models.memformer.stage import MemformerStage
from memformer.models.protocol import MemoryModel
from memformer.parallel.pipeline.construction import StagedConstruction, keep_layers
from memformer.parallel.pipeline.split import Split, lanes_of_groups, split_of
from memformer.parallel.pipeline.traffic import sent_by_stage
from memformer.parallel.tensor import SlicedConstruction, sharding_of
from memformer.processes.collective_log import LOG
from memformer.processes.group import World
from memformer.processes.topology import Axis
from memformer.replay import Carry, Segment
from memformer.replay.random_state import mix_seed, segment_seeds
from memformer.run.directory import RunDirectory
from memformer.run.stop_requests import StepAbandoned
from memformer.training import Callback, TrainingState, train
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, LENGTH, Case, config_of, model_of, rollout_of
from tests.faults.lives import events_of, metrics_of, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STAGES = 2
DROPOUT = Case(0, data=1, pipeline=STAGES, pipeline_layers=(3, 1), dropout=0.3)
COUNTED = [
    Case(1, data=1, pipeline=STAGES, growing=True),
    Case(0, data=1, pipeline=STAGES, pipeline_layers=(1, 3), lanes_per_micro_batch=3, tie_embeddings=False),
    Case(1, data=1, pipeline=STAGES, pipeline_layers=(3, 1), segments=1, overlap=3),
    Case(1, data=1, pipeline=STAGES, num_memory_slots=0),
]


def engine_of(case: Case, world: World) -> PipelineReplayEngine:
    return PipelineReplayEngine(model_of(case), config_of(case), world.arranged(1, case.pipeline), case.precision)


def backward(engine: PipelineReplayEngine, case: Case, step: int, carry: Carry) -> Carry:
    rollout = rollout_of(step, case.segments)
    return engine.rollout_backward(rollout, carry, int(rollout.lengths.sum()), seed=7).carry


def gradients_with_dropout(world: World, case: Case) -> dict[str, torch.Tensor]:
    """Of all stages, by name."""
    engine = engine_of(case, world)
    backward(engine, case, 0, engine.empty_carry(LANES))
    own = {name: p.grad.numpy() for name, p in engine.model.named_parameters() if p.grad is not None}
    engine.close()
    return {name: each for stage in engine.world.mesh.pipe.gather(own) for name, each in stage.items()}


def stages_of(whole: Memformer, split: Split) -> list[MemformerStage]:
    """Every stage of a model, which stays as it is."""
    layers = ((split.encoder(stage), split.decoder(stage)) for stage in range(split.stages))
    return [MemformerStage(copy.deepcopy(whole), encoder, decoder) for encoder, decoder in layers]


def reference_with_dropout(case: Case) -> dict[str, torch.Tensor]:
    """The same in one process: the stages called in turn, one graph over the rollout, masks from the same streams."""
    config, whole = config_of(case), model_of(case)
    split = split_of(config, whole.config)
    stages = stages_of(whole, split)
    for stage in stages[1:]:
        if stage.copy is not None:
            stage.copy.requires_grad_()
    rollout = rollout_of(0, case.segments)
    objective = torch.zeros(())
    with segment_seeds(mix_seed(7, 0), torch.device("cpu")) as seed_stream:
        for start, stop in lanes_of_groups(LANES, split.stages, case.lanes_per_micro_batch):
            part, writer = rollout.lanes(start, stop), stages[split.writer_stage]
            carry = Carry.empty(writer.initial_memory(stop - start), LENGTH)
            memory = writer.begin(part.resets[:, 0], carry.memory)
            for t in range(case.segments):
                segment = part.segment(t, carry)
                reset = part.resets[:, t + 1] if t < case.segments - 1 else None
                x = y = None
                for number, stage in enumerate(stages):
                    stream = (start * case.segments + t) * split.stages + number
                    if len(stage.encoder):
                        seed_stream(2 * stream)
                        x, *after = stage.read_part(segment, memory, x, reset)
                        memory_after = after[0] if after else memory
                    if len(stage.decoder):
                        seed_stream(2 * stream + 1)
                        (y,) = stage.decode_part(segment, x, y)
                memory = memory_after
                objective = objective + y.sum()
    (objective / rollout.lengths.sum()).backward()
    found = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    for stage in stages[1:]:
        if stage.copy is not None:
            found["embedding.tokens.weight"] += stage.copy.grad
    return found


def messages_of_a_step(world: World, case: Case) -> tuple[Any, Any]:
    """(counted, predicted) of this stage, in the second step."""
    engine = engine_of(case, world)
    carry = engine.empty_carry(LANES)
    for step in range(2):
        LOG.messages.clear()
        carry = backward(engine, case, step, carry)
        engine.step(1e-3)
    counted = {kind: list(entry) for kind, entry in LOG.messages.items()}
    model, groups = engine.model, lanes_of_groups(LANES, case.pipeline, case.lanes_per_micro_batch)
    predicted = sent_by_stage(
        engine.schedule(LANES),
        model.config,
        LENGTH,
        [stop - start for start, stop in groups],
        (model.config.vocab_size or 0) * model.config.d_model,
    )
    engine.close()
    return counted, predicted[engine.model.number]


def poisoned(world: World, zero_stage: int) -> tuple[list[bool], bool]:
    """One stage's gradient is not finite: (was a step applied, by step), are all weights as they were."""
    case = Case(zero_stage, data=1, pipeline=STAGES)
    engine = engine_of(case, world)
    before = [p.detach().clone() for p in engine.module.parameters()]
    carry, applied = engine.empty_carry(LANES), []
    if engine.module.scores:
        hook = engine.module.head.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    backward(engine, case, 0, carry)
    applied.append(engine.step(1e-3).applied)
    same = all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
    if engine.module.scores:
        hook.remove()
    backward(engine, case, 0, carry)
    applied.append(engine.step(1e-3).applied)
    engine.close()
    return applied, same


def abandoned(world: World) -> list[torch.Tensor]:
    """Losses by lane and segment, computed by all stages after a rollout was given up at each of its agreements."""
    # At its first agreement messages are under way of both sorts: sent and not posted, posted and not sent.
    case = Case(1, data=1, pipeline=STAGES, pipeline_layers=(3, 1), lanes_per_micro_batch=4)
    engine, found = engine_of(case, world), []
    for at in range(case.segments - 1):
        calls = iter(range(case.segments))

        def give_up(at: int = at, calls: Any = calls) -> None:
            if next(calls) == at:
                raise StepAbandoned

        engine.at_segment = give_up
        with pytest.raises(StepAbandoned):
            backward(engine, case, 0, engine.empty_carry(LANES))
        found.append(lane_losses(engine, rollout_of(0), engine.empty_carry(LANES), seed=0).numpy())
    engine.close()
    return found


ANSWERING = [Case(1, data=1, pipeline=STAGES, pipeline_layers=layers, overlap=3) for layers in ((1, 3), (3, 1))]


def segment_and_memory(model: MemoryModel, case: Case) -> tuple[Segment, torch.Tensor]:
    """The second segment of the first rollout, and a memory that is not the initial one."""
    carry = Carry.empty(model.initial_memory(LANES).clone(), LENGTH)
    return rollout_of(0, case.segments).segment(1, carry), torch.roll(carry.memory, 1, dims=1)


@torch.no_grad()
def answers_of(model: MemoryModel, segment: Segment, memory: torch.Tensor) -> list[Any]:
    """All that a model is asked for without gradients."""
    tensors = [model.advance(segment, memory), *model(segment, memory), *model.losses(segment, memory)]
    tensors += [model.initial_memory(LANES), *(model.self_weights(segment, memory) or ())]
    return [tensor.numpy() for tensor in tensors]


def answers(world: World, case: Case) -> list[Any]:
    engine = engine_of(case, world)
    found = answers_of(engine.model, *segment_and_memory(engine.model, case))
    engine.close()
    return found


def measured(world: World) -> dict[str, Any]:
    return {
        "gradients": gradients_with_dropout(world, DROPOUT),
        "messages": [messages_of_a_step(world, case) for case in COUNTED],
        "poisoned": [poisoned(world, zero_stage) for zero_stage in (0, 1)],
        "abandoned": abandoned(world),
        "answers": [answers(world, case) for case in ANSWERING],
    }


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_distributed(measured, STAGES)


def test_dropout_is_replayed(found: list[dict[str, Any]]) -> None:
    """Gradients equal those of one graph with the same masks; rounding apart, 1e-5 of each gradient's norm."""
    expected = reference_with_dropout(DROPOUT)
    assert found[0]["gradients"].keys() == expected.keys() == dict(model_of(DROPOUT).named_parameters()).keys()
    without = reference_with_dropout(dataclasses.replace(DROPOUT, dropout=0.0))
    for name, gradient in found[0]["gradients"].items():
        error = float((torch.from_numpy(gradient) - expected[name]).norm() / expected[name].norm())
        assert error < 1e-5, name
    name = "embedding.tokens.weight"
    assert not torch.allclose(without[name], expected[name], rtol=0.1), "the masks matter"


@pytest.mark.parametrize("number", range(len(COUNTED)), ids=lambda number: str(COUNTED[number]))
def test_messages_are_those_predicted(found: list[dict[str, Any]], number: int) -> None:
    for stage in found:
        counted, predicted = stage["messages"][number]
        assert counted == predicted


def test_formulas_of_the_messages(found: list[dict[str, Any]]) -> None:
    """The table in parallel/pipeline/traffic.py: E = 2 encoder stages, the decoder beginning on the second, P = 1."""
    case = COUNTED[1]
    counted = {kind: entry for stage in found for kind, entry in stage["messages"][1][0].items()}
    b, t, s, k, d = LANES, case.segments, LENGTH, case.num_memory_slots, 32
    assert counted["memory"] == counted["memory_gradient"] == [2 * t, 4 * b * t * k * d]
    assert counted["stream"] == [2 * (2 * t - 1), 4 * b * (2 * t - 1) * s * d]
    assert counted["stream_gradient"] == [2 * t, 4 * b * t * s * d]
    assert counted["shared_weight"] == counted["shared_gradient"] == [1, 4 * 51 * d]
    assert "context" not in counted
    # The decoder on both stages, its input two tokens longer than a segment; two micro-batches.
    assert found[0]["messages"][2][0]["stream"] == [2, 4 * b * (s + COUNTED[2].overlap - 1) * d]


def test_a_step_is_skipped_by_all_stages(found: list[dict[str, Any]]) -> None:
    for stage in found:
        assert stage["poisoned"] == [([False, True], True)] * 2


def test_an_abandoned_step_leaves_no_message_behind(found: list[dict[str, Any]]) -> None:
    """What is computed next is right, on every stage: no stale message was taken for one of its own."""
    model, rollout = model_of(Case(1)), rollout_of(0)
    carry, expected = Carry.empty(model.initial_memory(LANES), LENGTH), []
    memory = carry.memory
    with torch.no_grad():
        for t in range(rollout.num_segments):
            segment = rollout.segment(t, carry)
            losses, memory = model.losses(segment, memory)
            expected.append(losses.sum(1) / segment.target_length.clamp(min=1))
    for stage in found:
        for losses in stage["abandoned"]:
            torch.testing.assert_close(torch.from_numpy(losses), torch.stack(expected, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", range(len(ANSWERING)), ids=lambda number: str(ANSWERING[number]))
def test_stages_answer_together_as_the_whole_model(found: list[dict[str, Any]], number: int) -> None:
    """Every stage has every answer; 1e-5 of rounding."""
    whole, case = model_of(ANSWERING[number]), ANSWERING[number]
    expected = answers_of(whole, *segment_and_memory(whole, case))
    assert len(expected) == 10
    for stage in found:
        for own, value in zip(stage["answers"][number], expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(own), torch.as_tensor(value), rtol=1e-5, atol=1e-5)


# Whole runs

STEPS, MOVE_AT, CRASH_AT = 6, 3, 5
PIPELINE = {"parallel": {"pipeline": STAGES}}
MODEL = {"num_decoder_layers": 2}


class Crash(BaseException):
    """Breaks a run off."""


class Crashing(Callback):
    """Breaks a run off between an optimizer step and its log line."""

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == CRASH_AT:
            raise Crash


def life(root: str, name: str, steps: int, sections: dict[str, Any], *callbacks: Callback) -> None:
    training = {"max_steps": steps, "eval_interval": 3, "eval_segments": 4, "diagnostics_interval": 2}
    model = {**MODEL, **sections.get("model", {})}
    checkpoint = {"interval": 3, "keep_last": 5}
    sections = {**sections, "model": model, "training": training, "checkpoint": checkpoint}
    train(tiny_config(Path(root), name, **sections), callbacks=callbacks)


def on_one(world: World, root: str) -> None:
    life(root, "one", STEPS, {})
    life(root, "to pipeline", MOVE_AT, {})


def on_two(world: World, root: str) -> None:
    life(root, "pipeline", STEPS, PIPELINE)
    life(root, "to pipeline", STEPS, PIPELINE)
    life(root, "from pipeline", MOVE_AT, PIPELINE)
    dropout = {**PIPELINE, "model": {"dropout": 0.1}}
    life(root, "whole", STEPS, dropout)
    with pytest.raises(Crash):
        life(root, "broken", STEPS, dropout, Crashing())
    life(root, "broken", STEPS, dropout)
    skip_a_step(root)


def skip_a_step(root: str) -> None:
    """A run in which the last stage's head gives nan in step 2."""

    class Poisoning(Callback):
        def before_rollout(self, state: TrainingState) -> None:
            stage = state.engine.module
            if state.progress.step + 1 == 2 and stage.scores:
                self.hook = stage.head.register_forward_hook(lambda module, inputs, output: output * float("nan"))

        def before_optimizer_step(self, state: TrainingState) -> None:
            if state.progress.step + 1 == 2 and state.engine.module.scores:
                self.hook.remove()

    life(root, "skipping", MOVE_AT, PIPELINE, Poisoning())


def back_on_one(world: World, root: str) -> None:
    life(root, "from pipeline", STEPS, {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    small_dataset(root, characters=6_000)
    for function, processes in ((on_one, 1), (on_two, STAGES), (back_on_one, 1)):
        run_distributed(function, processes, str(root))
    return root


def test_a_resumed_pipeline_is_bit_equal(runs: Path) -> None:
    whole, broken = (metrics_of(RunDirectory(runs / name)) for name in ("whole", "broken"))
    assert whole == broken
    assert [row["step"] for row in whole] == list(range(1, STEPS + 1))
    assert [event["step"] for event in events_of(RunDirectory(runs / "broken"), "resume")] == [MOVE_AT]


def test_a_skipped_step_is_named_and_the_run_goes_on(runs: Path) -> None:
    run = RunDirectory(runs / "skipping")
    (event,) = events_of(run, "skip")
    assert event["step"] == 2 and event["first_bad"] is None, "computed again, all losses are finite"
    assert event["parameter"] is not None
    rows = metrics_of(run)
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1]
    assert rows[2]["loss"] < 6


@pytest.mark.parametrize("name", ["pipeline", "to pipeline", "from pipeline"])
def test_runs_on_any_stages_equal_one_process(runs: Path, tmp_path: Path, name: str) -> None:
    """Losses, norms, memory figures, evaluations and exported weights, to rounding: 1e-5."""
    one, other = RunDirectory(runs / "one"), RunDirectory(runs / name)
    for expected, row in zip(metrics_of(one), metrics_of(other), strict=True):
        assert row.keys() == expected.keys()
        for field in {"loss", "grad_norm", "memory_gradient_norms", "memory"} & row.keys():
            assert row[field] == pytest.approx(expected[field], rel=1e-4, abs=1e-6), (row["step"], field)
    for expected, event in zip(events_of(one, "evaluation"), events_of(other, "evaluation"), strict=True):
        for mode in ("with_memory", "memory_reset"):
            assert event[mode]["loss"] == pytest.approx(expected[mode]["loss"], rel=1e-5)
            assert event[mode]["tokens"] == expected[mode]["tokens"]
    for run in (one, other):
        assert export(run.root, tmp_path / run.root.name)["largest_loss_difference"] < 1e-5
    weights, exported = (load_model(tmp_path / run.root.name).state_dict() for run in (one, other))
    assert list(weights) == list(exported)
    for key, weight in weights.items():
        torch.testing.assert_close(exported[key], weight, rtol=0, atol=1e-5)


def test_layers_of_a_stage_keep_their_names() -> None:
    whole = model_of(Case(1))
    names = {name for name, _ in whole.named_parameters()}
    split = Split((1, 2, 1), 2)
    stages = stages_of(model_of(Case(1)), split)
    held = [{name for name, _ in stage.named_parameters()} for stage in stages]
    assert set.union(*held) == names
    assert sum(map(len, held)) == len(names), "each parameter has one owner"
    for stage in stages:
        for name, parameter in stage.named_parameters():
            assert torch.equal(parameter, whole.get_parameter(name)), "as one process draws them"


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_stage_draws_what_one_process_draws_and_keeps_its_layers(tensor: int) -> None:
    """Bit for bit; of another stage's layer it holds one matrix at a time."""
    config = dataclasses.replace(model_of(Case(1)).config, num_encoder_layers=3, num_decoder_layers=5)
    split, axis, kind = Split((3, 2, 3), 3), Axis(0, tensor), FAMILY.stages.kind
    places = FAMILY.stages.places(config)
    torch.manual_seed(3)
    with LiveTensors() as whole_model:
        whole = Memformer(config, SlicedConstruction(axis, sharding_of(config)) if tensor > 1 else None)
    for stage in range(3):
        torch.manual_seed(3)
        inner = SlicedConstruction(axis, sharding_of(config)) if tensor > 1 else Construction()
        with LiveTensors() as live:
            model = Memformer(config, StagedConstruction(kind, split.own(stage, places), inner))
        keep_layers(model, kind, split.own(stage, places))
        kept = dict(model.named_parameters())
        assert {name.split(".")[1] for name in kept if name.startswith("encoder.")} == set(
            map(str, split.encoder(stage))
        )
        assert all(torch.equal(parameter, whole.get_parameter(name)) for name, parameter in kept.items())
        assert live.meter.peak_bytes < 0.7 * whole_model.meter.peak_bytes
