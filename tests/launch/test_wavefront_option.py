# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`--wavefront` of `memformer generate` and `evaluate`: the same text and figures, read through a `BackboneWavefront`.

Covers: launch/models.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import main
from memformer.models.backbone.wavefront import BackboneWavefront
from tests.books import small_dataset
from tests.memformer.models.backbone.examples import config_of, make
from tests.memformer.models.backbone.exported import write_export


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports with a memory of each layer's own and with slots, and data."""
    root = tmp_path_factory.mktemp("place")
    for memory in ("associative", "slots"):
        config = config_of(memory=memory, vocab_size=257, start_token_id=256, segment_length=16)
        write_export(make(config, torch.float32, moved=0.1), root / memory / "model")
    small_dataset(root, 3, 2_000)
    return root


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--device", "cpu", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each wavefront was given."""
    given: list[int] = []
    run = BackboneWavefront._run

    def counting(self: Any, segments: Any, *more: Any) -> Any:
        given.append(len(segments))
        return run(self, segments, *more)

    monkeypatch.setattr(BackboneWavefront, "_run", counting)
    return given


def test_prompts_are_continued_by_the_same_text(
    place: Path, capsys: pytest.CaptureFixture[str], reads: list[int]
) -> None:
    (place / "long.txt").write_text("She walked on over the hill. " * 9)  # 261 bytes, 16 segments
    words = ["generate", place / "associative" / "model", "--prompt-file", place / "long.txt", "--temperature", "0"]
    turns = told(capsys, *words, "--max-new-tokens", "20", "--save-state", place / "turns")
    assert not reads
    ours = told(capsys, *words, "--max-new-tokens", "20", "--save-state", place / "ours", "--wavefront")
    assert (turns["text"], reads) == (ours["text"], [16]) and ours["text"]
    again = ["generate", place / "associative" / "model", "--load-state", place / "ours", "--temperature", "0"]
    told(capsys, *again, "--prompt-file", place / "long.txt", "--max-new-tokens", "2", "--wavefront")
    assert reads[1:] == [16 - 1], "what was begun is read to its end first"


def test_a_data_set_has_the_same_figures(place: Path, capsys: pytest.CaptureFixture[str], reads: list[int]) -> None:
    words = ["evaluate", place / "associative" / "model", "--data", place / "data", "--lanes", "1"]
    for more in ([], ["--max-segments", "21"]):
        reads.clear()
        turns = told(capsys, *words, *more)
        assert not reads
        ours = told(capsys, *words, *more, "--wavefront")
        for mode in ("with_memory", "memory_reset"):
            assert ours[mode]["tokens"] == turns[mode]["tokens"]
            assert ours[mode]["loss"] == pytest.approx(turns[mode]["loss"], rel=1e-5)
        # One document is held out: of a few dozen segments, in one batch for each mode.
        assert reads == [-(-ours["with_memory"]["tokens"] // 16)] * 2


def test_what_has_none_is_refused_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slots, ours, data = place / "slots" / "model", place / "associative" / "model", place / "data"
    line = "memory.kind is slots: all layers wait for it"
    for words, said in (
        (["generate", slots, "--prompt", "a"], f"--wavefront: {line}"),
        (["evaluate", slots, "--data", data], f"--wavefront: {line}"),
        (["evaluate", ours, "--tasks", "needle", "--lengths", "1k", "--out", place / "out"], "--wavefront is for a d"),
    ):
        assert main([*map(str, words), "--wavefront"]) == 2
        found = capsys.readouterr().err
        assert found.startswith(f"memformer {words[0]}: error: {said}") and found.count("\n") == 1
        assert "leave it out" in found
    assert main(["evaluate", str(ours), "--data", str(data), "--segments-per-decoder-batch", "4"]) == 2
    found = capsys.readouterr().err
    assert (
        "--segments-per-decoder-batch is 4: not built for family backbone, whose memory waits for all layers" in found
    )
    assert found.count("\n") == 1 and found.endswith("leave it out\n")
