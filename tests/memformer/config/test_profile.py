# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The section `profile`: what a window and processes may be."""

from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.config.schema import parse_config


def parsed(profile: dict[str, Any]) -> Any:
    values = {"run_dir": "r", "data": {"path": "d"}, "training": {"max_steps": 30}, "profile": profile}
    return parse_config(values, "c.yaml").profile


def test_windows() -> None:
    assert parsed({}).steps == [] and parsed({}).ranks == [0]
    assert parsed({"steps": [30, 30], "ranks": [3, 0]}).steps == [30, 30]


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"steps": [3]}, r"profile.steps: is \[3\]: give the first and the last step"),
        ({"steps": [0, 1]}, r"profile.steps: is \[0, 1\]: give the first"),
        ({"steps": [5, 4]}, r"profile.steps: is \[5, 4\]: give the first"),
        ({"steps": [1, 21]}, r"profile.steps: is \[1, 21\]: trace at most 20 steps, such as \[1, 3\]"),
        ({"steps": [30, 31]}, r"profile.steps is \[30, 31\]: the last step is training.max_steps = 30"),
        ({"ranks": []}, r"profile.ranks: is \[\]: name processes by their number"),
        ({"ranks": [0, 0]}, r"profile.ranks: is \[0, 0\]: name"),
        ({"ranks": [-1]}, r"profile.ranks: is \[-1\]: name"),
    ],
)
def test_what_is_refused(profile: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parsed(profile)
