# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Pipelines know a family by its record alone: one that is like no Memformer is split, counted, and built in parts.

Covers: memformer/models/registry.py
"""

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from data_pipeline.errors import UserError
from memformer.config.schema import parse_config
from memformer.models import registry
from memformer.models.configuration import ModelConfig
from memformer.models.construction import Construction
from memformer.models.family_record import Family, LayerFlops, Stages
from memformer.models.registry import NotBuilt, stages_of
from memformer.parallel.pipeline.construction import StagedConstruction, keep_layers
from memformer.parallel.pipeline.layouts import LayerMemoryLayout
from memformer.parallel.pipeline.split import Split, Work, balanced_split, replay_schedule
from memformer.parallel.pipeline.traffic import sent_by_stage


@dataclasses.dataclass(frozen=True)
class ChainConfig(ModelConfig):
    """Names of its own for everything."""

    family: ClassVar[str] = "chain"
    stacks: ClassVar[tuple[str, ...]] = ("readers", "answerers")

    readers: int = 3
    answerers: int = 5
    breadth: int = 6
    kept: tuple[int, int] = (2, 7)
    vocab_size: int | None = 10
    start_token_id: int | None = 0
    segment_length: int | None = None
    dropout: float = 0.0

    @property
    def memory_shape(self) -> tuple[int, int]:
        return self.kept


class Reading(nn.Linear):
    """An encoder layer."""


class Answering(nn.Linear):
    """A decoder layer."""


class Chain(nn.Module):
    def __init__(self, config: ChainConfig, construction: Construction) -> None:
        super().__init__()
        width = config.breadth
        self.first = nn.ModuleDict({str(i): construction.built(Reading(width, width)) for i in range(config.readers)})
        self.middle = construction.built(nn.Linear(width, width))
        self.then = nn.ModuleList(construction.built(Answering(width, width)) for _ in range(config.answerers))


def kind(part: Any) -> str | None:
    return {Reading: "encoder", Answering: "decoder"}.get(type(part))


STAGES = Stages(
    layers=lambda config: (config.readers, config.answerers),
    words="model.readers + model.answerers",
    stacks=lambda config: ["readers"] * config.readers + ["answerers"] * config.answerers,
    costs=lambda config, length: [
        *([LayerFlops(10 * length, advance=10 * length)] * 2 + [LayerFlops(10 * length, 5 * length, 15 * length)]),
        *([LayerFlops(10 * length)] * 4 + [LayerFlops(10 * length, 20 * length)]),
    ],
    width=lambda config: int(config.breadth),
    lengths=lambda config, length: (length, length + 2),
    kind=kind,
    places=lambda config: {
        "encoder": range(config.readers),
        "decoder": range(config.readers, config.readers + config.answerers),
    },
    trained=lambda config, train: [train == "all"] * (config.readers + config.answerers),
    cut=lambda model, encoder, decoder: model,
    home={"middle": "writer"},
)


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> ChainConfig:
    def nothing(*arguments: Any) -> Any:
        raise AssertionError("not asked for")

    made = Family("chain", "Chain", ChainConfig, nothing, nothing, nothing, stages=STAGES)
    monkeypatch.setitem(registry._registered, "chain", made)
    return ChainConfig()


def test_layers_are_balanced_by_what_the_family_says(chain: ChainConfig) -> None:
    work = Work.of(chain, segment_length=4, num_segments=2)
    assert (work.encoder_layers, len(work.flops), work.recurrent) == (3, 8, True)
    # In units of a layer's forward: 3.5 each, the last with the writer 5.25; 3 each, the last with the head 9.
    assert balanced_split(work, 2) == Split((4, 4), 3)
    first, second = Split((4, 4), 3).costs(work)
    assert first == (140, 140, 280, 40, 80) and second == (0, 0, 0, 240, 480)
    again = dataclasses.replace(work, recomputed=True)
    assert Split((4, 4), 3).costs(again)[0] == (140, 140, 400, 40, 120), "layers again, the writer not"


def test_memories_of_layers_go_with_their_layers() -> None:
    """A stage reads and writes the rows of its layers; pass 1 ends with the last layer that has some."""
    flops = (LayerFlops(10, 1, 11), LayerFlops(10, 0, 10), LayerFlops(10, 1, 11), LayerFlops(10), LayerFlops(10, 5))
    work = Work(flops, encoder_layers=5, segments=4, recomputed=True, rows=(3, 0, 3, 0, 0))
    split = balanced_split(work, 3)
    assert split.layers == (2, 2, 1), "98.75, 91.25 and, with the head, 55"
    assert [split.memory(stage) for stage in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 6)]
    assert (split.writer_stages, split.writer_stage) == ([0, 1], 1)
    assert split.costs(work) == [(21, 21, 62, 0, 0), (11, 21, 62, 0, 0), (0, 15, 40, 0, 0)]
    layout = split.layout(1, 4)
    assert isinstance(layout, LayerMemoryLayout)
    assert [layout.advances(stage) for stage in range(3)] == [True, True, False]
    places = {"layer": range(5), "writer": (0, 2)}
    assert split.own(1, places) == {"layer": {2, 3}, "writer": {1}} and split.own(2, places)["writer"] == set()


def test_messages_have_the_familys_shapes(chain: ChainConfig) -> None:
    work = Work.of(chain, segment_length=4, num_segments=2)
    schedule = replay_schedule(Split((2, 6), 3), work, micro_batches=1)
    sent = sent_by_stage(schedule, chain, 4, [3], embedding=60, number_bytes=1)
    assert sent[1]["memory"] == [2, 2 * 3 * 2 * 7]
    assert sent[0]["stream"] == [3, 3 * 3 * 4 * 6]
    schedule = replay_schedule(Split((2, 3, 3), 3), work, micro_batches=1)
    assert sent_by_stage(schedule, chain, 4, [3], 60, 1)[1]["stream"] == [2, 2 * 3 * (4 + 2) * 6], "the decoder's"
    schedule = replay_schedule(Split((2, 6), 3), work, micro_batches=1)
    assert sent[0]["shared_weight"] == [1, 60], "the decoder's copy; nothing is tied"


@pytest.mark.parametrize("stage", range(3))
def test_a_stage_of_any_family_keeps_its_own_layers(chain: ChainConfig, stage: int) -> None:
    split = Split((2, 3, 3), 3)
    own = split.own(stage, STAGES.places(chain))
    torch.manual_seed(1)
    whole = Chain(chain, Construction())
    torch.manual_seed(1)
    model = Chain(chain, StagedConstruction(kind, own, Construction()))
    keep_layers(model, kind, own)
    kept = dict(model.named_parameters())
    numbers = {name: {int(each) for each, _ in getattr(model, name).named_children()} for name in ("first", "then")}
    assert numbers == {"first": set(split.encoder(stage)), "then": set(split.decoder(stage))}
    assert "middle.weight" in kept
    assert all(torch.equal(parameter, whole.get_parameter(name)) for name, parameter in kept.items())


def test_a_family_that_is_not_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"run_dir": "unused", "data": {"path": "unused"}}
    config = parse_config(values | {"parallel": {"pipeline": 2}}, "run.yaml").model
    uncut = dataclasses.replace(registry.family(config.family), stages=None)
    monkeypatch.setitem(registry._registered, config.family, uncut)
    told = f"parallel.pipeline: not built for family {config.family}: set it to 1"
    with pytest.raises(NotBuilt) as refused:
        stages_of(config)
    assert str(refused.value) == told
    with pytest.raises(UserError) as caught:
        parse_config(values | {"parallel": {"pipeline": 2}}, "run.yaml")
    assert told in str(caught.value)
    with pytest.raises(UserError) as caught:
        parse_config(values | {"parallel": {"pipeline_layers": [20]}}, "run.yaml")
    assert "parallel.pipeline_layers: not built for family" in str(caught.value)
    parse_config(values, "run.yaml")
