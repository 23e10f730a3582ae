# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Settings by their dotted names, and JSON Schema of files; tests/launch/test_init.py checks shipped files by it."""

from collections.abc import Callable

import fastjsonschema
import pytest

from memformer.config.faults import ITEM
from memformer.config.json_schema import file_schema, settings_of
from memformer.config.schema import schema_of


@pytest.fixture(scope="module")
def check() -> Callable[[object], object]:
    """Raises where a file would be marked."""
    compiled: Callable[[object], object] = fastjsonschema.compile(file_schema(schema_of("memformer"), "memformer"))
    return compiled


def test_settings_have_dotted_names_also_in_lists_and_in_what_may_be_left_out() -> None:
    names = dict(settings_of(schema_of("backbone"), items=True))
    assert {"run_dir", "model.family", "training.max_steps", "model.lora.rank", f"data.path.{ITEM}.weight"} <= set(
        names
    )
    assert "training" not in names and f"data.path.{ITEM}.weight" not in dict(settings_of(schema_of("backbone")))
    assert "default" not in names["run_dir"] and names["seed"]["default"] == 0


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ({}, True),
        ({"extends": "builtin:model/7b.yaml", "data": {"num_segments": {"0": 1, "1000": 2}}}, True),
        ({"extends": ["../base.yaml"], "model": {"family": "memformer", "num_heads": 4}}, True),
        ({"data": {"path": [{"path": "a", "weight": 2}]}}, True),
        ({"data": {"path": [{"weight": 2}]}}, False),
        ({"extends": 3}, False),
        ({"model": {"family": "backbone"}}, False),
        ({"model": {"memory": {"kind": "slots"}}}, False),
        ({"data": {"num_lanes": 0}}, False),
        ({"data": {"num_lane": 1}}, False),
    ],
)
def test_a_file_is_part_of_a_configuration(
    check: Callable[[object], object], values: dict[str, object], holds: bool
) -> None:
    """What one that it extends may say is not required; an item of a list is whole."""
    try:
        check(values)
    except fastjsonschema.JsonSchemaValueException:
        assert not holds
    else:
        assert holds
