# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer evaluate` reads what training reads: a directory, its splits, an address, tokens that others wrote.

Covers: launch/commands/evaluate.py, launch/addresses.py
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_pipeline import build_dataset, load_tokenizer
from data_pipeline.adopt import adopt
from launch.cli import main
from memformer import Memformer, MemformerConfig
from memformer.models.exported import FORMAT
from tests.books import small_dataset
from tests.data_pipeline.faulty_server import serving


def export(directory: Path, tokenizer_of: Path) -> Path:
    """A small model with the tokenizer of a data set, as `memformer export` writes it."""
    tokenizer = load_tokenizer(tokenizer_of)
    torch.manual_seed(0)
    config = MemformerConfig(
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_model=16,
        num_heads=2,
        d_ff=32,
        num_memory_slots=3,
        vocab_size=tokenizer.vocab_size,
        start_token_id=tokenizer.start_token_id,
        segment_length=32,
    )
    model = Memformer(config)
    directory.mkdir()
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "head.weight"}
    save_file(weights, directory / "model.safetensors")
    tokenizer.save(directory)
    described = {"format": FORMAT, "model": config.to_dict(), "tokenizer_sha256": tokenizer.sha256}
    (directory / "config.json").write_text(json.dumps(described))
    return directory


def evaluate(capsys: pytest.CaptureFixture[str], model: Path, data: object, cache: Path) -> dict[str, Any]:
    words = ["--device", "cpu", "--max-segments", "2", "--json", "--cache-dir", str(cache)]
    assert main(["evaluate", str(model), "--data", str(data), *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_decoder_of_several_segments_finds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To float32's rounding; and what does not go with it is refused in one line."""
    books = small_dataset(tmp_path, characters=1_500)
    model = export(tmp_path / "model", books / "train")
    words = ["evaluate", str(model), "--device", "cpu", "--lanes", "1"]
    found = []
    for more in ([], ["--segments-per-decoder-batch", "4"]):
        assert main([*words, "--data", str(books), "--max-segments", "6", "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    for mode in ("with_memory", "memory_reset"):
        rows = zip(found[0][mode]["by_position"], found[1][mode]["by_position"], strict=True)
        for plain, ours in [*rows, (found[0][mode], found[1][mode])]:
            assert ours["tokens"] == plain["tokens"] and ours["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    data = ["--data", str(books)]
    for group, more, said in (
        ("0", data, "--segments-per-decoder-batch is 0: give 1 or more"),
        ("4", [*data, "--wavefront"], "--segments-per-decoder-batch is 4, but --wavefront reads all layers along"),
        ("4", ["--tasks", "needle", "--lengths", "1k"], "--segments-per-decoder-batch is for a data set: tasks"),
    ):
        assert main([*words, *more, "--segments-per-decoder-batch", group]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"memformer evaluate: error: {said}") and error.count("\n") == 1


def test_targets_count_by_the_weights_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"text": "what counts is behind: " * 3 + "this", "loss_weights": [[69, 73, 0.5]]}, {"text": "x" * 40}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    build_dataset([tmp_path / "a.jsonl"], tmp_path / "set", loss_weights_key="loss_weights")
    model = export(tmp_path / "model", tmp_path / "set")
    words = ["evaluate", str(model), "--data", str(tmp_path / "set"), "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["with_memory"]
    assert (found["tokens"], found["counted_tokens"], found["bits_per_byte"]) == (113, 42.0, None)
    assert [row["counted_tokens"] for row in found["by_position"]] == [32.0, 8.0, 2.0]
    assert "   counted  with memory" in said.err and "by the data's loss weights, of 113 tokens that were" in said.err
    assert main([*words, "--lanes", "1", "--max-segments", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "of the 32 tokens that were read none counts by its loss weight: raise" in error


def test_a_data_set_at_an_address_is_scored_like_a_near_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = small_dataset(tmp_path, characters=4_500)
    model = export(tmp_path / "model", books / "train")
    expected = evaluate(capsys, model, books / "validation", tmp_path / "cache")
    assert expected["with_memory"]["bits_per_byte"] == pytest.approx(expected["with_memory"]["loss"] / math.log(2))
    assert evaluate(capsys, model, books, tmp_path / "cache") == expected
    with serving(books.parent) as server:
        server.query = "key=s3cr3t"
        for part in ("", "/validation"):
            address = f"{server.address}/{books.name}{part}?{server.query}"
            assert evaluate(capsys, model, address, tmp_path / "cache") == expected
        assert main(["evaluate", str(model), "--data", f"{server.address}/nowhere?{server.query}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"no data set at {server.address}/nowhere" in error and "s3cr3t" not in error


def test_tokens_without_their_tokenizer_have_no_bits_per_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids").mkdir()
    np.save(tmp_path / "ids" / "ids.npy", np.arange(200, dtype=np.int32) % 50)
    adopt(tmp_path / "ids", vocab_size=50, eos=49)
    model = export(tmp_path / "model", tmp_path / "ids")
    scores = evaluate(capsys, model, tmp_path / "ids", tmp_path / "cache")
    assert scores["with_memory"]["bits_per_byte"] is None and scores["with_memory"]["tokens"] == 200
