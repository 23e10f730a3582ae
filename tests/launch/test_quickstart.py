# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make train`: which commands it gives, in which order, and what it leaves out when it is repeated."""

import json
import sys
from pathlib import Path

import pytest

from launch import quickstart
from launch.cli import command

TASKS = {
    "tasks": [
        {
            "cells": [
                {"length": length, "questions": 8, "with_memory": {"right": right}, "memory_reset": {"right": 1}}
                for length, right in ((160, 8), (1600, 8), (1600, 4))
            ]
        }
    ]
}
EVALUATION = {"with_memory": {"perplexity": 3.5}, "memory_reset": {"perplexity": 4.25}}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands given, each checked by the parser of its own; what they would leave behind is made up."""
    given: list[list[str]] = []

    def memformer(*words: str) -> str:
        _, parser = command(words[0])
        parser.parse_args(list(words[1:]))
        given.append(list(words))
        if words[0] == "data":
            made = Path(words[words.index("--out") + 1])
            manifest = (made / "train" if words[1] == "build" else made) / "manifest.json"
            manifest.parent.mkdir(parents=True)
            manifest.touch()
        elif words[0] == "launch":
            run = Path(words[words.index("--run_dir") + 1])
            (run / "model").mkdir(parents=True, exist_ok=True)
            (run / "metrics.jsonl").write_text('{"loss": 5.5}\n{"loss": 1.25}\n')
        elif "--tasks" in words:
            out = Path(words[words.index("--out") + 1])
            out.mkdir(exist_ok=True)
            (out / "tasks.json").write_text(json.dumps(TASKS))
        elif words[0] == "evaluate":
            return "a table\n" + json.dumps(EVALUATION) + "\n"
        return "once upon a time" if words[0] == "generate" else ""

    monkeypatch.setattr(quickstart, "memformer", memformer)
    monkeypatch.setattr(quickstart, "visible_gpus", lambda: 6)
    monkeypatch.setattr(
        sys,
        "argv",
        ["quickstart", *(f"--{name}={tmp_path / name}" for name in ("data", "passkeys")), f"--run-dir={tmp_path}/run"],
    )
    return given


def test_the_commands_and_what_they_leave(
    given: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quickstart.main() == 0
    assert [words[0] for words in given] == [
        *("data", "launch", "export", "evaluate", "generate"),
        *("data", "launch", "export", "evaluate"),
    ]
    assert given[0][:3] == ["data", "build", "builtin:books"]
    assert given[1][given[1].index("--nproc") + 1] == "4", "the largest power of two among 6 GPUs"
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == EVALUATION
    assert (tmp_path / "run" / "sample.txt").read_text() == quickstart.PROMPT + "once upon a time"
    said = capsys.readouterr().out
    assert "loss 5.50 -> 1.25" in said
    assert "3.5000 with memory, 4.2500 with it reset" in said
    assert "in 1,600 bytes 75% right with memory, 12% with it reset" in said


def test_repeated_it_keeps_the_data_and_exports_anew(
    given: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart.main()
    old = tmp_path / "run" / "model" / "of an earlier step"
    old.parent.mkdir(parents=True, exist_ok=True)
    old.touch()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "7"])
    quickstart.main()
    again = ["launch", "export", "evaluate", "generate", "launch", "export", "evaluate"]
    assert [words[0] for words in given[9:]] == again
    steps = ["--optimizer.warmup_steps", "0", "--training.max_steps", "7"]
    assert given[9][-4:] == given[13][-4:] == steps
    assert not old.exists()


def test_a_command_that_fails_ends_it_with_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        quickstart.memformer("checkpoint", "list", str(tmp_path / "nowhere"))
    assert ended.value.code == 2
    said = capfd.readouterr()
    assert said.out.startswith("$ memformer checkpoint list ")
    assert "is no directory" in said.err
