# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The scripts on the family backbone run at their smallest, and what they compare is what they say."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import backbone_books, backbone_needle, backbone_peers, backbone_replay, backbone_wavefront
from benchmarks.peers import backbone
from benchmarks.peers.reader import MemoryReader
from benchmarks.peers.segment_wrappers import ARMT, RMT
from benchmarks.texts import Texts, rollouts, texts
from benchmarks.training import PACED, Recipe, train
from data_pipeline.tokenizer import ByteTokenizer
from memformer.models.backbone import Backbone, BackboneConfig, MemoryConfig
from memformer.models.backbone.parts import language_model
from memformer.models.backbone.pretrained import copy_weights
from memformer.replay import Carry, Rollout, Segment, bptt_backward

LANES, SEGMENTS, LENGTH, IDS = 2, 3, 6, 20
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def test_the_needle_is_asked_of_a_pretrained_backbone_with_memory_reset_and_alone(tmp_path: Path) -> None:
    words = f"--quick --steps 2 --pretraining-steps 2 --documents 2 --times 1 --out {tmp_path / 'needle'}"
    backbone_needle.main(words.split())
    values = json.loads((tmp_path / "needle.json").read_text())
    rows = [(row["kind"], row["reset"], row["memory_numbers"]) for row in values["rows"]]
    assert rows == [("associative", False, 24_576), ("associative", True, 24_576), ("plain", True, 0)]
    assert "| plain | 0.001 | 0 | 2 | 0 |" in (tmp_path / "needle.md").read_text()


def test_a_new_memory_leaves_what_was_pretrained_as_it_is() -> None:
    weights = backbone.pretrained(2)
    tokens = torch.randint(0, 256, (2, 32))
    plain, _ = backbone.reader_of("plain", weights, 32, 0).read(tokens, None)
    for kind in ("associative", "slots"):
        logits, _ = backbone.reader_of(kind, weights, 32, 0).read(tokens, None)
        torch.testing.assert_close(logits, plain)


def test_replay_and_peers_run(tmp_path: Path) -> None:
    small = "--quick --width 16 --segment-length 8 --repetitions 1"
    backbone_replay.main([*small.split(), "--shapes", "slots_half", "--out", str(tmp_path / "replay")])
    values = json.loads((tmp_path / "replay.json").read_text())
    assert [row["num_segments"] for row in values["rows"]] == [1, 4]
    assert values["rows"][1]["gradient_error"] < 1e-5
    assert "| slots, written at half | 4 |" in (tmp_path / "replay.md").read_text()
    backbone_peers.main([*small.split(), "--out", str(tmp_path / "peers")])
    rows = json.loads((tmp_path / "peers.json").read_text())["rows"]
    grown = {row["method"]: row["allocated_bytes"] for row in rows if row["num_segments"] == 4}
    assert grown["tokens, replay"] < 0.5 * grown["RMT, BPTT"]


def test_a_wavefront_is_the_same_reading_in_fewer_operators() -> None:
    case = {**backbone_wavefront.BASE, **backbone_wavefront.QUICK[0]}
    row = backbone_wavefront.measure(case, 1)
    assert row["difference"] < 1e-4 and row["operators"]["wavefront"] < row["operators"]["in turn"]
    assert min(row["milliseconds"].values()) > 0
    values = {"date": "", "hardware": "", "torch": "", "commit": "c", "command": "", "rows": [row]}
    assert "| an 8B Llama | 32 | 1,024 | 32,768 | 1,055 | 31.1 |" in backbone_wavefront.page(values)


def test_the_wrapper_of_rmt_says_what_our_memory_of_tokens_says() -> None:
    """The first segment, whose memory ours norms before it goes on; ARMT's, with values of zero, the backbone alone."""
    config = BackboneConfig(
        backbone=dict(LLAMA), overlap=0, memory=MemoryConfig("tokens", num_slots=2), vocab_size=IDS, start_token_id=0
    )
    torch.manual_seed(0)
    ours, base = Backbone(config), language_model(config)
    copy_weights(base, ours)
    targets = torch.randint(1, IDS, (LANES, SEGMENTS, LENGTH))
    inputs = torch.cat([torch.zeros_like(targets[..., :1]), targets[..., :-1]], -1)
    wrapped = RMT(base, 2)
    with torch.no_grad():
        wrapped.memory.copy_(ours.initial_memory(1)[0])
    resets = torch.zeros(LANES, SEGMENTS, dtype=torch.bool)
    rollout = Rollout.of(targets, torch.full((LANES, SEGMENTS), LENGTH), resets)
    carry = Carry.empty(ours.initial_memory(LANES), LENGTH)
    result = bptt_backward(ours, rollout, carry, denominator=float(targets.numel()))
    first = wrapped(inputs[:, :1], targets[:, :1])
    torch.testing.assert_close(first, result.segment_losses[0] / targets[:, 0].numel())
    wrapped(inputs, targets).backward()
    assert wrapped.memory.grad is not None and wrapped.memory.grad.abs().max() > 0
    logits = base(inputs.flatten(0, 1)).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ARMT(base, 2, 4)(inputs, targets), expected)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny model of bytes as transformers saves it, with a tokenizer."""
    torch.manual_seed(0)
    config = BackboneConfig(backbone=dict(LLAMA), vocab_size=257, start_token_id=256)
    language_model(config).save_pretrained(tmp_path / "model")
    ByteTokenizer().save(tmp_path / "model")
    return tmp_path / "model"


def test_a_trained_memory_leaves_the_backbone_as_it_was(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = texts("books").trained[0]
    monkeypatch.setattr(
        backbone_books, "texts", lambda _: Texts("books", [book[:3000]], [book[3000:3100], book[3100:3300]])
    )
    words = f"--quick --pretrained {directory} --segment-length 16 --layers 0 1 --d-key 2 --learning-rate 1e-2"
    more = ["--variants", "pretrained", "associative", "plain", "--out", str(tmp_path / "books")]
    backbone_books.main([*words.split(), *more])
    pretrained, trained, plain = json.loads((tmp_path / "books.json").read_text())["rows"]
    assert trained["perplexity_memory_reset"] == pytest.approx(pretrained["perplexity"], rel=1e-6)
    assert trained["perplexity"] != trained["perplexity_memory_reset"]
    assert plain["perplexity"] == plain["perplexity_memory_reset"] != pretrained["perplexity"]
    assert trained["own_nats"] == pytest.approx(
        math.log(trained["perplexity_memory_exchanged"] / trained["perplexity"]), rel=1e-4
    )
    assert "own_nats" not in pretrained
    assert "| associative, reset |" in (tmp_path / "books.md").read_text()
    assert "| associative, exchanged |" in (tmp_path / "books.md").read_text()


def test_an_exchanged_memory_is_what_another_book_has_written_so_far() -> None:
    """Against a loop over the model itself, segment by segment; a few excerpts at a time give what all give at once."""
    torch.manual_seed(0)
    model = backbone.make(MemoryConfig("associative", d_key=4), 8).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("value.weight"):
            torch.nn.init.normal_(parameter)
    tokens, documents = backbone_books.held_out(
        [np.random.default_rng(book).integers(256, size=length) for book, length in enumerate((70, 50, 30))], 24, None
    )
    others = backbone_books.partners(documents)
    assert (documents, others) == ([0, 1, 2, 0, 1], [1, 2, 3, 4, 0])
    assert backbone_books.partners([0, 0]) is None
    options = argparse.Namespace(device="cpu", test_lanes=2, segment_length=8)
    found = backbone_books.scored(MemoryReader(model, "associative"), tokens, options, tokens[others])
    with torch.no_grad():
        memory, full = model.initial_memory(5), torch.full((5,), 8)
        before = torch.zeros(2, 5, 8, dtype=torch.int64)
        for number, now in enumerate(torch.stack([tokens, tokens[others]]).split(8, 2)):
            first = torch.full((5,), number == 0)
            own, other = (
                Segment(context, full.where(~first, 0), target, full, first, True, False)
                for context, target in zip(before, now, strict=True)
            )
            torch.testing.assert_close(found[:, number], model.losses(own, memory)[0].mean(1))
            memory, before = model.advance(other, memory), now
    kept = backbone_books.scored(MemoryReader(model, "associative"), tokens, options)
    torch.testing.assert_close(found[:, 0], kept[:, 0])
    assert (found[:, 1:] - kept[:, 1:]).abs().min() > 1e-6


def test_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--pretrained: no tokenizer at .* \(make backbone\)"):
        backbone_books.main(["--quick", "--pretrained", str(tmp_path)])


def test_training_ends_in_its_time_with_its_schedule() -> None:
    """Fewer steps where the first show that all would take too long; the last has the rate of a last step."""
    torch.manual_seed(0)
    reader = backbone.plain(backbone.make(backbone.MEMORIES["plain"], 8, overlap=0))
    before = {name: weight.clone() for name, weight in reader.module.named_parameters()}
    lines: list[str] = []
    rates = (("head", 0.0), ("norm", 0.0))
    data = rollouts(texts("books").trained, 1, 8, 1, 8, 0)
    history = train(reader, data, Recipe(1000, 1e-3, seconds=0.0, rates=rates), lines.append)
    assert history.steps == PACED[0]
    assert lines[-1].startswith("plain: step 10 of 10, ")
    after = dict(reader.module.named_parameters())
    assert torch.equal(after["norm.weight"], before["norm.weight"])
    assert not torch.equal(after["embedding.weight"], before["embedding.weight"])
