# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How long pipeline stages wait: the replay schedule against 1F1B, over p stages, m micro-batches, T segments.

And what it is where each layer has a memory of its own, which stays on its stage, against one memory that goes round
the same stages. Times are those of the simulation that orders the schedule, so they hold for stages as fast as their
FLOPs say and messages that cost nothing; the machine that this runs on does not matter. Where it says counted, they are
added up once more from the instructions that the stages execute, each in its order.

python benchmarks/bubble.py [--most-stages 8 --most-micro-batches 16 --most-segments 16] [--quick] [--out STEM] [--json]
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import markdown_table, provenance, write_results
from memformer.models.memformer import MemformerConfig
from memformer.parallel.pipeline.layouts import LayerMemoryLayout, SharedMemoryLayout
from memformer.parallel.pipeline.schedule import Compute, ReplaySchedule, Send
from memformer.parallel.pipeline.simulate import StageCost
from memformer.parallel.pipeline.split import Work, balanced_split, replay_schedule
from memformer.parallel.pipeline.tasks import Layout, Message

SHOWN = [(p, m, t) for p in (2, 4, 8) for m in (1, 4, 16) for t in (1, 2, 4, 8, 16)]
MODELS = {
    "paper 4+16": {},
    "1.3B, 4+14": {"num_decoder_layers": 14, "d_model": 2048, "num_heads": 16, "d_ff": 8192, "num_memory_slots": 128},
    "70B, 20+70": {
        "num_encoder_layers": 20, "num_decoder_layers": 70, "d_model": 8192, "num_heads": 64, "d_ff": 32768,
        "num_memory_slots": 128,
    },
}  # fmt: skip
LENGTH = 512
FORWARD = 1000
"""Of a stage of equal layers, in any unit; a backward is twice that, and what takes no time is 1."""


def equal_stages(p: int, m: int, t: int) -> dict[str, Any]:
    """The encoder on one stage, the decoder on the others, all with the same work for a rollout."""
    forward = 3 * (4 * t - 1)  # of a decoder stage; the encoder stage's costs 4T - 1 forwards where others cost 3T
    encoder = StageCost.of(forward * 3 * t // (4 * t - 1), 0)
    schedule = ReplaySchedule(SharedMemoryLayout(p, m, t, 0, 1), [encoder] + [StageCost.of(0, forward)] * (p - 1))
    return {
        "p": p,
        "m": m,
        "T": t,
        "bubble": schedule.bubble,
        "formula": (p - 1) / (m * t + p - 1),
        "1f1b": (p - 1) / (m + p - 1),
        "graphs": max(schedule.held_graphs(stage) for stage in range(p)),
    }


def counted(schedule: ReplaySchedule, costs: Sequence[StageCost]) -> float:
    """The bubble by the stages' instructions: each begins a task when it is free and the task's messages are sent."""
    stages = range(schedule.layout.stages)
    programs = [[each for step in schedule.steps(stage) for each in step] for stage in stages]
    at, clock, busy = [0 for _ in stages], [0 for _ in stages], 0
    sent: dict[Message, int] = {}
    while any(at[stage] < len(programs[stage]) for stage in stages):
        before = list(at)
        for stage in stages:
            while at[stage] < len(programs[stage]):
                instruction = programs[stage][at[stage]]
                if isinstance(instruction, Compute):
                    needed = schedule.layout.incoming(stage, instruction.task)
                    if any(message not in sent for message in needed):
                        break
                    took = costs[stage].of_task(instruction.task.kind)
                    clock[stage] = max(clock[stage], *(sent[message] for message in needed), 0) + took
                    busy += took
                elif isinstance(instruction, Send):
                    sent[instruction.message] = clock[stage]
                at[stage] += 1
        assert at != before, "a deadlock"
    return 1 - busy / (len(stages) * max(clock))


def layer_memories(p: int, m: int, t: int) -> dict[str, Any]:
    """Equal layers on equal stages: with memories of their own, and with one that the last stage writes for all."""
    costs = [StageCost.of(FORWARD)] * p
    row: dict[str, Any] = {"p": p, "m": m, "T": t}
    # A decoder without layers: the head is left out of both.
    layouts: dict[str, Layout] = {
        "own": LayerMemoryLayout(p, m, t, p - 1),
        "round": SharedMemoryLayout(p, m, t, p - 1, p - 1),
    }
    for name, layout in layouts.items():
        schedule = ReplaySchedule(layout, costs)
        row |= {name: schedule.bubble, f"{name}, counted": counted(schedule, costs)}
    work, waited = m * (t - 1 + 3 * t), 3 * (p - 1)
    return row | {"3(p-1)/(m(4T-1)+3(p-1))": waited / (work + waited), "(p-1)/(mT+p-1)": (p - 1) / (m * t + p - 1)}


def real_model(name: str, stages: int, m: int, t: int) -> dict[str, Any]:
    """A model split by FLOPs; what its layers do not divide into is part of the bubble."""
    model = MemformerConfig(vocab_size=32_000, start_token_id=0, **MODELS[name])  # type: ignore[arg-type]
    work = Work.of(model, LENGTH, t)
    schedule = replay_schedule(balanced_split(work, stages), work, m)
    busy = [sum(interval.end - interval.start for interval in intervals) for intervals in schedule.timeline.intervals]
    return {
        "model": name,
        "p": stages,
        "m": m,
        "T": t,
        "bubble": schedule.bubble,
        "imbalance": 1 - statistics.fmean(busy) / max(busy),
        "1f1b": (stages - 1) / (m + stages - 1),
    }


def summary(rows: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the page claims, over the whole grid."""
    recurrent = [row for row in rows if row["T"] > 1]
    formula = "3(p-1)/(m(4T-1)+3(p-1))"
    return {
        "own_most_above_formula": max(row["own"] - row[formula] for row in own),
        "own_most_from_count": max(abs(row["own"] - row["own, counted"]) for row in own),
        "own_least_below_round": min(row["round"] - row["own"] for row in own if row["T"] > 1),
        "points": len(rows),
        "points_with_T_above_1": len(recurrent),
        "below_1f1b": sum(row["bubble"] < row["1f1b"] for row in recurrent),
        "most_above_formula": max(row["bubble"] - row["formula"] for row in rows),
        "median_of_1f1b": statistics.median(row["bubble"] / row["1f1b"] for row in recurrent),
    }


def page(values: dict[str, Any]) -> str:
    """The result file for people."""
    found = values["summary"]
    columns = ["p", "m", "T", "bubble", "formula", "1f1b", "graphs"]
    models = ["model", "p", "m", "T", "bubble", "imbalance", "1f1b"]
    memories = list(values["layer_memories"][0])
    return "\n".join(
        [
            "# The pipeline's bubble against 1F1B",
            "",
            f"{values['date']}; simulated, so the machine does not matter; commit {values['commit']}.",
            f"`{values['command']}`",
            "",
            "Part of the stages' time in which they wait. *formula*: (p-1)/(mT+p-1), what 1F1B would have if segments "
            "were micro-batches. *1f1b*: (p-1)/(m+p-1), over whole rollouts. *graphs*: segments whose graph a stage "
            "holds at most. The encoder is on one stage, all stages have equal work.",
            "",
            f"Of {found['points_with_T_above_1']} points with T > 1 (all p, m and T up to "
            f"{values['sizes']['most_stages']}, {values['sizes']['most_micro_batches']} and "
            f"{values['sizes']['most_segments']}), {found['below_1f1b']} lie below 1F1B; the median is "
            f"{found['median_of_1f1b']:.3f} of its bubble. The largest excess over the formula is "
            f"{found['most_above_formula']:.3f}.",
            "",
            markdown_table(columns, [[row[column] for column in columns] for row in values["rows"]]),
            "",
            f"Models split by the FLOPs of their layers ({LENGTH} tokens a segment, vocabulary 32,000). *imbalance*: "
            "what the busiest stage has more than the mean; no schedule can take it away.",
            "",
            markdown_table(models, [[row[column] for column in models] for row in values["models"]]),
            "",
            "## Memories that stay on their stages",
            "",
            "Equal layers on p equal stages, a backward of twice a forward. *own*: each layer has a memory of its own "
            "(a backbone's associative memory). *round*: all layers read one memory, which the last stage writes and "
            "sends back to the others for each segment (as a Memformer's encoder, here of p stages). *counted*: from "
            "the instructions that the stages execute, not from the simulation that ordered them.",
            "",
            "A stage computes m (T-1) forwards of pass 1, and m T forwards and backwards of pass 2; the pipeline is "
            "filled by p-1 forwards and drained by p-1 backwards. So in units of a forward it waits 3(p-1) beside "
            "m(4T-1). Without pass 1 that is (p-1)/(mT+p-1), which holds for T = 1; for more segments the share is "
            "smaller, towards 3/4 of it, since pass 1 adds to the work and not to the waiting. With layers recomputed "
            "in the backward it is 4(p-1)/(m(5T-1)+4(p-1)).",
            "",
            f"Over the {len(values['layer_memories'])} points: at most {found['own_most_above_formula']:.3f} above the "
            f"formula, {found['own_most_from_count']:.3f} from what is counted, and where T > 1 at least "
            f"{found['own_least_below_round']:.3f} less than with one memory that goes round: where m reaches p, other "
            "groups of lanes hide its way.",
            "",
            markdown_table(memories, [[row[column] for column in memories] for row in values["layer_memories"]]),
        ]
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most-stages", type=int, default=8)
    parser.add_argument("--most-micro-batches", type=int, default=16)
    parser.add_argument("--most-segments", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="up to 3 stages, 4 micro-batches, 4 segments")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--out", type=Path, help="write STEM.json and STEM.md")
    options = parser.parse_args(words)
    if options.quick:
        options.most_stages, options.most_micro_batches, options.most_segments = 3, 4, 4
    values: dict[str, Any] = provenance(torch.device("cpu"))
    values["sizes"] = {name: getattr(options, name) for name in ("most_stages", "most_micro_batches", "most_segments")}
    grid = itertools.product(
        range(2, options.most_stages + 1),
        range(1, options.most_micro_batches + 1),
        range(1, options.most_segments + 1),
    )
    every = [equal_stages(p, m, t) for p, m, t in grid]
    values["rows"] = [row for row in every if (row["p"], row["m"], row["T"]) in SHOWN]
    values["models"] = [
        real_model(name, p, m, 8)
        for name in MODELS
        for p, m in ((2, 2), (4, 4), (4, 8), (8, 8), (8, 16))
        if p <= options.most_stages and m <= options.most_micro_batches
    ]
    values["layer_memories"] = [
        layer_memories(p, m, t)
        for p, m, t in itertools.product((2, 4, 8), (1, 2), (1, 2, 4, 8, 16))
        if p <= options.most_stages and t <= options.most_segments
    ]
    values["summary"] = summary(every, values["layer_memories"])
    print(page(values))
    if options.out:
        write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps(values["summary"]))


if __name__ == "__main__":
    main()
