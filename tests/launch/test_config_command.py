# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer config`: the whole configuration as YAML that is read as the same, and the schema for editors.

Covers: launch/commands/config.py
"""

import json
from pathlib import Path

import pytest

from launch.cli import main
from memformer.config.schema import load_config

CHANGED = ["--data.num_lanes", "4", "--data.path", "$HOME/a$$b", "--seed", "7"]


@pytest.mark.parametrize("name", ["train/example.yaml", "train/backbone-tiny.yaml"])
def test_what_it_shows_is_read_as_the_same(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And is what a run writes: `as_yaml`."""
    assert main(["config", "show", f"builtin:{name}", *CHANGED]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    again, asked = load_config(tmp_path / "again.yaml"), load_config(f"builtin:{name}", CHANGED)
    assert again == asked and (tmp_path / "again.yaml").read_text() == asked.as_yaml()
    assert again.data.path.endswith("a$b") and (again.data.num_lanes, again.seed) == (4, 7)


@pytest.mark.parametrize(
    "words", [["--data.num_lane", "4"], ["--training.max_steps", "0"], ["--model.family", "nobody"], ["--seed"]]
)
def test_a_faulty_one_gives_the_line_that_train_gives(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for command in (["config", "show"], ["train"]):
        assert main([*command, "builtin:train/example.yaml", *words]) == 2
        said.append(capsys.readouterr().err.partition("error: ")[2])
    assert said[0] == said[1] and said[0].count("\n") == 1


def test_the_schema_is_that_of_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    """tests/launch/test_init.py holds what it says of files."""
    assert main(["config", "schema", "--family", "backbone"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"].endswith("family backbone") and "BackboneConfig" in schema["$defs"]
    assert main(["config", "schema", "--family", "nobody"]) == 2
    said = capsys.readouterr().err
    assert "there is no family 'nobody'; choose from backbone, " in said and "memformer" in said


def test_settings_are_those_of_show_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["config", "schema", "--seed", "3"])
    assert "unrecognized arguments: --seed 3" in capsys.readouterr().err
    for action, told in (("show", True), ("schema", False)):
        with pytest.raises(SystemExit, match="0"):
            main(["config", action, "--help"])
        assert ("--training.max_steps" in capsys.readouterr().out) == told
