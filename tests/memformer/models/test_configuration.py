# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Whether two models are the same, and what they differ in."""

from typing import Any

import pytest

from memformer.models.backbone.config import BackboneConfig, LoraConfig
from memformer.models.configuration import first_difference
from tests.memformer.models.backbone.examples import config_of

SECTION: dict[str, Any] = {"kind": "associative", "d_key": 4, "layers": [1, 2]}


@pytest.mark.parametrize(
    ("saved", "here", "found"),
    [
        (SECTION, SECTION, None),
        (SECTION, SECTION | {"layers": [1]}, ("layers", [1, 2], [1])),
        ({"memory": SECTION}, {"memory": SECTION | {"rule": "armt"}}, ("memory.rule", None, "armt")),
        ({"lora": {"rank": 2}}, {"lora": None}, ("lora", {"rank": 2}, None)),
        ({"not known here": 1}, {}, None),
        ({"a": 1, "b": {"c": 1, "d": 1}}, {"a": 2, "b": {"c": 2, "d": 2}}, ("b.d", 1, 2)),
    ],
)
def test_what_differs_is_named_with_its_section(
    saved: dict[str, Any], here: dict[str, Any], found: tuple[str, Any, Any] | None
) -> None:
    assert first_difference(saved, here, frozenset({"a", "b.c"})) == found


def test_a_dropout_of_adapters_may_change_and_their_rank_may_not() -> None:
    def saved(**values: Any) -> dict[str, Any]:
        return config_of("llama", lora=LoraConfig(**values)).to_dict()

    before = saved(rank=2, dropout=0.1)
    assert first_difference(before, saved(rank=2), BackboneConfig.weightless) is None
    assert first_difference(before, saved(rank=4), BackboneConfig.weightless) == ("lora.rank", 2, 4)
