# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A moved memory against two plain runs, and against the account of forgetting that all figures and pictures go by.

The account (a write leaves a head's weight on itself / ||m + bias|| of a difference) leaves out what a moved slot
changes in reading and attending, which shows where a head wavers between the slot and the text. So it is held to a
tolerance: over the first four writes what is measured is within a factor of 1.5 of it for all slots together (seen:
1.36), and within 10 % for the median slot (seen: 9 %, most within 1 %).
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from memformer import Memformer
from memformer.inference import perturbation
from memformer.inference.inspection import inspect_tokens
from tests.memformer.inference.test_inspection import (
    DOCUMENT,
    TOKENIZER,
    by_hand,
    make_model,
    near,
    segments_of,
    trained,
    write,
)

STEPS, FOLLOWED = 100, 6


@pytest.fixture(scope="module", params=["paper", "off"])
def model(request: pytest.FixtureRequest) -> Memformer:
    return trained(make_model(forgetting=request.param), STEPS)


@pytest.fixture(scope="module")
def report(model: Memformer) -> dict[str, Any]:
    return inspect_tokens(model, TOKENIZER, [DOCUMENT], horizon=FOLLOWED)


def plain_runs(model: Memformer, slots: list[int], steps: int, at: int) -> list[float]:
    """The distances of two runs, one of which has these slots moved before write `at`."""
    segments, (_, _, memories) = segments_of(DOCUMENT), by_hand(model, DOCUMENT)
    noise = torch.randn(memories[0].shape[1:], generator=torch.Generator().manual_seed(0))
    moved = F.normalize(memories[at] + 0.1 * F.normalize(noise, dim=-1).double(), dim=-1)
    memory, distances = memories[at].clone(), []
    memory[:, slots] = moved[:, slots]
    for step in range(steps + 1):
        distances.append(float((memory - memories[at + step]).norm()))
        if step < steps:
            memory = write(model, segments[at + step], memory)[-1]
    return distances


def test_it_is_followed_as_two_plain_runs_are(model: Memformer, report: dict[str, Any]) -> None:
    moved, at = report["perturbation"], len(segments_of(DOCUMENT)) // 2
    assert moved["at_write"] == at and len(moved["all_slots"]) == FOLLOWED + 1
    for slots, found in ((list(range(5)), moved["all_slots"]), ([2], moved["each_slot"][2])):
        near(found, plain_runs(model, slots, FOLLOWED, at))
    below = [each < moved["all_slots"][0] / 2 for each in moved["all_slots"]]
    assert moved["half_life_all_slots"] == (below.index(True) if True in below else None)


def test_what_is_measured_is_what_the_account_expects(model: Memformer, report: dict[str, Any]) -> None:
    moved = report["perturbation"]
    measured = torch.tensor([moved["all_slots"], *moved["each_slot"]])
    expected = torch.tensor([moved["expected_all_slots"], *moved["expected_each_slot"]])
    ratio = (measured / expected)[:, :5]
    torch.testing.assert_close(ratio[:, 0], torch.ones(6), rtol=0, atol=1e-5)
    assert (ratio[0] > 1 / 1.5).all() and (ratio[0] < 1.5).all()
    assert ((ratio[1:].median(dim=0).values - 1).abs() < 0.1).all()
    # Without the bias the account would be out by a factor of two a write.
    left = float(measured[0, 4] / measured[0, 0])
    assert left < 0.2 if model.config.memory_forgetting == "paper" else left > 0.6


def test_what_the_writer_keeps_is_forgotten_all_the_same(model: Memformer, report: dict[str, Any]) -> None:
    """The bias is in the labels: a head's part that is copied is kept where the model does not forget, alone."""
    forgets = model.config.memory_forgetting == "paper"
    own, left = (
        torch.tensor([slot[name] for slot in report["slots"]]) for name in ("self_weight_by_head", "retention_by_head")
    )
    copied = own > 0.95
    assert copied.any()
    assert (left[copied] < 0.7).all() if forgets else (left[copied] > 0.9).all()
    assert ("kept" in {slot["kind"] for slot in report["slots"]}) != forgets
    assert (report["shares"]["all"]["kept_by_head"] > 0) != forgets


def test_it_ends_where_it_has_died_away(model: Memformer) -> None:
    """A memory that forgets is followed until a thousandth is left; one that does not, to the horizon."""
    moved = inspect_tokens(model, TOKENIZER, [DOCUMENT], horizon=14)["perturbation"]
    rows = [(moved["all_slots"], moved["expected_all_slots"])]
    rows += zip(moved["each_slot"], moved["expected_each_slot"], strict=True)
    for distances, expected in rows:
        left = [each / distances[0] for each in distances]
        assert len(distances) == len(expected)
        assert min(left[:-1]) >= perturbation.DIED
        assert len(left) == 15 or left[-1] < perturbation.DIED
    ended = len(moved["each_slot"][1])
    assert (ended < 15) == (model.config.memory_forgetting == "paper")
    near(moved["each_slot"][1], plain_runs(model, [1], ended - 1, moved["at_write"]))


def test_of_many_slots_some_are_moved_alone(
    model: Memformer, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perturbation, "MOVED_ALONE", 3)
    monkeypatch.setattr(perturbation, "LANES", 2)
    found = inspect_tokens(model, TOKENIZER, [DOCUMENT], horizon=FOLLOWED)["perturbation"]
    every = report["perturbation"]
    assert [slot for slot, distances in enumerate(found["each_slot"]) if distances] == [0, 2, 4]
    for slot in (0, 2, 4):
        near(found["each_slot"][slot], every["each_slot"][slot])
        assert found["half_life_each_slot"][slot] == every["half_life_each_slot"][slot]
    near(found["all_slots"], every["all_slots"])
