# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The decoder-only peers of benchmarks/inference.py compute what they claim to, from the caches that are counted."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import inference
from benchmarks.activations import LiveTensors
from benchmarks.inference import MemformerReading, MemformerWriting, peak_bytes, storage_bytes
from benchmarks.peers.cached_decoder import CachedDecoder, HiddenStateReader, KeyValueReader
from benchmarks.results_plots import plots_of
from memformer import Memformer, MemformerConfig

CONFIG = MemformerConfig(
    1, 1, d_model=16, num_heads=2, d_ff=24, num_memory_slots=3, vocab_size=257, start_token_id=256, segment_length=64
)


@pytest.fixture(scope="module")
def peer() -> CachedDecoder:
    torch.manual_seed(0)
    return CachedDecoder(CONFIG, 3).double()


def read(reader: KeyValueReader | HiddenStateReader, tokens: torch.Tensor, block: int) -> torch.Tensor:
    return torch.cat([reader.read(part) for part in tokens.split(block, dim=1)], dim=1)


def test_caches_of_both_kinds_and_all_blocks_give_one_attention(peer: CachedDecoder) -> None:
    """Token by token and in blocks; keys and values kept in a window that wraps, or computed anew.

    Float64, 1e-12; 1e-6 where rotary positions, whose angles are float32, count from another token.
    """
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
    whole = read(KeyValueReader(peer, 2, 40, 0), tokens, 40)
    for block in (1, 8):
        torch.testing.assert_close(read(KeyValueReader(peer, 2, block, 40), tokens, block), whole, rtol=0, atol=1e-12)
    windowed = read(KeyValueReader(peer, 2, 8, 12), tokens, 8)
    assert not torch.allclose(windowed, whole)
    torch.testing.assert_close(read(HiddenStateReader(peer, 2, 8, 12), tokens, 8), windowed, rtol=0, atol=1e-6)
    torch.testing.assert_close(windowed[:, :8], whole[:, :8], rtol=0, atol=1e-12)


def test_a_filled_cache_goes_on_where_a_read_one_would(peer: CachedDecoder) -> None:
    """The random filling has the shape and the positions of what really reading leaves."""
    tokens = torch.randint(256, (1, 21), generator=torch.Generator().manual_seed(1))
    really, filled = KeyValueReader(peer, 1, 1, 6), KeyValueReader(peer, 1, 1, 6, seen=21)
    read(really, tokens, 1)
    assert torch.equal(really.positions, filled.positions) and really.seen == filled.seen
    assert storage_bytes(really.tensors()) == storage_bytes(filled.tensors())


def test_what_this_model_carries_does_not_grow() -> None:
    """The same bytes after three segments and after six, reading and generating."""
    model = Memformer(CONFIG).eval()
    for reader in (MemformerReading(model, 2), MemformerWriting(model, 2)):
        reader.step()
        early = storage_bytes(reader.tensors()), peak_bytes(reader, torch.device("cpu"))
        reader.step()
        assert (storage_bytes(reader.tensors()), peak_bytes(reader, torch.device("cpu"))) == early
        assert early[1] > early[0] > 0


def test_given_tensors_count_until_they_are_freed() -> None:
    kept = [torch.zeros(100), torch.zeros(50)]
    with LiveTensors(also=kept) as live:
        assert live.meter.live_bytes == 600
        kept[0] = kept[0] + 1
        assert (live.meter.live_bytes, live.meter.peak_bytes) == (600, 1000)
        kept.clear()
        assert live.meter.live_bytes == 0


def test_the_script_measures_writes_and_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its smallest: every row is there, a cache above the budget is arithmetic, ratios are the peer's over ours."""
    case = inference.Case(CONFIG, memories=(8, 64), contexts=(100, 400), batches=(2,))
    monkeypatch.setattr(inference, "CASES", {"1+1, width 16": case})
    monkeypatch.setattr(inference, "generate_in_fresh_process", inference.generate_here)
    limit = inference.cache_bytes(case, 300) / 2**30
    inference.main(
        [
            "--repetitions",
            "1",
            "--tokens",
            "150",
            "--written",
            "70",
            "--budget-gib",
            str(limit),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    values = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["task"], row["model"], row["memory"]): row for row in values["rows"]}
    assert len(rows) == len(values["rows"]) == 1 + 2 * 2 + 1 + 2
    ours, longest = rows["reading", "Memformer", 0], rows["reading", "Transformer-XL", 64]
    assert longest["memory_ratio"] == longest["peak_bytes"] / ours["peak_bytes"]
    assert longest["time_ratio"] == longest["milliseconds_a_token"] / ours["milliseconds_a_token"]
    assert longest["state_bytes"] == 2 * 2 * 64 * 16 * 4  # layers, documents, tokens, width, float32
    assert rows["generating", inference.XL, 64]["state_bytes"] > 2 * 2 * 2 * 65 * 16 * 4
    whole = [row for row in values["contexts"] if row["model"] == "KV cache"]
    assert ["peak_bytes" in row for row in whole] == [True, False] and whole[1]["does_not_fit"]
    assert {row["peak_bytes"] for row in values["contexts"] if row["model"] == "Memformer"} == {
        row["peak_bytes"] for row in values["contexts"] if row["context"] == 100 and row["model"] == "Memformer"
    }
    assert values["generation"]["marks"][-1]["tokens"] == 150
    text = (tmp_path / "out.md").read_text()
    assert "| 400 |" in text and "not run" in text and values["command"] in text
    assert len(plots_of("inference", values)) == 4
