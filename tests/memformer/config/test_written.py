# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A value becomes what is asked for where it stands: text stays text, and a number is one that a computer can hold."""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.config.schema import load_config
from memformer.config.written import Written, number, settle

TEXTS = ["010", "1_000", "1:30", "0x10", "1e5", "12e4567", "no", "Yes", "null", "2026-11-26", "1.50", "=", "-1", "0b1"]


def load(folder: Path, *lines: str, words: tuple[str, ...] = ()) -> Any:
    path = folder / "c.yaml"
    path.write_text("\n".join(["run_dir: r", "data: {path: d}", *lines]))
    return load_config(path, words)


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_as_it_was_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(f"run_dir: {text}\ndata: {{path: [{{path: {text}}}]}}\n")
    config = load_config(tmp_path / "c.yaml", ["--init_from", text])
    assert isinstance(config.data.path, list)
    assert config.run_dir == config.data.path[0].path == text
    assert config.init_from == (None if text == "null" else text), "null is nothing where that may be"


@pytest.mark.parametrize("text", ["a # b", "a: b", "- a", "@a", "%a", "a, b", "*a", "!a", "|"])
def test_an_option_needs_no_quotes_of_yaml(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, words=("--run_dir", text)).run_dir == text
    assert load(tmp_path, words=("--run_dir", f"'{text}'")).run_dir == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("-7", -7), ("1_000", 1000), ("0x10", 16), ("0o17", 15), ("0b11", 3), ("1e-4", 1e-4), ("1e5", 1e5),
        ("5E-4", 5e-4), (".5", 0.5), ("2.", 2.0), ("1.5e3", 1500.0), ("yes", True), ("OFF", False), ("~", None),
        ("", None), ("1:30", "1:30"), ("2026-11-26", "2026-11-26"), ("1e", "1e"), ("0xg", "0xg"), ("-", "-"),
        (str(2**63 - 1), 2**63 - 1), ("0e999", 0.0),
    ],
)  # fmt: skip
def test_numbers_truth_and_nothing(text: str, value: object) -> None:
    found = number(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["12e4567", "-1e999", "1e-400", str(2**63), "9" * 5000, "0x" + "f" * 20, ".inf", ".nan"]
)
@pytest.mark.parametrize("setting", ["optimizer.learning_rate", "seed", "model.rotary_base", "deepspeed.log_level"])
def test_what_no_number_can_hold_is_refused(tmp_path: Path, text: str, setting: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, words=(f"--{setting}", text))
    said = str(caught.value)
    assert said.startswith(f"--{setting}: is ") and len(said) < 200
    assert "too large" in said or "too small" in said or "not a finite number" in said


def test_python_s_own_values_are_held_to_the_same() -> None:
    faults: list[Any] = []
    assert settle({"a": 1, "b": [float("nan"), 2**70], "c": "nan"}, None, faults) == {
        "a": 1,
        "b": [None, None],
        "c": "nan",
    }
    assert [place for place, _ in faults] == [("b", 0), ("b", 1)]


def test_a_truth_value_is_no_number_and_a_quoted_number_is_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training.max_steps: is 'yes': input should be a valid integer"):
        load(tmp_path, "training: {max_steps: yes}")
    assert load(tmp_path, "tensorboard: off").tensorboard is False
    assert load(tmp_path, "deepspeed: {wandb: {group: '010'}}").deepspeed == {"wandb": {"group": "010"}}
    assert settle(Written("1", "x", quoted=True), Any, []) == "1"


def test_a_section_with_nothing_under_it_has_its_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "training:", "model:", "deepspeed:")
    assert config == load(tmp_path, "training: {}", "model: {}", "deepspeed: {}")


def test_a_section_that_may_be_none_is_none_with_nothing_under_it(tmp_path: Path) -> None:
    sizes = (
        "model_type: llama, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 9"
    )
    model = f"model: {{family: backbone, backbone: {{{sizes}}}, lora: LORA}}"
    assert load(tmp_path, model.replace("LORA", "null")).model.lora is None  # type: ignore[attr-defined]
    lora = load(tmp_path, model.replace("LORA", "{rank: 2}"), "training: {train: lora}").model.lora  # type: ignore[attr-defined]
    assert (lora.rank, lora.alpha) == (2, 16.0)
