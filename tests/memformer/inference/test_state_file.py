# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A state in a file goes on to the last bit, and a file that is anything else is refused in one line."""

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from data_pipeline import UserError
from memformer import Memformer, MemformerConfig
from memformer.inference import load_state, read_texts, reader_of, save_state, state_file
from memformer.models.segment_reader import ReadingState
from tests.memformer.models.backbone.examples import config_of, make

S, START = 4, 30
CONFIG = MemformerConfig(
    1, 1, d_model=8, num_heads=2, d_ff=8, num_memory_slots=2, vocab_size=31, start_token_id=START, segment_length=S
)
TENSORS = ("memory", "context", "tokens")
DOCUMENT, QUESTION = list(range(3, 17)), [20, 1, 7]


def memformer(**changes: Any) -> Memformer:
    torch.manual_seed(0)
    return Memformer(dataclasses.replace(CONFIG, **changes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Memformer:
    return memformer()


def read(model: Any, *texts: list[int]) -> ReadingState:
    reader = reader_of(model, len(texts))
    read_texts(reader, texts)
    return reader.state


@pytest.fixture
def file(model: Memformer, tmp_path: Path) -> Path:
    save_state(tmp_path / "state.safetensors", read(model, DOCUMENT), model)
    return tmp_path / "state.safetensors"


@pytest.mark.parametrize("memory", ["memformer", "associative", "slots", "tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_document_answers_as_one_that_was_never_put_away(
    tmp_path: Path, memory: str, dtype: torch.dtype
) -> None:
    """To the last bit, two documents of different lengths, in both precisions; and the file holds all of it."""
    one: Any = memformer() if memory == "memformer" else make(config_of("llama", memory, segment_length=S), dtype)
    one = one.to(dtype).eval().requires_grad_(False)
    whole = reader_of(one, 2)
    read_texts(whole, [DOCUMENT, DOCUMENT[:5]])
    save_state(tmp_path / "state", whole.state, one)
    found = load_state(tmp_path / "state", one)
    for field in dataclasses.fields(ReadingState):
        ours, theirs = getattr(whole.state, field.name), getattr(found, field.name)
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype if field.name in TENSORS else ours == theirs
    again = reader_of(one, 2)
    again.restore(found)
    for reader in (whole, again):
        read_texts(reader, [QUESTION, QUESTION[:1]])
    assert torch.equal(whole.logits, again.logits)
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_every_file_with_a_byte_changed_or_cut_off_is_refused(model: Memformer, file: Path) -> None:
    whole = file.read_bytes()
    assert load_state(file, model).counts == (len(DOCUMENT) % S,)
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError) as found:
            load_state(file, model)
        assert str(found.value).startswith(f"{file}: ") and "\n" not in str(found.value), place
    for length in {*range(0, len(whole), 97), len(whole) - 1}:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="read the document again and save its state"):
            load_state(file, model)


def resaved(file: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
    """A file of other contents whose sum is right, as another program might write it."""
    content = file.read_bytes()
    tensors, facts = load(content), state_file._facts(content)
    assert facts is not None
    del facts["sha256"]
    change(facts, tensors)
    header = json.dumps({**facts, "sha256": state_file._sum(facts, tensors)})
    file.write_bytes(save(tensors, metadata={state_file.KEY: header}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts, _: facts.update(format=2), "has format 2, not 1: read the document again"),
        (lambda facts, _: facts.pop("weights"), "its weights is None, the model's "),
        (lambda facts, _: facts.update(counts=[S]), r"counts is \[4\], not 0 to 3 for each document"),
        (lambda facts, _: facts.update(counts=[True]), r"counts is \[True\], not 0 to 3"),
        (lambda facts, _: facts.update(counts=[1, 1]), r"tokens is torch.int64 \[1, 4\], not int64 \[B, S\] of 2"),
        (lambda facts, _: facts.update(counts="no"), r"tokens is torch.int64 \[1, 4\], not int64 \[B, S\] of 0"),
        (lambda facts, _: facts.update(known=[3]), r"known is \[3\], not 0 or 4"),
        (lambda _, tensors: tensors["tokens"].fill_(31), "tokens has ids beyond the model's 31"),
        (lambda _, tensors: tensors["context"].fill_(-1), "context has ids beyond the model's 31"),
        (lambda _, tensors: tensors.update(tokens=torch.tensor(3)), r"tokens is torch.int64 \[\], not"),
        (lambda _, tensors: tensors.update(memory=torch.zeros(1, 2, 9)), r"memory is torch.float32 \[1, 2, 9\], not"),
        (lambda _, tensors: tensors.update(more=torch.zeros(1)), "is no state of a reader"),
    ],
)
def test_what_no_reader_wrote_is_refused_though_its_sum_is_right(
    model: Memformer, file: Path, change: Any, words: str
) -> None:
    resaved(file, lambda facts, tensors: None)
    assert load_state(file, model).known == (S,)
    resaved(file, change)
    with pytest.raises(UserError, match=words):
        load_state(file, model)


def test_another_model_or_precision_is_refused(model: Memformer, file: Path) -> None:
    other = memformer()
    with torch.no_grad():
        other.head.weight[3, 3] += 1
    for wrong, words in (
        (other, "its weights is "),
        (memformer().bfloat16(), "its weights is "),
        (memformer(memory_temperature=0.5), "its config is "),
        (make(config_of("llama", segment_length=S)), "its architecture is Memformer, the model's Backbone"),
    ):
        with pytest.raises(UserError, match=f"{file}: {words}.*: give the model and the precision that it was read wi"):
            load_state(file, wrong)


def test_files_of_other_kinds_are_refused(model: Memformer, tmp_path: Path) -> None:
    (tmp_path / "pickled").write_bytes(pickle.dumps({"memory": [1.0]}))
    (tmp_path / "torch").write_bytes(b"")
    torch.save({"memory": torch.zeros(2)}, tmp_path / "torch")
    (tmp_path / "plain").write_bytes(save({"memory": torch.zeros(2)}))
    (tmp_path / "text").write_bytes(save({"memory": torch.zeros(2)}, metadata={state_file.KEY: "[1]"}))
    (tmp_path / "deep").write_bytes(save({"memory": torch.zeros(2)}, metadata={state_file.KEY: "[" * 100_000}))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("pickled", "is no state of a reader, or a part of one"),
        ("torch", "is no state of a reader, or a part of one"),
        *((name, "is no state of a reader: give a file that --save-state") for name in ("plain", "text", "deep")),
        *((name, "is no file: give one that --save-state") for name in ("folder", "pipe", "nothing")),
        ("n" * 300, r"cannot be read \(File name too long\)"),
    ):
        with pytest.raises(UserError, match=f"{tmp_path / name}: {words}"):
            load_state(tmp_path / name, model)


def test_nothing_is_replaced_and_nothing_is_left_half_written(
    model: Memformer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, state = file.read_bytes(), read(model, QUESTION)
    with pytest.raises(UserError, match="exists: choose another file, or remove it"):
        save_state(file, state, model)
    (file.parent / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="exists: choose another file"):
        save_state(file.parent / "link", state, model)
    with pytest.raises(UserError, match=r"there is no directory .*: make it, or choose another file"):
        save_state(file.parent / "none" / "state", state, model)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): choose another file"):
        save_state(file.parent / "new", state, model)
    assert file.read_bytes() == before and sorted(each.name for each in file.parent.iterdir()) == ["link", file.name]
