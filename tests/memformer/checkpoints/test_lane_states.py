# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Carries of waiting documents: taken over by lanes, dropped when taken, and saved under the names that files have."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from memformer.checkpoints.lane_states import WAITING, CarryRow, LaneStates, load_lanes
from memformer.replay import Carry


def carry_of(*numbers: int) -> Carry:
    """Lanes whose memory and tokens are their number throughout, and as long as it."""
    each = torch.tensor(numbers)
    return Carry(each[:, None, None].expand(-1, 2, 3).float(), each[:, None].expand(-1, 4), each)


def row_of(number: int) -> CarryRow:
    carry = carry_of(number)
    return carry.memory[0], carry.tokens[0], carry.length[0]


def test_a_lane_takes_a_waiting_carry_and_those_left_still_wait() -> None:
    states = LaneStates(carry_of(1, 2), {2: row_of(3), 3: row_of(4)})
    before = states.before(np.array([-1, 3]))
    assert before.length.tolist() == [1, 4]
    assert before.memory[:, 0, 0].tolist() == [1.0, 4.0] and before.tokens[:, 0].tolist() == [1, 4]
    assert states.carry.length.tolist() == [1, 2], "the state before is not touched"
    assert list(states.after(before, [0, 1, 2]).waiting) == [2]


def test_files_are_written_and_read_under_their_names(tmp_path: Path) -> None:
    """`slots` is what checkpoints have called the row numbers of waiting documents since there are any."""
    states = LaneStates(carry_of(1, 2), {2: row_of(3), 5: row_of(4)})
    waiting = states.waiting_tensors()
    assert list(waiting) == ["memory", "tokens", "length", "slots"]
    assert waiting["slots"].dtype == torch.int64 and waiting["slots"].tolist() == [2, 5]
    for name, tensors in (("rank-00000.safetensors", states.tensors()), (WAITING, waiting)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
    # One lane is left: it keeps lane 1's document; row 5, then lane 0's document wait.
    found = load_lanes(tmp_path, 2, 1, [1, 5, 0], slice(0, 1), 1, lambda lanes: carry_of(*[0] * lanes))
    assert found.carry.length.tolist() == [2]
    assert {row: int(values[2]) for row, values in found.waiting.items()} == {1: 4, 2: 1}


def test_a_previous_segment_is_fitted_to_another_length(tmp_path: Path) -> None:
    """Its end is kept where segments are shorter now, all of it where they are longer; memories stay as they are."""
    memory = torch.arange(2.0)[:, None, None].expand(2, 2, 3)
    states = LaneStates(Carry(memory, torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([4, 2])))
    save_file(
        {key: tensor.contiguous() for key, tensor in states.tensors().items()}, tmp_path / "rank-00000.safetensors"
    )

    def loaded(length: int) -> Carry:
        def empty(lanes: int) -> Carry:
            return Carry.empty(torch.zeros(lanes, 2, 3), length)

        return load_lanes(tmp_path, 2, 1, [0, 1], slice(0, 2), 2, empty).carry

    shorter, same, longer = loaded(3), loaded(4), loaded(6)
    assert shorter.tokens.tolist() == [[2, 3, 4], [5, 6, 0]] and shorter.length.tolist() == [3, 2]
    assert torch.equal(same.tokens, states.carry.tokens) and torch.equal(same.length, states.carry.length)
    assert longer.tokens.tolist() == [[1, 2, 3, 4, 0, 0], [5, 6, 0, 0, 0, 0]] and longer.length.tolist() == [4, 2]
    assert longer.ragged and all(torch.equal(each.memory, memory) for each in (shorter, same, longer))
