# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""An export of a backbone: transformers opens it as the language model that it was, `load_model` with its memory.

All comparisons are bit for bit: the files hold the same numbers, and the same modules compute with them.

Covers: memformer/checkpoints/export_folder.py, memformer/models/exported.py, memformer/models/loading.py,
memformer/models/backbone/family.py
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline import load_tokenizer
from memformer import load_model
from memformer.models.backbone import Backbone, BackboneConfig
from memformer.models.exported import read_description
from memformer.models.loading import exported_weights
from memformer.models.probe import probe
from tests.memformer.models.backbone.examples import MEMORIES, SIZES, make, plain_of
from tests.memformer.models.backbone.exported import write_export

IDS = 257
LENGTH = 16


def model_of(kind: str = "llama", memory: str = "associative", **changes: Any) -> Backbone:
    """A model of bytes, away from the zeros that it starts with."""
    values = {"vocab_size": IDS, "start_token_id": IDS - 1, "segment_length": LENGTH, "overlap": 3} | changes
    config = BackboneConfig(backbone=dict(SIZES[kind]), memory=MEMORIES[memory], **values)
    return make(config, torch.float32, moved=0.1).eval()


def losses(model: Any) -> list[float]:
    return probe(model, torch.device("cpu"))


def opened(directory: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    found: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, **options
    )
    return found


@pytest.mark.parametrize("kind", SIZES)
def test_transformers_opens_the_language_model_and_we_open_both(kind: str, tmp_path: Path) -> None:
    """In one file, and in several with an index; the names in the files are those that transformers writes itself."""
    model = model_of(kind)
    tokens = torch.arange(40)[None] * 31 % IDS
    with torch.no_grad():
        expected = plain_of(model)(tokens).logits
    names = set()
    for number, most in enumerate((10**9, 6_000)):
        directory = write_export(model, tmp_path / str(number), most=most)
        assert (directory / "model.safetensors.index.json").exists() == bool(number)
        plain, info = opened(directory)
        assert not any(info.values()), info
        assert type(plain).__module__.startswith("transformers.")
        with torch.no_grad():
            assert torch.equal(plain(tokens).logits, expected)
        assert (plain.lm_head.weight is plain.get_input_embeddings().weight) == bool(model.config.tied())
        assert losses(load_model(directory)) == losses(model)
        files = directory.glob("model*.safetensors")
        names |= {name for file in files for name in load_file(file)}
    plain_of(model).save_pretrained(tmp_path / "theirs")
    assert names == set(load_file(tmp_path / "theirs" / "model.safetensors"))


def test_the_tokenizer_opens_too(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_export(model_of(), tmp_path / "model"))
    assert tokenizer("It was").input_ids == list(b"It was")
    assert tokenizer.decode(list(b"the best")) == "the best"
    padded = tokenizer(["It", "It was"], padding=True)
    assert padded.input_ids[0] == [IDS - 1] * 4 + list(b"It") and padded.attention_mask[0] == [0] * 4 + [1] * 2


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_the_description_says_of_each_memory(memory: str, tmp_path: Path) -> None:
    """And bf16 comes back as bf16."""
    model = model_of(memory=memory)
    directory = write_export(model, tmp_path / "model", "bf16")
    said = json.loads((directory / "memory.json").read_text())
    assert said["kind"] == model.config.memory.kind
    assert said["memory_shape"] == list(model.initial_memory(1).shape[1:])
    assert (said["segment_length"], said["overlap"], said["segment_bos"]) == (LENGTH, 3, True)
    loaded = load_model(directory)
    assert {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    def edited(directory: Path) -> None:
        values = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(values | changes))

    return edited


def inside(part: str, **changes: Any) -> Callable[[Path], object]:
    def edited(directory: Path) -> None:
        values = json.loads((directory / "memory.json").read_text())
        (values[part] if part in values else values["model"][part]).update(changes)
        (directory / "memory.json").write_text(json.dumps(values))

    return edited


def flip(name: str) -> Callable[[Path], object]:
    def flipped(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[-3] ^= 1
        (directory / name).write_bytes(content)

    return flipped


def pipe(name: str) -> Callable[[Path], object]:
    """A pipe that nothing is written to in a file's place: who opens it waits for ever."""

    def put(directory: Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)

    return put


def summed_anew(directory: Path) -> None:
    """A description without sums: what is left is that the tensors fit."""
    edit("memory.json", files={}, base={})(directory)


def stored(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def changed(directory: Path) -> None:
        tensors = load_file(directory / name)
        change(tensors)
        save_file(tensors, directory / name, {"format": "pt"})
        summed_anew(directory)

    return changed


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(model_of(), tmp_path_factory.mktemp("export") / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "memory.safetensors").unlink(), r"memory\.safetensors: is missing: export the model again"),
        (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors: is missing: memory\.json names it"),
        (lambda d: (d / "config.json").unlink(), r"config\.json: is missing"),
        (flip("memory.safetensors"), r"memory\.safetensors: has \w+ as its SHA-256, not \w+: export the model again"),
        (flip("model.safetensors"), r"model\.safetensors: has \w+ as its SHA-256, not \w+: memory\.json names it"),
        (lambda d: (d / "memory.safetensors").write_bytes(b"x"), r"memory\.safetensors: has 1 bytes, not \d+"),
        (edit("config.json", rope_theta=5.0), r"config\.json: has \d+ bytes, not \d+"),
        (edit("memory.json", overlap=2), r"memory\.json: overlap is 2, but its model has 3"),
        (edit("memory.json", kind="slots"), r'memory\.json: kind is "slots", but its model has "associative"'),
        (inside("model", overlap=2), r"memory\.json: overlap is 3, but its model has 2"),
        (inside("model", surprise=1), r"memory\.json: unknown model field 'surprise'"),
        (edit("memory.json", model=[]), r"memory\.json: does not describe a model"),
        (edit("memory.json", files=7), r"memory\.json: does not describe its files"),
        (edit("memory.json", files={"../config.json": {}}), r"names '\.\./config\.json', outside the directory"),
        (edit("memory.json", files={"a\0b": {}}), r"memory\.json: names 'a\\x00b', outside the directory"),
        (edit("memory.json", files={"n" * 300: {}}), r"memory\.json: names 'n+', outside the directory"),
        (edit("memory.json", files=0), r"memory\.json: does not describe its files"),
        (edit("memory.json", base=None), r"memory\.json: does not describe its files"),
        (inside("base", directory="a\0b"), r"memory\.json: does not describe its files"),
        (pipe("memory.safetensors"), r"memory\.safetensors: is no file: export the model again"),
        (inside("memory", kind="x"), r"memory\.json: memory\.kind is 'x': give associative or slots or tokens"),
        (inside("memory", rule="x"), r"memory\.json: memory\.rule is 'x': give delta or armt"),
        (
            inside("memory", num_write_tokens=True),
            r"memory\.json: memory\.num_write_tokens is True: give a whole number",
        ),
        (inside("memory", num_heads=[2]), r"memory\.num_heads is \[2\]: give a whole number or null"),
        (
            inside("memory", layers=[1, None]),
            r"memory\.layers is \[1, None\]: give a list, each a whole number or null",
        ),
        (inside("model", pretrained=5), r"memory\.json: pretrained is 5: give a text or null"),
        (inside("model", vocab_size=float("inf")), r"memory\.json: vocab_size is inf: give a whole number or null"),
        (inside("model", dropout=float("nan")), r"memory\.json: dropout is nan: give a number"),
        (inside("model", bos_token_id=2**40), r"memory\.json: bos_token_id is 1099511627776: give a whole number"),
        (inside("model", segment_length=None), r"memory\.json: model\.segment_length is not in the model's config"),
        (
            inside("backbone", num_hidden_layers=10**30),
            r"backbone: num_hidden_layers is 1000+: give a whole .* at most",
        ),
        (inside("backbone", hidden_size=True), r"backbone: hidden_size is True: give a whole number above 0"),
        (
            stored("memory.safetensors", lambda t: t.update({"memory.words.rows": t["memory.words.rows"] + 0j})),
            r"model\.safetensors: memory\.words\.rows is of torch\.complex64: export the model again",
        ),
        (edit("memory.json", format=3), r"memory\.json: is not a Memformer export of format 2"),
        (edit("memory.json", architecture="Memformer"), r"memory\.json: unknown model field"),
        (edit("memory.json", architecture="Else"), r"memory\.json: architecture 'Else' is of no family here"),
        (lambda d: (d / "memory.json").write_text("{"), r"memory\.json: cannot be read"),
        (
            stored("memory.safetensors", lambda t: t.pop("memory.words.rows")),
            r"memory\.safetensors: does not fit memory\.json: Missing key: memory\.words\.rows",
        ),
        (
            stored("memory.safetensors", lambda t: t.update(more=torch.ones(1))),
            r"memory\.safetensors: does not fit memory\.json: Unexpected key: more",
        ),
        (
            stored("model.safetensors", lambda t: t.update({"model.norm.weight": torch.ones(5)})),
            r"model\.safetensors: does not fit memory\.json: size mismatch for norm\.weight",
        ),
    ],
)
def test_what_is_damaged_or_contradicts_itself_is_one_line(
    export: Path, change: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    directory = shutil.copytree(export, tmp_path / "copy")
    change(directory)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as refused:
        load_model(directory)
    assert "\n" not in str(refused.value) and str(directory) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, r"model\.safetensors\.index\.json: is not an index of weights: export the model again"),
        ({"weight_map": {"x": "n" * 300}}, r"model\.safetensors\.index\.json: names 'n+', outside the directory"),
        ({"weight_map": {"x": "a\nb"}}, r"model\.safetensors\.index\.json: names 'a\\nb', outside the directory"),
        ({"weight_map": {"x": "model-a.safetensors", "y": "model-b.safetensors"}}, r"model-b.*: holds \S+, as model-a"),
    ],
    ids=["deep", "long", "two lines", "twice"],
)
def test_an_index_that_is_none_is_one_line(export: Path, content: Any, words: str, tmp_path: Path) -> None:
    directory = shutil.copytree(export, tmp_path / "copy")
    summed_anew(directory)
    for name in "ab":
        shutil.copyfile(directory / "model.safetensors", directory / f"model-{name}.safetensors")
    (directory / "model.safetensors").unlink()
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=words) as refused:
        load_model(directory)
    assert "\n" not in str(refused.value)


def test_weights_that_are_left_to_the_pretrained_directory(tmp_path: Path) -> None:
    """They come from there, in the precision of the export; a base that is gone or another one is refused."""
    whole = model_of("qwen2", bos_token_id=5)
    plain_of(whole).save_pretrained(tmp_path / "base", max_shard_size="8KB")
    config = BackboneConfig(
        pretrained=str(tmp_path / "base"),
        memory=whole.config.memory,
        **{name: getattr(whole.config, name) for name in ("vocab_size", "start_token_id", "segment_length", "overlap")},
        bos_token_id=5,
    )
    whole.config = config
    from memformer.models.backbone.exports import base_files

    (tmp_path / "base" / "tokenizer.json").write_text('{"its": "own"}')
    base = base_files(config)
    assert base is not None and len(base[1]) > 1
    directory = write_export(whole, tmp_path / "model", left_to=base)
    assert not list(directory.glob("model*.safetensors"))
    assert (directory / "generation_config.json").exists(), "files beside the base's weights go along"
    assert (directory / "tokenizer.json").read_text() == '{"its": "own"}'
    assert json.loads((directory / "memory.json").read_text())["tokenizer_file"] == "memory-tokenizer.json"
    assert load_tokenizer(directory / "memory-tokenizer.json").vocab_size == IDS
    assert losses(load_model(directory)) == losses(whole)
    half = write_export(whole, tmp_path / "half", "bf16", left_to=base)
    names = [name for name, _ in whole.named_parameters()]
    for name, stored_part in exported_weights(half, read_description(half), names):  # as a process reads its share
        expected = whole.get_parameter(name)[1:3].bfloat16()
        assert torch.equal(stored_part[1:3], expected) and stored_part.get_shape() == [*whole.get_parameter(name).shape]
    assert {each.dtype for each in load_model(half).parameters()} == {torch.bfloat16}
    flip(base[1][0].name)(tmp_path / "base")
    with pytest.raises(ValueError, match=r"base/model-00001-of-.*SHA-256.* names it as the base: put it back"):
        load_model(directory)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match=r"is missing: memory\.json names it as the base: put it"):
        load_model(directory)


def test_an_export_of_the_first_format_goes_on_loading(tmp_path: Path) -> None:
    """Everything under our own names in model.safetensors, described by config.json."""
    model = model_of("mistral", "slots")
    (tmp_path / "old").mkdir()
    save_file(dict(model.named_parameters()), tmp_path / "old" / "model.safetensors", {"format": "pt"})
    said = {"format": 1, "architecture": "Backbone", "model": model.config.to_dict()}
    (tmp_path / "old" / "config.json").write_text(json.dumps(said))
    assert losses(load_model(tmp_path / "old")) == losses(model)
