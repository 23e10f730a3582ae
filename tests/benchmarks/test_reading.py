# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""benchmarks/reading.py at its smallest: every row is there, what ran is scaled, ratios are the peer's over ours."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import reading, readme_table
from memformer import Memformer
from memformer.models.memformer.reader import MemformerReader

SIZES = reading.TINY
TOKENS, ANSWER = 1_280, 5


def test_the_script_measures_writes_and_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "2026-01-01-cpu-reading"
    reading.main(["--quick", "--out", str(out), "--notes", "A remark."])
    values = json.loads(out.with_suffix(".json").read_text())
    rows = {row["model"]: row for row in values["document"]}
    assert list(rows) == [reading.OURS, reading.RMT, reading.XL, reading.XL_KEPT, reading.CACHE]
    ours, cache = rows[reading.OURS], rows[reading.CACHE]
    assert (ours["read_run"], cache["read_run"], cache["answer_run"]) == (TOKENS, 2 * reading.SEGMENT, 1)
    for row in rows.values():
        whole = row["read_seconds"] + row["answer_seconds"]
        assert row["over_ours"] == whole / (ours["read_seconds"] + ours["answer_seconds"])
    layers, width, length = 3, SIZES.d_model, reading.SEGMENT
    assert ours["kept_bytes"] == 4 * SIZES.num_memory_slots * width + 2 * 8 * length
    assert cache["kept_bytes"] == 4 * 2 * layers * TOKENS * width
    assert rows[reading.XL]["kept_bytes"] == 4 * layers * reading.WINDOW * width
    assert [(row["batch"], row["model"]) for row in values["generating"]] == [
        *((1, name) for name in (reading.OURS, reading.XL_KEPT, reading.XL)),
        *((8, name) for name in (reading.OURS, reading.XL_KEPT)),
    ]
    for row in values["prices"]:
        assert row["before_over_read"] == row["before_milliseconds"] / row["read_milliseconds"]
        assert row["read_over_all"] == row["read_milliseconds"] / row["all_milliseconds"]
    text = out.with_suffix(".md").read_text()
    assert "A remark." in text and values["command"] in text and "| KV cache |" in text
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path)
    (price, _), (whole, figure) = (row[:2] for row in readme_table.reading_rows())
    assert "1+2 layers" in price and "1,280 tokens" in whole and f"{cache['over_ours']:.1f}" in figure


def test_asking_at_every_border_is_what_reading_did_before() -> None:
    """What is compared with runs the decoder on the start token, its keys and values on every context."""
    model = Memformer(SIZES).eval()
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("cross_attention.key", "cross_attention.value", "self_attention.query")):
            module.register_forward_hook(lambda _, inputs, __, name=name: calls.append(f"{name} {inputs[0].shape[1]}"))
    tokens = torch.randint(256, (1, reading.SEGMENT))
    alone, before = MemformerReader(model), MemformerReader(model)
    alone.read(tokens)
    assert all(each.startswith("encoder.") for each in calls) and calls
    calls.clear()
    for _ in range(2):
        before.read(tokens)
        assert before.logits is not None
    for layer in range(SIZES.num_decoder_layers):
        for part, inputs in (("cross_attention.key", 64), ("cross_attention.value", 64), ("self_attention.query", 1)):
            assert calls.count(f"decoder.{layer}.{part} {inputs}") == 2
