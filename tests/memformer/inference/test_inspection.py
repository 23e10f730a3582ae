# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The inspected memory against plain loops over the whole document, on a small trained model; and its command.

Figures agree with the plain loops to 1e-5 of themselves, which is what the report writes out; the model is in float64.

Covers: launch/commands/inspect_memory.py, launch/models.py, memformer/inference/attended.py,
memformer/inference/pictures.py, memformer/inference/threads.py, memformer/models/memformer/slots.py,
memformer/models/slots.py
"""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.tokenizer import ByteTokenizer
from launch.cli import main
from memformer import Memformer, MemformerConfig
from memformer.inference import inspection, pictures
from memformer.inference.inspection import COLUMNS, KEPT, OVERWRITTEN, MemoryInspector, inspect_tokens
from memformer.models.configuration import Forgetting
from memformer.models.exported import FORMAT
from memformer.models.memformer.reader import MemformerReader
from memformer.replay import Carry, Rollout, Segment, memory_replay_backward
from tests.books import book_text

LENGTH = 16
TOKENIZER = ByteTokenizer()
DOCUMENT = TOKENIZER.encode(book_text(30 * LENGTH + 5)).astype(np.int64)


def make_model(slots: int = 5, forgetting: Forgetting = "paper") -> Memformer:
    torch.manual_seed(0)
    config = MemformerConfig(
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_model=32,
        num_heads=4,
        d_ff=64,
        num_memory_slots=slots,
        memory_forgetting=forgetting,
        vocab_size=TOKENIZER.vocab_size,
        start_token_id=TOKENIZER.start_token_id,
        segment_length=LENGTH,
    )
    return Memformer(config)


def trained(made: Memformer, steps: int) -> Memformer:
    """Trained for a few steps on a book, then in float64."""
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    book = TOKENIZER.encode(book_text(4 * steps * 4 * LENGTH)).astype(np.int64)
    text = torch.from_numpy(book).view(4, steps, 4, LENGTH)
    carry = Carry.empty(made.initial_memory(4), LENGTH)
    lengths, resets = torch.full((4, 4), LENGTH), torch.zeros(4, 4, dtype=torch.bool)
    for step in range(steps):
        rollout = Rollout.of(text[:, step], lengths, resets)
        carry = memory_replay_backward(made, rollout, carry, denominator=float(text[:, step].numel())).carry
        optimizer.step()
        optimizer.zero_grad()
    return made.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Memformer:
    return trained(make_model(), 20)


def segments_of(document: np.ndarray[Any, Any]) -> list[torch.Tensor]:
    """What each write reads: the start token, then the document's segments, the last one short."""
    start = torch.tensor([TOKENIZER.start_token_id])
    return [start, *torch.from_numpy(document).split(LENGTH)]


def write(
    model: Memformer, tokens: torch.Tensor, memory: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One write by hand, without padding: the weights [H, K, 1 + S], what is left [H, K], and the next memory."""
    count = torch.tensor([len(tokens)])
    segment = Segment(tokens[None], count, tokens[None], count, torch.tensor([False]), ragged=False)
    x, mask, memory = model.encode(segment, memory)
    assert model.writer is not None
    weights = model.writer.weights(memory, x, mask)[0]
    written = model.writer(memory, x, mask).memory_BKD[0]
    if model.config.memory_forgetting == "paper":
        written = written + model.forget.bias
    return weights, weights[..., 0] / written.norm(dim=-1), model.write(memory, x, mask)


def by_hand(
    model: Memformer, document: np.ndarray[Any, Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """The weights of every write, what it leaves of the slots, and the memory before each and after the last."""
    weights, left, memories = [], [], [model.initial_memory(1)]
    for tokens in segments_of(document):
        found, retained, memory = write(model, tokens, memories[-1])
        weights.append(found)
        left.append(retained)
        memories.append(memory)
    return weights, left, memories


@pytest.fixture(scope="module")
def report(model: Memformer) -> dict[str, Any]:
    return inspect_tokens(model, TOKENIZER, [DOCUMENT], horizon=6)


def near(found: Any, expected: Any) -> None:
    """The report has six significant digits."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_weights_kinds_and_shares_are_those_of_a_plain_loop(model: Memformer, report: dict[str, Any]) -> None:
    weights, left_by_head, memories = by_hand(model, DOCUMENT)
    own = torch.stack([each[..., 0].mean(0) for each in weights]).numpy()  # [N, K]
    by_head = torch.stack(left_by_head).numpy()  # [N, H, K]
    left = by_head.mean(1)
    count = len(own)
    assert report["document"] == {"tokens": len(DOCUMENT), "segment_length": LENGTH, "writes": count}
    near(report["columns"]["self_weight"], own)
    near(report["columns"]["retention"], left)
    kept, overwritten = left > KEPT, left < OVERWRITTEN
    for phase, part in (
        ("early", slice(0, count // 10)),
        ("middle", slice(count // 4, 3 * count // 4)),
        ("all", slice(None)),
    ):
        shares = report["shares"][phase]
        near(shares["kept"], kept[part].mean())
        near(shares["overwritten"], overwritten[part].mean())
        near(shares["kept"] + shares["mixed"] + shares["overwritten"], 1.0)
        near(shares["self_weight"], own[part].mean())
        near(shares["retention"], left[part].mean())
        near(shares["writer_kept"], (own[part] > KEPT).mean())
        near(shares["writer_overwritten"], (own[part] < OVERWRITTEN).mean())
        near(shares["kept_by_head"], (by_head[part] > KEPT).mean())
        near(shares["overwritten_by_head"], (by_head[part] < OVERWRITTEN).mean())
    for values, kind in ((left, "kind"), (own, "writer_kind")):
        middle = values[count // 4 : 3 * count // 4].mean(0)
        kinds = ["kept" if each > KEPT else "overwritten" if each < OVERWRITTEN else "mixed" for each in middle]
        assert [slot[kind] for slot in report["slots"]] == kinds
    near([slot["retention"] for slot in report["slots"]], left.mean(0))
    near([slot["retention_by_head"] for slot in report["slots"]], by_head.mean(0).T)
    near([slot["bias_norm"] for slot in report["slots"]], model.forget.bias.norm(dim=-1))
    for name in ("slots_times_writes", "slots_times_writes_by_self_weight"):
        near(np.sum(report["histogram"][name]), own.size)
    final = memories[-1][0]
    near(report["similarity"]["cosine"], final @ final.T)
    off = (final @ final.T)[~torch.eye(len(final), dtype=torch.bool)].mean()
    np.testing.assert_allclose(report["similarity"]["mean"], off, atol=1e-6)  # computed in float32
    cosine = torch.stack([(m[0] * n[0]).sum(-1).mean() for m, n in itertools.pairwise(memories)])
    np.testing.assert_allclose(report["columns"]["change"], 1 - cosine, atol=1e-6)


def test_tokens_that_slots_took_and_hold_are_those_of_a_plain_loop(model: Memformer, report: dict[str, Any]) -> None:
    weights, retained, _ = by_hand(model, DOCUMENT)
    by_head = torch.stack(retained)
    took = torch.cat([each[..., 1:] for each in weights], dim=2)  # [H, K, the start token and the document]
    left = torch.cat([each[..., 1:] * by_head[n + 1 :].prod(0)[..., None] for n, each in enumerate(weights)], dim=2)
    first_of_a_head = torch.zeros_like(left).scatter(2, left.topk(8, dim=-1).indices, 1.0).any(0)
    for expected, name in ((took.mean(0), "took"), (left.mean(0).where(first_of_a_head, 0.0), "holds")):
        best = expected.topk(8, dim=-1)
        for slot, found in enumerate(row[name] for row in report["slots"]):
            near([token["weight"] for token in found], best.values[slot])
            assert found[0]["position"] == int(best.indices[slot, 0]) - 1
    token = next(each for slot in report["slots"] for each in slot["took"] if each["position"] > LENGTH)
    place, text = token["position"], bytes(DOCUMENT.tolist()).decode()
    assert text[place] == token["text"]
    assert text[:place].endswith(token["before"]) and text[place + 1 :].startswith(token["after"])


@pytest.mark.parametrize("count", [1, LENGTH, LENGTH + 1, 4 * LENGTH, 4 * LENGTH + 3])
def test_pieces_do_not_matter_and_the_memory_is_generations(model: Memformer, count: int) -> None:
    document = DOCUMENT[:count]
    whole = inspect_tokens(model, TOKENIZER, [document])
    assert inspect_tokens(model, TOKENIZER, [document[:1], *np.array_split(document[1:], 3)]) == whole
    assert whole["document"]["writes"] == 1 + -(-count // LENGTH)
    assert len(whole["perturbation"]["all_slots"]) >= 2
    inspector = MemoryInspector(model, TOKENIZER, count)
    inspector.read(document)
    reader = MemformerReader(model)
    reader.read(torch.from_numpy(document[: count // LENGTH * LENGTH])[None])
    assert reader.logits is not None  # the memory behind the last whole segment is written with its first logits
    torch.testing.assert_close(inspector.memory, reader._next, rtol=0, atol=1e-12)


def test_a_small_model_reads_with_one_thread(model: Memformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread costs more than it brings; the process gets its threads back, and a large model has them."""
    threads: list[int] = []

    def seen(done: int, total: int) -> None:
        threads.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inspect_tokens(model, TOKENIZER, [DOCUMENT[:LENGTH]], progress=seen)
        monkeypatch.setattr("memformer.inference.threads.SHARED", 0)
        inspect_tokens(model, TOKENIZER, [DOCUMENT[:LENGTH]], progress=seen)
        assert threads == [1, 1, 3, 3] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_is_kept_does_not_grow_with_the_document(model: Memformer) -> None:
    """Three times as many writes as columns: series of the same size, averages of the same numbers."""
    document = np.tile(DOCUMENT, 26)[: 3 * COLUMNS * LENGTH - LENGTH]
    found = inspect_tokens(model, TOKENIZER, [document], horizon=0)
    assert found["document"]["writes"] == 3 * COLUMNS and found["perturbation"] is None
    assert {len(series) for series in found["columns"].values()} == {COLUMNS}
    own = torch.stack([each[..., 0].mean(0) for each in by_hand(model, document)[0]])
    near(found["columns"]["self_weight"], own.view(COLUMNS, 3, -1).mean(1))
    assert found["columns"]["first_write"][:3] == [0, 3, 6]


@pytest.fixture(scope="module")
def exported(model: Memformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    for name, made in (("model", model), ("bare", make_model(slots=0))):
        directory = root / name
        directory.mkdir()
        weights = {key: value.float().contiguous() for key, value in made.state_dict().items() if key != "head.weight"}
        save_file(weights, directory / "model.safetensors")
        TOKENIZER.save(directory)
        described = {"format": FORMAT, "model": made.config.to_dict(), "tokenizer_sha256": TOKENIZER.sha256}
        (directory / "config.json").write_text(json.dumps(described))
    (root / "text.txt").write_bytes(bytes(DOCUMENT.tolist()))
    (root / "text.txt.gz").write_bytes(gzip.compress(bytes(DOCUMENT.tolist())))
    (root / "cut.txt.gz").write_bytes(gzip.compress(bytes(DOCUMENT.tolist()))[:-20])
    (root / "empty.txt").touch()
    (root / "binary").write_bytes(b"\xff\xfe\x00")
    return root


def test_the_command_writes_numbers_and_pictures(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("launch.commands.inspect_memory.CHARACTERS", 100)  # the text comes in pieces
    words = ["inspect-memory", str(exported / "model"), "--text-file", str(exported / "text.txt")]
    assert main([*words, "--out", str(exported / "out"), "--device", "cpu", "--json"]) == 0
    output = capsys.readouterr()
    printed, last = output.err.splitlines(), json.loads(output.out)
    assert not any(word in output.err for word in ("reading", "counting", "drawing")), "a quick one leaves no trace"
    files = {path.name for path in (exported / "out").iterdir()}
    pictures = {f"{name}.png" for name in ("self_weight", "kinds", "similarity", "tokens", "perturbation")}
    assert files == set(last["files"]) == {"memory.json"} | pictures
    for name in pictures:
        assert (exported / "out" / name).read_bytes().startswith(b"\x89PNG")
    written = json.loads((exported / "out" / "memory.json").read_text())
    assert written["document"] == last["document"] and written["shares"] == last["shares"]
    assert written["document"]["tokens"] == len(DOCUMENT)
    assert set(inspection.DEFINITIONS) == set(written["definitions"])
    assert any("kept" in line and "overwritten" in line for line in printed)


def test_the_command_says_how_far_it_is(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.progress.FIRST_LOG_SECONDS", 0.0)
    monkeypatch.setattr("launch.progress.LOG_SECONDS", 0.0)
    words = ["inspect-memory", str(exported / "model"), "--text-file", str(exported / "text.txt"), "--no-pictures"]
    assert main([*words, "--out", str(exported / "told"), "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert "reading: 32 of 32 segments (100 %)" in output.err and "reading" not in output.out


REFUSALS = {
    "no such text": ("model", "nowhere.txt", [], "nowhere.txt: cannot be read as UTF-8 text"),
    "empty text": ("model", "empty.txt", [], "empty.txt: is empty"),
    "no text": ("model", "binary", [], "binary: cannot be read as UTF-8 text"),
    "damaged gzip": ("model", "cut.txt.gz", [], "cut.txt.gz: cannot be read as UTF-8 text"),
    "no model": ("nowhere", "text.txt", [], "holds no config.json"),
    "no memory": ("bare", "text.txt", [], "the model has no memory"),
    "out is a file": ("model", "text.txt", ["--out", "{root}/text.txt"], "text.txt: is a file: name a directory"),
    "size": ("model", "text.txt", ["--perturbation", "0"], "--perturbation is 0.0: give more than 0"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refuses_with_one_line(exported: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    model_name, text, more, message = REFUSALS[kind]
    words = ["inspect-memory", str(exported / model_name), "--text-file", str(exported / text)]
    words += ["--out", str(exported / "refused"), "--no-pictures", "--device", "cpu"]
    assert main([*words, *(word.format(root=exported) for word in more)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (exported / "refused").exists()


def test_without_matplotlib_numbers_are_to_be_had(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    words = ["inspect-memory", str(exported / "model"), "--text-file", str(exported / "text.txt"), "--device", "cpu"]
    assert main([*words, "--out", str(exported / "none")]) == 2
    assert "pictures need matplotlib: pip install" in capsys.readouterr().err
    words[3] += ".gz"
    assert main([*words, "--out", str(exported / "none"), "--no-pictures"]) == 0
    assert [path.name for path in (exported / "none").iterdir()] == ["memory.json"]
