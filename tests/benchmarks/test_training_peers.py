# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The peers of benchmarks/training_peers.py: their replay is what it is called, and this package stays itself."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import memformer
from benchmarks import training_peers
from benchmarks.peers import namesake
from benchmarks.peers.models import available
from benchmarks.training_peers import RMT, SIZES, methods, recurrent_memory

CONFIG = next(iter(SIZES.values()))


def tokens_of(segments: int) -> torch.Tensor:
    return torch.randint(1, 512, (2, segments + 1, 8), generator=torch.Generator().manual_seed(1))


def gradient(model: torch.nn.Module) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.skipif(not available("rmt"), reason="not installed (make peers)")
def test_rmts_replay_as_it_is_timed_gives_the_gradients_of_bptt() -> None:
    """With the memories of Transformer-XL it would not; float32, 1e-5."""
    method: Any = recurrent_memory(CONFIG, tokens_of(3), 4)
    method.backward()
    replayed = gradient(method.model)
    text = torch.cat([tokens_of(3)[:, 1:].flatten(1), tokens_of(3)[:, 0, :1]], dim=1)
    loss, _ = method.model(text, return_loss=True)
    loss.backward()
    whole = gradient(method.model)
    assert (replayed - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.skipif(not namesake.available(), reason="not installed (make peers)")
def test_the_namesake_is_loaded_beside_this_package() -> None:
    package = namesake.load()
    assert package.__name__ == "memformer" and package is not memformer
    assert sys.modules["memformer"] is memformer
    assert hasattr(package, "memory_replay_backprop") and not hasattr(memformer, "memory_replay_backprop")


@pytest.mark.skipif(not namesake.available(), reason="not installed (make peers)")
def test_its_replay_with_every_segment_scored_gives_the_gradients_of_bptt() -> None:
    """Our completion of it must not be slower because it is wrong; float64, 1e-10."""
    torch.manual_seed(0)
    model = namesake.load().Memformer(
        dim=16, num_memory_slots=3, mem_update_attn_heads=2, enc_num_tokens=30, enc_depth=1, enc_heads=2,
        enc_max_seq_len=6, dec_num_tokens=30, dec_depth=1, dec_heads=2, dec_max_seq_len=6,
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    segments = list(torch.randint(30, (4, 2, 6), generator=generator))
    targets = list(torch.randint(30, (4, 2, 7), generator=generator))
    namesake.replay_scoring_every_segment(model, segments, targets)
    replayed = gradient(model)
    memory, total = model.get_initial_mem(2), torch.zeros((), dtype=torch.float64)
    for segment, target in zip(segments, targets, strict=True):
        _, memory, loss = model(src=segment, tgt=target, mems=memory)
        total = total + loss
    total.backward()
    whole = gradient(model)
    assert (replayed - whole).norm() < 1e-10 * whole.norm()


def test_all_that_is_installed_has_about_one_size() -> None:
    found = methods(CONFIG, tokens_of(1))
    counts = {name: sum(p.numel() for p in method.model.parameters()) for name, method in found.items()}
    if RMT in counts:
        assert 0.75 < counts[RMT] / counts["MRBP"] < 1.25
    for name, count in counts.items():
        assert 0.7 < count / counts["MRBP"] < 1.3, name


def test_the_script_measures_writes_and_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its smallest; replay keeps the memories of two segments more, BPTT their graphs."""
    tiny = dataclasses.replace(CONFIG, num_encoder_layers=1, num_decoder_layers=1, d_model=16, num_heads=2, d_ff=64)
    monkeypatch.setattr(training_peers, "SIZES", {"1+1, width 16": tiny})
    words = ["--segments", "2", "4", "--sizes", "1+1, width 16", "--segment-length", "8", "--repetitions", "1"]
    training_peers.main([*words, "--out", str(tmp_path / "out")])
    values = json.loads((tmp_path / "out.json").read_text())
    found = {(row["method"], row["num_segments"]): row["allocated_bytes"] for row in values["rows"]}
    memories = 2 * 2 * tiny.num_memory_slots * tiny.d_model * 4
    assert found["MRBP", 4] - found["MRBP", 2] < 2 * memories
    assert found["BPTT", 4] > 1.6 * found["BPTT", 2]
    assert all(row["our_speed_over_its"] > 0 for row in values["rows"])
    text = (tmp_path / "out.md").read_text()
    assert "16,177" in text and "| 4 | MRBP |" in text
