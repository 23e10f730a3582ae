# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The pipeline's schedule, executed instruction by instruction on machines that know nothing of how it was made.

Covers: memformer/parallel/pipeline/layouts.py, memformer/parallel/pipeline/picture.py,
memformer/parallel/pipeline/simulate.py, memformer/parallel/pipeline/split.py, memformer/parallel/pipeline/tasks.py
"""

import collections
import itertools
import random
from typing import Any

import pytest

from memformer.models.memformer import MemformerConfig
from memformer.parallel.pipeline.layouts import LayerMemoryLayout, SharedMemoryLayout
from memformer.parallel.pipeline.picture import COLOURS, example, example_of_layer_memories, svg
from memformer.parallel.pipeline.schedule import Agree, Compute, Receive, Release, ReplaySchedule, Send
from memformer.parallel.pipeline.simulate import StageCost
from memformer.parallel.pipeline.split import Split, Work, balanced_split, lanes_of_groups, replay_schedule
from memformer.parallel.pipeline.tasks import Layout
from tests import ROOT

# Every p with every m, and every p with every T, in a grid of 8 x 16 x 16 that is thinned otherwise;
# benchmarks/bubble.py goes through all of it.
CASES = [(p, m, (5 * p + 7 * m) % 8 + 1) for p in range(1, 9) for m in range(1, 17, 1 + p // 5)]
CASES += [(p, (3 * p + 5 * t) % 8 + 1, t) for p in range(1, 9) for t in range(1, 17, 1 + p // 3)]


PICTURE = ROOT / "docs/pipeline_schedule.svg"


def layout_of(p: int, m: int, t: int, recurrent: bool = True) -> tuple[SharedMemoryLayout, list[StageCost]]:
    """A layout and costs that differ from case to case: the encoder on one stage or several, the seam inside one."""
    chance = random.Random(1000 * p + 100 * m + t)
    writer = chance.randrange(p)
    decoder = writer if writer == p - 1 or chance.random() < 0.3 else writer + 1
    costs = []
    for stage in range(p):
        encoder = chance.randint(1, 50) if stage <= writer else 0
        decoder_forward = chance.randint(1, 50) if stage >= decoder else 0
        backward = 3 if chance.random() < 0.3 else 2  # layers are computed again, or not
        costs.append(StageCost(encoder, encoder, backward * encoder, decoder_forward, backward * decoder_forward))
    return SharedMemoryLayout(p, m, t, writer, decoder, recurrent), costs


def layers_of(p: int, m: int, t: int) -> tuple[LayerMemoryLayout, list[StageCost]]:
    """Layers with memories of their own, the last on any stage, in which pass 1 may end; costs as above."""
    chance = random.Random(1000 * p + 100 * m + t)
    writer, costs = chance.randrange(p), []
    for stage in range(p):
        forward, backward = chance.randint(1, 50), 3 if chance.random() < 0.3 else 2
        advance = forward if stage < writer else chance.randint(1, forward) if stage == writer else 0
        costs.append(StageCost(advance, forward, backward * forward))
    return LayerMemoryLayout(p, m, t, writer), costs


class Machine:
    """A stage that executes its instructions, and checks that whatever it computes can be computed.

    What it may use is written down here as the mathematics has it, in facts (name, micro-batch, segment).
    """

    def __init__(self, schedule: ReplaySchedule, stage: int) -> None:
        self.schedule, self.stage = schedule, stage
        self.layout: Layout = schedule.layout
        self.program = collections.deque(itertools.chain.from_iterable(schedule.steps(stage)))
        self.posted: set[Any] = set()
        self.in_flight: dict[Any, set[tuple[str, int, int]]] = {}
        self.received: list[Any] = []
        self.sent: list[Any] = []
        self.done: collections.Counter[Any] = collections.Counter()
        self.facts: set[tuple[str, int, int]] = set()
        self.last_facts: set[tuple[str, int, int]] = set()
        self.graphs: dict[str, int] = {"encoder": 0, "decoder": 0}
        self.early_held = self.agreed = 0

    def needs_and_gives(self, kind: str, i: int, t: int) -> tuple[set[Any], set[Any]]:
        layout, stage = self.layout, self.stage
        if isinstance(layout, LayerMemoryLayout):
            return self.of_layers(kind, i, t)
        assert isinstance(layout, SharedMemoryLayout)
        first, writes, last_stage = stage == 0, stage == layout.writer_stage, stage == layout.stages - 1
        memory = {("memory", i, t)} if layout.recurrent else set()
        if kind == "begin":
            return set(), memory
        if kind in ("advance", "replay"):
            needs = memory | (set() if first else {(f"{kind} input", i, t)})
            if kind == "replay" and t < layout.segments - 1 and layout.recurrent:
                needs |= {("advanced", i, t)}
            gives = {("encoder graph", i, t)} if kind == "replay" else {("advanced", i, t)}
            gives |= {("context", i, t)} if writes else {(f"{kind} output", i, t)}
            if kind == "advance" and writes:
                gives |= {("memory", i, t + 1)}
            return needs, gives
        if kind == "decode":
            needs = {("context", i, t)} | (set() if stage == layout.decoder_stage else {("decoder input", i, t)})
            return needs, {("decoder graph", i, t), ("context", i, t), ("decoder output", i, t)}
        if kind == "decode_backward":
            incoming = {("context gradient below", i, t), ("decoder output gradient", i, t)}
            needs = {("decoder graph", i, t)} | (set() if last_stage else incoming)
            return needs, {("context gradient", i, t), ("decoder input gradient", i, t)}
        if kind == "replay_backward":
            needs = {("encoder graph", i, t)}
            if writes:
                needs |= {("context gradient", i, t)}
                if layout.recurrent and t < layout.segments - 1:
                    needs |= {("memory gradient", source, i, t + 1) for source in range(stage + 1)}
            else:
                needs |= {("output gradient", i, t)}
            return needs, {("input gradient", i, t), ("memory gradient", stage, i, t)}
        assert kind == "end"
        return {("memory gradient", source, i, 0) for source in range(stage + 1)}, set()

    def of_layers(self, kind: str, i: int, t: int) -> tuple[set[Any], set[Any]]:
        """Where the stage's memory is its own; the first is there from the start."""
        stage, last = self.stage, self.layout.segments - 1
        if kind == "replay_backward":
            needs = {("encoder graph", i, t)} | (
                {("output gradient", i, t)} if stage < self.layout.stages - 1 else set()
            )
            if t < last and self.layout.advances(stage):
                needs |= {("memory gradient", stage, i, t + 1)}
            return needs, {("input gradient", i, t), ("memory gradient", stage, i, t)}
        memory = {("memory", i, t)} if t and self.layout.advances(stage) else set()
        needs = memory | ({(f"{kind} input", i, t)} if stage else set())
        gives = {("encoder graph", i, t)} if kind == "replay" else {("advanced", i, t), ("memory", i, t + 1)}
        if kind == "replay" and t < last and self.layout.advances(stage):
            needs |= {("advanced", i, t)}
        return needs, gives | {(f"{kind} output", i, t)}

    def as_received(self, message: Any, facts: set[Any]) -> set[Any]:
        """What a message tells its receiver, if its sender knows it."""
        kind, (task, i, t), source, _ = message
        t_sent = t + 1 if kind == "memory_gradient" and task == "replay_backward" else t
        told: dict[str, tuple[Any, Any]] = {
            "memory": (("memory", i, t), ("memory", i, t)),
            "context": (("context", i, t), ("context", i, t)),
            "stream": (
                ("decoder output" if task == "decode" else f"{task} output", i, t),
                ("decoder input" if task == "decode" else f"{task} input", i, t),
            ),
            "memory_gradient": (("memory gradient", source, i, t_sent), ("memory gradient", source, i, t_sent)),
            "context_gradient": (
                ("context gradient", i, t),
                ("context gradient below" if task == "decode_backward" else "context gradient", i, t),
            ),
            "stream_gradient": (
                ("decoder input gradient" if task == "decode_backward" else "input gradient", i, t),
                ("decoder output gradient" if task == "decode_backward" else "output gradient", i, t),
            ),
        }
        known, tells = told[kind]
        assert known in facts, f"stage {source} sends {message} and has not computed it"
        return {tells}

    def compute(self, task: Any) -> None:
        needs, gives = self.needs_and_gives(*task)
        assert needs <= self.facts, f"stage {self.stage}: {task} misses {needs - self.facts}"
        self.facts |= gives
        self.done[task] += 1
        for part, opens, closes in (("encoder", "replay", "replay_backward"), ("decoder", "decode", "decode_backward")):
            self.graphs[part] += (task.kind == opens) - (task.kind == closes)
            assert self.graphs[part] <= self.schedule.window
        if self.stage == self.layout.writer_stage and self.schedule.is_early(task):
            self.early_held += (task.kind == "advance") - (task.kind == "replay_backward")
            assert self.early_held <= self.schedule.window


def execute(schedule: ReplaySchedule) -> list[Machine]:
    """Lets every machine go on as far as it can, until all are done.

    Raises:
        AssertionError: None can go on, or one computes what it cannot.
    """
    machines = [Machine(schedule, stage) for stage in range(schedule.layout.stages)]

    def can(machine: Machine, instruction: Any) -> bool:
        match instruction:
            case Release(message):
                return message in machines[message.target].posted
            case Compute(task):
                return all(
                    message in machine.posted and message in machines[message.source].in_flight
                    for message in schedule.layout.incoming(machine.stage, task)
                )
            case Agree(number):
                nexts = [each.program[0] if each.program else None for each in machines]
                return all(each.agreed > number or nexts[other] == instruction for other, each in enumerate(machines))
        return True

    moved = True
    while moved:
        moved = False
        for machine in machines:
            while machine.program and can(machine, machine.program[0]):
                moved = True
                match machine.program.popleft():
                    case Receive(message):
                        assert message.target == machine.stage and message not in machine.posted
                        machine.posted.add(message)
                        machine.received.append(message)
                    case Send(message):
                        assert message.source == machine.stage and message not in machine.in_flight
                        machine.in_flight[message] = machine.as_received(message, machine.facts)
                        machine.sent.append(message)
                    case Release(message):
                        assert message in machine.in_flight
                    case Compute(task):
                        for message in schedule.layout.incoming(machine.stage, task):
                            machine.facts |= machines[message.source].in_flight[message]
                        machine.compute(task)
                    case Agree(number):
                        assert number == machine.agreed
                        machine.agreed += 1
    stuck = {machine.stage: machine.program[0] for machine in machines if machine.program}
    assert not stuck, f"deadlock: {stuck}"
    return machines


def assert_sound(schedule: ReplaySchedule) -> None:
    layout = schedule.layout
    machines = execute(schedule)
    every = set(itertools.product(range(layout.micro_batches), range(layout.segments)))
    for machine in machines:
        stage = machine.stage
        expected: collections.Counter[Any] = collections.Counter()
        roles = ["replay", "replay_backward"]
        recurrent = True
        if isinstance(layout, SharedMemoryLayout):
            recurrent = layout.recurrent
            roles = roles if stage <= layout.writer_stage else []
            roles += ["decode", "decode_backward"] if stage >= layout.decoder_stage else []
            if recurrent and stage == layout.writer_stage:
                expected.update((role, i, 0) for role in ("begin", "end") for i in range(layout.micro_batches))
        expected.update((role, i, t) for role in roles for i, t in every)
        if recurrent and stage <= layout.writer_stage:
            expected.update(("advance", i, t) for i, t in every if t < layout.segments - 1)
        assert machine.done == expected, "each micro-batch and segment once in each role"
        assert machine.agreed == layout.segments - 1
    for source, target in itertools.permutations(machines, 2):
        sent = [message for message in source.sent if message.target == target.stage]
        received = [message for message in target.received if message.source == source.stage]
        assert sent == received, "one order for each direction between two stages"


@pytest.mark.parametrize("stages", range(1, 9))
def test_every_schedule_runs(stages: int) -> None:
    """No deadlock, all dependencies, bounded buffers, one order a channel; several layouts, costs and windows."""
    for p, m, t in (case for case in CASES if case[0] == stages):
        window = [None, 1, 2, p][(m + t) % 4]
        assert_sound(ReplaySchedule(*layout_of(p, m, t, recurrent=(m + t) % 5 != 0), window))
        if (m + t) % 3 == 0:
            assert_sound(ReplaySchedule(*layers_of(p, m, t), window))


def equal_stages(p: int, m: int, t: int, encoder_stages: int = 1) -> ReplaySchedule:
    """Stages whose work on a rollout is equal: 4 - 1/T forwards of the encoder's, 3 of the decoder's."""
    unit = 3 * (4 * t - 1)
    encoder = StageCost.of(unit * 3 * t // (4 * t - 1), 0)
    costs = [encoder] * encoder_stages + [StageCost.of(0, unit)] * (p - encoder_stages)
    return ReplaySchedule(SharedMemoryLayout(p, m, t, encoder_stages - 1, encoder_stages), costs)


@pytest.mark.parametrize("p", (2, 3, 4, 6, 8))
def test_bubble_is_that_of_a_micro_batch_a_segment(p: int) -> None:
    """(p-1)/(m T + p-1), to 0.1, where the encoder is on one stage; and below 1F1B's wherever T > 1."""
    for m, t in itertools.product((1, 2, 4, 7, 16), (1, 2, 5, 16)):
        bubble, whole_rollouts = equal_stages(p, m, t).bubble, (p - 1) / (m + p - 1)
        assert bubble < (p - 1) / (m * t + p - 1) + 0.1, (p, m, t)
        assert bubble < whole_rollouts or (t == 1 and bubble < whole_rollouts + 0.01), (p, m, t)


@pytest.mark.parametrize("p", (2, 3, 4, 8))
def test_bubble_where_memories_stay_on_their_stages(p: int) -> None:
    """Fill and drain alone, also of one micro-batch: p - 1 forwards and backwards beside what a stage computes.

    For T = 1 that is (p-1)/(m T + p-1), and below it for more segments, since pass 1 adds to the work and not to them.
    """
    for m, t, backward in itertools.product((1, 2, 4), (1, 2, 3, 8), (2, 3)):
        schedule = ReplaySchedule(LayerMemoryLayout(p, m, t, p - 1), [StageCost(7, 7, 7 * backward)] * p)
        work, waited = m * (t - 1 + t * (1 + backward)), (p - 1) * (1 + backward)
        assert schedule.makespan <= 7 * (work + waited), (m, t)
        assert max(schedule.held_graphs(stage) for stage in range(p)) <= p + 1
        assert schedule.bubble <= waited / (work + waited) + 1e-12 <= (p - 1) / (m * t + p - 1) + 2e-12
        assert schedule.bubble == pytest.approx(waited / (work + waited)) or m > 1


def test_bubble_where_the_memory_passes_several_stages() -> None:
    """Micro-batches hide the memory's way round; with too few of them it decides, and 1F1B is beaten still."""
    for m, t in itertools.product((1, 2, 4, 8), (2, 8)):
        bubble = equal_stages(4, m, t, encoder_stages=3).bubble
        assert bubble < 3 / (m + 3)
    assert equal_stages(4, 8, 8, encoder_stages=3).bubble < 0.1
    work, way = 3 * 4, 3 * 3 * 12 / 31 * 3  # of a decoder stage, a segment; round the memory's three stages
    assert equal_stages(4, 1, 8, encoder_stages=3).bubble > 1 - work / way


def test_bubble_of_a_real_model() -> None:
    """The paper's 4 + 16 layers do not divide evenly; the bubble is at most the imbalance more than the formula."""
    model = MemformerConfig(vocab_size=32_000, start_token_id=0)
    for stages in (2, 4):
        work = Work.of(model, segment_length=512, num_segments=8)
        schedule = replay_schedule(balanced_split(work, stages), work, micro_batches=stages)
        busy = [
            sum(interval.end - interval.start for interval in intervals) for intervals in schedule.timeline.intervals
        ]
        balance = sum(busy) / stages / max(busy)
        assert schedule.bubble < 1 - balance * (1 - (stages - 1) / (8 * stages + stages - 1)) + 0.06


def test_a_schedule_is_a_function_of_its_arguments() -> None:
    one, two = (ReplaySchedule(*layout_of(4, 6, 5)) for _ in range(2))
    assert [one.steps(stage) for stage in range(4)] == [two.steps(stage) for stage in range(4)]


def test_a_wider_window_holds_more_and_waits_less() -> None:
    schedules = [ReplaySchedule(*layout_of(4, 8, 8), window) for window in (1, 4, 16)]
    held = [max(schedule.held_graphs(stage) for stage in range(4)) for schedule in schedules]
    assert held[0] == 1 < held[1] <= 4 < held[2] <= 16
    assert schedules[0].bubble > schedules[1].bubble >= schedules[2].bubble


def test_split_by_flops() -> None:
    model = MemformerConfig(num_encoder_layers=4, num_decoder_layers=16, vocab_size=100, start_token_id=0)
    split = balanced_split(Work.of(model, 512, 8), 4)
    assert sum(split.layers) == 20 and min(split.layers) >= 1
    assert [*split.encoder(0), *split.encoder(1)] == [0, 1, 2, 3]
    layers = [layer for stage in range(4) for layer in split.decoder(stage)]
    assert layers == list(range(16))
    heavy = MemformerConfig(num_encoder_layers=4, num_decoder_layers=16, vocab_size=100_000, start_token_id=0)
    assert balanced_split(Work.of(heavy, 512, 8), 4).layers[-1] < split.layers[-1], "the head counts"
    assert balanced_split(Work.of(model, 512, 8), 20).layers == (1,) * 20
    by_hand = Split((3, 2), 4)
    assert (by_hand.writer_stage, by_hand.decoder_stage) == (1, 1)
    assert (Split((4, 16), 4).writer_stage, Split((4, 16), 4).decoder_stage) == (0, 1)


def test_groups_of_lanes() -> None:
    assert lanes_of_groups(8, 4, None) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert lanes_of_groups(2, 4, None) == [(0, 1), (1, 2)]
    assert lanes_of_groups(5, 2, 3) == [(0, 3), (3, 5)]


def test_the_picture_shows_the_schedule() -> None:
    """docs/pipeline_*.svg are what `python -m memformer.parallel.pipeline.picture` draws now."""
    drawn = svg(example())
    assert PICTURE.read_text(encoding="utf-8") == drawn
    of_layers = svg(example_of_layer_memories())
    assert (ROOT / "docs/pipeline_layer_memories.svg").read_text(encoding="utf-8") == of_layers
    boxes = sum(len(intervals) for intervals in example().timeline.intervals) - 2 * example().layout.micro_batches
    assert drawn.count("<rect x=") == boxes + example().layout.stages + len(COLOURS)
