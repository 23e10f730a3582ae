# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Where graphs run; on a GPU, that one does what its function does. Readers with graphs: test_segment_reader.py."""

import types
from typing import Any

import pytest
import torch
import torch.distributed as dist

from memformer.models import graphed
from memformer.models.backbone.stacked import side_by_side
from memformer.models.graphed import Graphed, graphs_run, lengths_vary

GPU = torch.device("cuda")


def test_graphs_run_on_a_gpu_alone_and_neither_under_autocast_nor_over_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not graphs_run(torch.device("cpu"))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)  # a simulated GPU's torch
    assert not graphs_run(GPU)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert graphs_run(GPU)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    assert not graphs_run(GPU)
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    for processes, runs in ((1, True), (2, False)):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda processes=processes: processes)
        assert graphs_run(GPU) == runs


def test_attention_of_varying_lengths_is_not_planned_on_a_gpu() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with lengths_vary(GPU):
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with lengths_vary(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_the_first_calls_are_the_function_alone() -> None:
    """Few tokens of many readers are not worth a graph each."""
    calls: list[torch.Tensor] = []

    def function(value: torch.Tensor) -> torch.Tensor:
        calls.append(value)
        return value + 1

    graph, value = Graphed(function), torch.ones(2)
    for _ in range(graphed.PLAIN_CALLS):
        assert torch.equal(graph(value), value + 1)
    assert len(calls) == graphed.PLAIN_CALLS


class Recorder(Graphed):
    """Counts recordings in place of making them, which a CPU cannot."""

    recordings = 0

    def _recorded(self, inputs: tuple[torch.Tensor, ...]) -> Any:
        self.recordings += 1
        self._inputs = tuple(each.clone() for each in inputs)
        self._output = self._function(*inputs)
        return types.SimpleNamespace(replay=lambda: None)


def test_what_was_recorded_of_weights_that_have_moved_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "PLAIN_CALLS", 0)
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    graph = Recorder(lambda x: layers[1](x))
    for recordings, moves in ((1, False), (1, False), (2, True), (2, True)):  # those that lie side by side stay
        if moves:
            side_by_side([layer.weight for layer in layers])
        graph(torch.ones(1, 2))
        assert graph.recordings == recordings


@pytest.mark.gpu
@pytest.mark.parametrize("plain", [0, 1])
def test_a_graph_does_what_its_function_does(plain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "PLAIN_CALLS", plain)
    written = torch.zeros(4, device=GPU)

    def function(at: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        written.index_put_((at,), value)
        return 2 * written

    graph, expected, given = Graphed(function), torch.zeros(4), []
    for place in (2, 0, 3):
        at, value = torch.tensor([place], device=GPU), torch.tensor([place + 1.0], device=GPU)
        expected[place] = place + 1.0
        given.append((graph(at, value), 2 * expected.clone()))
    for found, wanted in given:  # what was given out stays
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_graph_on_a_second_gpu_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own stream for recording is on the device that was recorded on first."""
    monkeypatch.setattr(graphed, "PLAIN_CALLS", 0)
    for device in ("cuda:0", "cuda:1"):
        graph = Graphed(lambda x: x + 1)
        for value in (1.0, 5.0):
            assert float(graph(torch.full((1,), value, device=device))) == value + 1
