# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What memory replay computes and keeps: calls are counted, saved activations measured."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from benchmarks.activations import LiveTensors, SavedActivations
from memformer import Memformer
from memformer.replay import (
    Carry,
    KeptMemories,
    ReplayBuffer,
    Rollout,
    RolloutResult,
    bptt_backward,
    memory_replay_backward,
)
from tests.memformer.examples import full_segment, ragged_rollout, random_memory, random_tokens, small_model

LANES, LENGTH = 4, 12


class RecordingBuffer(ReplayBuffer):
    """Remembers the most it held."""

    peak_bytes = 0

    def push(self, memory_BKD: torch.Tensor) -> None:
        super().push(memory_BKD)
        self.peak_bytes = max(self.peak_bytes, self.stored_bytes)


def problem(segments: int, **changes: object) -> tuple[Memformer, Rollout, Carry]:
    model = small_model(**changes)  # type: ignore[arg-type]
    rollout = ragged_rollout(LANES, segments, LENGTH)
    tokens = random_tokens(LANES, LENGTH, seed=21)
    return model, rollout, Carry(random_memory(model, LANES), tokens, torch.full((LANES,), LENGTH))


def saved_peak(algorithm: Callable[..., RolloutResult], segments: int, interval: int = 1) -> tuple[int, int]:
    """(peak of what autograd keeps, peak of the buffer) in bytes; afterwards nothing may be kept."""
    model, rollout, carry = problem(segments)
    buffer = RecordingBuffer(interval=interval)
    given = (rollout.tokens, rollout.lengths, rollout.resets, carry.memory, carry.tokens, carry.length)
    with SavedActivations((*model.parameters(), *given)) as saved:
        algorithm(model, rollout, carry, denominator=1.0, buffer=buffer)
    assert saved.live_bytes == 0, "the graph outlives the rollout"
    assert buffer.stored_bytes == 0
    return saved.peak_bytes, buffer.peak_bytes


def one_segment_graph() -> int:
    """Bytes that autograd keeps for one segment, called by itself."""
    model, segment = small_model(), full_segment(LANES, LENGTH)._replace(ragged=True)
    memory = random_memory(model, LANES).requires_grad_()
    with SavedActivations((*model.parameters(), *segment[:5])) as saved:
        loss, _, next_memory = model(segment, memory)
        (loss + next_memory.sum()).backward()
    return saved.peak_bytes


def test_replay_keeps_one_segments_graph_and_the_memories() -> None:
    one = one_segment_graph()
    for segments in (1, 2, 4, 16):
        peak, buffered = saved_peak(memory_replay_backward, segments)
        assert peak <= 1.02 * one, segments
        assert buffered == (segments - 1) * LANES * 3 * 16 * 8


@pytest.mark.parametrize("interval", [2, 4, 5, 16])
def test_memories_of_groups_are_kept_once_a_group(interval: int) -> None:
    """T/k + k of them at most, and one segment's graph as before; each that is not kept costs one more `advance`."""
    segments = 17
    model, rollout, carry = problem(segments)
    calls: Counter[bool] = Counter()
    assert model.writer is not None
    model.writer.register_forward_hook(lambda *_: calls.update([torch.is_grad_enabled()]))
    memory_replay_backward(model, rollout, carry, denominator=1.0, buffer=ReplayBuffer(interval=interval))
    peak, buffered = saved_peak(memory_replay_backward, segments, interval)
    kept = buffered // (LANES * 3 * 16 * 8)
    assert kept == KeptMemories(segments, interval).count == -(-16 // interval) + interval - 1
    assert kept <= segments / interval + interval
    assert calls == {True: segments, False: 16 + (16 - kept)}
    assert peak <= 1.02 * one_segment_graph()


def test_full_backpropagation_keeps_every_segments_graph() -> None:
    """What the measure above would show if the replay kept its graphs."""
    one = one_segment_graph()
    for segments in (2, 8):
        peak, buffered = saved_peak(bptt_backward, segments)
        assert peak > 0.9 * segments * one and buffered == 0


def test_all_tensors_alive_grow_by_the_memories_alone() -> None:
    """Temporary tensors counted too; beyond the buffer each segment leaves a loss, a count and a norm."""

    def peak(segments: int) -> int:
        model, rollout, carry = problem(segments)
        memory_replay_backward(model, rollout, carry, denominator=1.0)  # gradients are there from now on
        with LiveTensors() as live:
            memory_replay_backward(model, rollout, carry, denominator=1.0)
        return live.meter.peak_bytes

    memory_bytes = LANES * 3 * 16 * 8
    few, many = peak(4), peak(16)
    assert 11 * memory_bytes < many - few < 13 * (memory_bytes + 64)


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_the_decoder_runs_once_a_segment_and_never_in_the_first_pass(segments: int) -> None:
    model, rollout, carry = problem(segments)
    calls: Counter[tuple[str, bool]] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([(name, torch.is_grad_enabled())])

    for name, module in (
        ("encoder", model.encoder[0]),
        ("writer", model.writer),
        ("decoder", model.decoder[0]),
        ("head", model.head),
    ):
        assert module is not None
        module.register_forward_hook(count(name))
    memory_replay_backward(model, rollout, carry, denominator=1.0)
    expected = {(name, True): segments for name in ("encoder", "writer", "decoder", "head")}
    expected |= {(name, False): segments - 1 for name in ("encoder", "writer") if segments > 1}
    assert calls == expected


def test_one_backward_a_segment() -> None:
    model, rollout, carry = problem(5)
    called = []

    def backward(objective: torch.Tensor, remaining: int) -> None:
        called.append(remaining)
        objective.backward()

    memory_replay_backward(model, rollout, carry, backward, denominator=1.0)
    assert len(called) == 5


def test_saved_activations_counts_storages_once_and_lets_go() -> None:
    x, weight = torch.randn(10, 10), torch.randn(10, 10, requires_grad=True)
    with SavedActivations([weight]) as saved:
        y = x @ weight  # keeps x
        z = (y * y.view(10, 10)).exp()  # keeps y once, and the result
        assert saved.live_bytes == 3 * 400
        z.sum().backward()
        assert saved.live_bytes == 0
    assert saved.peak_bytes == 3 * 400


def test_live_tensors_sees_temporary_ones() -> None:
    x = torch.randn(10, 10)
    with LiveTensors() as live:
        y = (x + 1) * 2
        assert live.meter.live_bytes == 400
        z = y.t()
        del y, z
        assert live.meter.live_bytes == 0
    assert live.meter.peak_bytes == 800
