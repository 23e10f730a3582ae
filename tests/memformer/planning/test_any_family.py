# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A plan of a family that is no Memformer: one stack of layers, a memory of its own shape, no stages, not sharded."""

import dataclasses
import functools
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.activations import SavedActivations
from data_pipeline import UserError
from memformer.config.schema import Config, parse_config
from memformer.models import registry
from memformer.models.configuration import ModelConfig
from memformer.models.family_record import Family
from memformer.models.registry import family, register
from memformer.models.sizes import count_parameters
from memformer.planning import make_plan
from memformer.planning.search import search
from memformer.planning.segment_trace import Execution, recomputation_peak, trace_parts
from memformer.planning.traffic import traffic_by_stage
from memformer.replay import Segment

LANES, LENGTH, ROWS, CHANNELS = 3, 16, 3, 5


@dataclasses.dataclass(frozen=True)
class EchoConfig(ModelConfig):
    """Sizes of an `Echo`."""

    family: ClassVar[str] = "echo"
    stacks: ClassVar[tuple[str, ...]] = ("num_layers",)

    num_layers: int = 4
    width: int = 32
    vocab_size: int | None = 97
    start_token_id: int | None = None
    segment_length: int | None = None
    dropout: float = 0.0

    @property
    def memory_shape(self) -> tuple[int, int]:
        """[K, C]."""
        return ROWS, CHANNELS


class Layer(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Echo(nn.Module):
    """A decoder-only cell: layers over the tokens and the memory's mean, and a memory written from their mean."""

    def __init__(self, config: EchoConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.start = nn.Parameter(torch.zeros(ROWS, CHANNELS))
        self.reader, self.writer = nn.Linear(CHANNELS, config.width), nn.Linear(config.width, CHANNELS)
        self.blocks = nn.ModuleList(Layer(config.width) for _ in range(config.num_layers))
        self.out = nn.Linear(config.width, config.vocab_size, bias=False)

    def layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def undecayed(self) -> set[str]:
        return {"start"}

    def initial_memory(self, lanes: int) -> torch.Tensor:
        return self.start.expand(lanes, -1, -1)

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        return self._read(segment, memory)[1]

    def forward(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, memory = self._read(segment, memory)
        # One row at a time, [B, S, V]: logits need not be flat to be recognised.
        losses = F.log_softmax(self.out(x).float(), dim=-1).gather(2, segment.target[..., None])
        return -losses.sum(), segment.target_length.sum(), memory

    def _read(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.tokens(segment.context) + self.reader(memory.mean(1, keepdim=True))
        for block in self.blocks:
            x = block(x)
        return x, memory + torch.tanh(self.writer(x.mean(1, keepdim=True)))


@dataclasses.dataclass(frozen=True)
class EchoFlops:
    """Matrix products of the layers and of the head."""

    layers: int
    head: int

    @property
    def forward(self) -> int:
        return self.layers + self.head

    @property
    def advance(self) -> int:
        return self.layers


def flops(config: EchoConfig, segment_length: int) -> EchoFlops:
    tokens = 2 * segment_length * config.width
    return EchoFlops(tokens * 8 * config.width * config.num_layers, tokens * (config.vocab_size or 0))


def build(config: EchoConfig, construction: Any = None) -> Echo:
    return Echo(config)


def no_reader(*_: Any) -> None:
    raise NotImplementedError


ECHO = Family("echo", "Echo", EchoConfig, build, flops, no_reader)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family is known for one test."""
    family("memformer")  # which is registered once, before the copy
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register(ECHO)


def config_of(**sections: dict[str, object]) -> Config:
    data = {"path": "not/there", "num_lanes": 4 * LANES, "segment_length": LENGTH, "num_segments": 5}
    return parse_config({"run_dir": "unused", "data": data, "model": {"family": "echo"}, **sections}, "test")


def test_a_plan_has_its_parameters_and_its_memory() -> None:
    config, layer = config_of(parallel={"zero_stage": 0}), 2 * 32 + 2 * 4 * 32 * 32
    plan = make_plan(config, EchoConfig(), 1, 4, "h100")
    rest = 2 * 97 * 32 + ROWS * CHANNELS + (CHANNELS + 1) * 32 + (32 + 1) * CHANNELS
    assert plan.parameters == count_parameters(EchoConfig()) == rest + 4 * layer
    assert plan.device_memory["weights"] == 4 * plan.parameters
    assert plan.device_memory["replay buffer"] == 4 * 4 * LANES * ROWS * CHANNELS
    assert plan.device_memory["logits"] == 2 * 4 * LANES * LENGTH * 97
    assert plan.traffic["data"] == {"all_reduce": 4 * plan.parameters}
    assert plan.bubble == 0 and plan.fits


def measured_bytes(recompute: bool) -> tuple[int, int]:
    """(kept after the forward, most that is kept at any time) in bytes, each storage once, without parameters."""
    model = Echo(EchoConfig())
    if recompute:
        for layer in model.layers():
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=True)
    tokens, full = torch.zeros(LANES, LENGTH, dtype=torch.int64), torch.full((LANES,), LENGTH)
    segment = Segment(tokens, full, tokens, full, torch.zeros(LANES, dtype=torch.bool))
    memory = torch.zeros(LANES, ROWS, CHANNELS, requires_grad=True)
    with SavedActivations([*model.parameters(), tokens]) as saved:
        loss, _, following = model(segment, memory)
        kept = saved.live_bytes
        (loss + following.sum()).backward()
    return kept, saved.peak_bytes


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_of_a_segment(recompute: bool) -> None:
    """To the byte for what is kept after the forward; the peak of recomputation within 10 %."""
    how, counts = Execution(LANES, LENGTH, 1, "fp32", recompute), {"num_layers": 4}
    kept, peak = measured_bytes(recompute)
    assert sum(trace_parts(EchoConfig(), how).of(counts).saved.values()) == kept
    if recompute:
        assert recomputation_peak(EchoConfig(), how, counts) == pytest.approx(peak, rel=0.1)


def test_the_width_of_the_vocabulary_does_not_make_logits_of_a_layers_activations() -> None:
    how = Execution(LANES, LENGTH, 1, "fp32")
    as_wide = dataclasses.replace(EchoConfig(), vocab_size=32)
    assert trace_parts(as_wide, how).stacks == trace_parts(EchoConfig(), how).stacks


@pytest.mark.parametrize("setting", ["pipeline", "tensor"])
def test_what_the_family_is_not_built_for_is_refused_in_one_line(setting: str) -> None:
    config = config_of()
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update={setting: 2})})
    words = rf"^parallel\.{setting} is 2: not built for family echo, set it to 1$"
    with pytest.raises(UserError, match=words):
        make_plan(config, EchoConfig(), 1, 4, "h100")
    with pytest.raises(UserError, match=words):
        traffic_by_stage(config, EchoConfig(), 4)


def test_a_search_keeps_the_family() -> None:
    """Where neither tensor parallelism nor pipelines are built for it, all that is found does without."""
    found = search(config_of(), EchoConfig(), 1, 4, "h100")
    assert found
    assert all(settings["parallel.tensor"] == settings["parallel.pipeline"] == 1 for settings, _ in found)
    assert {plan.parameters for _, plan in found} == {count_parameters(EchoConfig())}
