# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Configuration files that come with the package: by name on the command line and in `extends`."""

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from memformer.config.builtin import builtin_file, builtin_names
from memformer.config.schema import load_config
from tests import ROOT


def test_they_are_the_files_of_the_repository() -> None:
    names = builtin_names()
    assert {"model/7b.yaml", "train/example.yaml", "parallel/7b-on-64.yaml"} < set(names)
    assert names == sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml"))
    assert all(builtin_file(name).samefile(ROOT / "configs" / name) for name in names)


@pytest.mark.parametrize("written", ["builtin:model/7b.yaml", "[builtin:model/tiny.yaml, builtin:model/7b.yaml]"])
def test_a_file_extends_them(tmp_path: Path, written: str) -> None:
    (tmp_path / "c.yaml").write_text(f"extends: {written}\nrun_dir: r\ndata: {{path: d}}\nmodel: {{num_heads: 64}}\n")
    model = load_config(tmp_path / "c.yaml").model.to_dict()
    assert (model["num_decoder_layers"], model["d_model"], model["num_heads"]) == (20, 4096, 64)


def test_a_command_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any directory; what it extends itself is found beside it."""
    monkeypatch.chdir(tmp_path)
    config = load_config("builtin:train/example.yaml", ["--run_dir", "mine"])
    assert config == load_config(ROOT / "configs/train/example.yaml", ["--run_dir", "mine"])
    assert config.model.to_dict()["d_model"] == 128, "of model/tiny.yaml"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model/7c.yaml", "did you mean builtin:model/7b.yaml"),
        ("7b", "did you mean builtin:model/7b.yaml?"),
        ("../model/7b.yaml", "did you mean builtin:model/7b.yaml"),
        ("../../schema.py", "there are builtin:deepspeed/communication-log.yaml, builtin:model/1.3b.yaml, "),
        ("", "there are builtin:deepspeed/"),
    ],
)
def test_a_wrong_name_lists_those_that_may_be_meant(tmp_path: Path, name: str, words: str) -> None:
    """Also one that leads out of the directory."""
    path = tmp_path / "c.yaml"
    path.write_text(f"extends: 'builtin:{name}'\n")
    for asked, begin in ((f"builtin:{name}", f"builtin:{name}: "), (path, f"{path}: extends: builtin:{name}: ")):
        with pytest.raises(UserError) as caught:
            load_config(asked)
        said = str(caught.value)
        assert said.startswith(begin) and words in said and "\n" not in said
