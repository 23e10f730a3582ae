# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""YAML files: what is refused in one line that names the file and the line in it."""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.config.schema import load_config, parse_config

START = "run_dir: r\ndata: {path: d}\n"


def load(folder: Path, content: str | bytes) -> Any:
    path = folder / "c.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_config(path)


FAULTS: dict[str, tuple[str | bytes, int, str]] = {
    "a section twice": (START + "seed: 1\nrun_dir: q\n", 4, "run_dir is there twice (first in line 1)"),
    "a setting twice": (
        START + "training:\n  seed: 1\n  seed: 2\n",
        5,
        "training.seed is there twice (first in line 4)",
    ),
    "in a flow mapping": (START + "training: {seed: 1, seed: 1}\n", 3, "training.seed is there twice"),
    "quoted and plain": (START + "'seed': 1\nseed: 2\n", 4, "seed is there twice"),
    "in a list": ("data:\n  path:\n  - {path: a}\n  - {path: b, path: c}\n", 4, "data.path.1.path is there twice"),
    "deep in deepspeed": (START + "deepspeed: {a: {b: {c: 1, c: 2}}}\n", 3, "deepspeed.a.b.c is there twice"),
    "merged twice": (START + "training: {<<: {a: 1}, <<: {b: 1}}\n", 3, "training.<< is there twice"),
    "a tab": (START + "training:\n\tseed: 1\n", 4, "a tab where YAML wants blanks"),
    "a bracket left open": (START + "training: {\n", 4, "is not YAML (while parsing a flow node"),
    "an equals sign for a colon": (START + "seed = 3\nprecision: fp32\n", 3, "could not find expected ':'"),
    "quotes left open": (START + "init_from: 'a\nprecision: fp32\n", 3, "while scanning a quoted scalar"),
    "a colon in a value": (START + "init_from: runs: a\n", 3, "a colon in a value, which needs quotes"),
    "Latin-1": (START.encode() + b"init_from: caf\xe9\n", 3, "is not UTF-8 text (byte 0xe9)"),
    "UTF-16": (START.encode("utf-16"), 1, "is not UTF-8 text"),
    "a control character": (START + "init_from: \x01\n", 3, "a control character, 0x1"),
    "two documents": (START + "---\nseed: 1\n", 3, "expected a single document"),
    "a tag": (START + "seed: !!python/name:os.system\n", 3, "has the tag tag:yaml.org,2002:python/name:os.system"),
    "a list as a key": (START + "[a]: 1\n", 3, "a key is a list or a mapping"),
    "an alias in itself": (START + "training: &a {b: *a}\n", 3, "an alias stands within what it names"),
    "an alias of nothing": (START + "training: *a\n", 3, "found undefined alias 'a'"),
    "a merge of a number": (START + "training: {<<: 3}\n", 3, "<< merges a mapping, or a list of them"),
    "thousands of brackets": ("a: " + "[" * 5000, 1, "is nested too deeply"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_names_file_and_line(tmp_path: Path, kind: str) -> None:
    content, line, words = FAULTS[kind]
    with pytest.raises(UserError) as caught:
        load(tmp_path, content)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'c.yaml'}, line {line}: ") and words in said
    assert caught.value.exit_code == 2 and len(said) < 300


def test_a_file_that_another_extends_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\nseed: 2\n")
    with pytest.raises(UserError, match=r"base\.yaml, line 2: seed is there twice"):
        load(tmp_path, START + "extends: [base.yaml]\n")
    (tmp_path / "base.yaml").write_text("seed: 7\n")
    monkeypatch.setenv("CONFIGS", str(tmp_path))
    assert load(tmp_path, START + "extends: [$CONFIGS/base.yaml]\n").seed == 7
    with pytest.raises(UserError, match=r"c\.yaml: extends: .* variable CONFIG is not set"):
        load(tmp_path, START + "extends: [$CONFIG/base.yaml]\n")


def test_aliases_and_merges_hold_and_do_not_share_what_is_changed_later(tmp_path: Path) -> None:
    shared = "data: &d {path: d, num_lanes: 8}\ntraining: {<<: [{max_steps: 5, seed: 1}, {max_steps: 6}], seed: 2}\n"
    path = tmp_path / "c.yaml"
    path.write_text("run_dir: r\ndata: &d {path: d, num_lanes: 8}\nx: *d\n")
    with pytest.raises(UserError, match="x: unknown key"):
        load_config(path)
    path.write_text("run_dir: r\ndata: {path: d}\nguards: &g {max_skips: 3}\ndeepspeed: {wandb: *g, comet: *g}\n")
    with pytest.raises(UserError) as caught:
        load_config(path, ["--deepspeed.wandb.group", "a"])
    assert "deepspeed.wandb.max_skips" in str(caught.value) and "comet.group" not in str(caught.value)
    path.write_text("run_dir: r\n" + shared.replace("seed", "log_interval"))
    training = load_config(path).training
    assert (training.max_steps, training.log_interval) == (5, 2), "the first of several, under a key of one's own"


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf" + START.encode()).run_dir == "r"


AWKWARD = [
    "1e5",
    "0o17",
    "010",
    "yes",
    "null",
    "~",
    "",
    " x ",
    "1_000",
    ".5",
    "1:30",
    "2026-01-01",
    "a: b",
    "#",
    "9" * 400,
]


def test_what_is_saved_is_read_as_the_same(tmp_path: Path) -> None:
    """Also where nothing says what is asked for: texts that look like numbers, and numbers."""
    keys = {"comms_logger": {"prof_ops": [*AWKWARD, 1e-5, 1e22, 10, -0.0, True, None]}}
    config = parse_config({"run_dir": "1e5", "data": {"path": "$$d"}, "deepspeed": keys}, "test")
    (tmp_path / "c.yaml").write_text(config.as_yaml())
    again = load_config(tmp_path / "c.yaml")
    assert again == config and again.deepspeed == keys and (again.run_dir, again.data.path) == ("1e5", "$d")


def test_a_schedule_is_one_value_and_no_section(tmp_path: Path) -> None:
    """A later one replaces an earlier one whole, where sections are merged; it is saved and read as the same."""
    text = "run_dir: r\ndata: {path: d, num_segments: {0: 1, 1000: 2}}\n"
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "c.yaml").write_text("extends: [base.yaml]\ndata: {num_segments: {0: 2, 50: 4}}\n")
    config = load_config(tmp_path / "c.yaml")
    assert config.data.num_segments == {0: 2, 50: 4} and config.data.most_segments == 4
    assert load_config(tmp_path / "base.yaml", ["--data.num_segments={0: 3}"]).data.segments.starts == ((0, 3),)
    assert load_config(tmp_path / "base.yaml", ["--data.num_segments", "7"]).data.num_segments == 7
    (tmp_path / "again.yaml").write_text(config.as_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    for value, words in (("0", "is 0: give 1 to 1,000,000"), ("{2: 1}", "add 0: 1 to it"), ("{5:2}", "a blank behind")):
        with pytest.raises(UserError, match=words) as caught:
            load_config(tmp_path / "base.yaml", [f"--data.num_segments={value}"])
        assert "--data.num_segments" in str(caught.value) and "\n" not in str(caught.value)
