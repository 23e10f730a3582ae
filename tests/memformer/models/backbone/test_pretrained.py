# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Directories as transformers writes them: read whole, and refused in one line where they do not fit.

Covers: memformer/models/backbone/architectures.py, memformer/models/backbone/directory.py,
memformer/models/backbone/parts.py
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from memformer.models.backbone import Backbone, BackboneConfig
from memformer.models.backbone.parts import file_names
from memformer.models.backbone.pretrained import check_logits, weights
from memformer.models.construction import Construction
from memformer.replay import Segment
from tests.memformer.models.backbone.examples import SIZES, START, VOCABULARY, saved


def config_at(directory: Path, **changes: Any) -> BackboneConfig:
    values = {"vocab_size": VOCABULARY, "start_token_id": START, "segment_length": 8} | changes
    return BackboneConfig(pretrained=str(directory), **values)


def loaded(config: BackboneConfig) -> Backbone:
    """As a run begins with it: the backbone's parts are made without numbers, and read."""
    construction = Construction()
    construction.reads = True
    model = Backbone(config, construction).eval()
    parameters = dict(model.named_parameters())
    for name, stored in weights(config):
        construction.read(name, parameters[name], stored)
    return model


@pytest.mark.parametrize("kind", SIZES)
@torch.no_grad()
def test_a_directory_is_read_as_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    saved(kind, tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    model, plain = loaded(config_at(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(0, START, (2, 8))
    full = torch.full((2,), 8)
    begin = Segment(tokens, full, tokens, full, torch.tensor([True, True]))
    found, _ = model.logits(begin, model.initial_memory(2))
    start = torch.full((2, 1), model.config.bos)
    expected = plain(torch.cat([start, tokens[:, :-1]], 1)).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_files_without_the_body_in_their_names(tmp_path: Path) -> None:
    """As the first GPT-2 has them, with the masks that it stored."""
    directory = saved("gpt2", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(renamed | {"h.0.attn.bias": torch.ones(2, 2)}, directory / "model.safetensors", {"format": "pt"})
    assert len(list(weights(config_at(directory)))) == len(tensors)


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def stored(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def store(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    return store


def tokenizer(ids: int) -> Callable[[Path], None]:
    vocabulary = {str(number): number for number in range(ids)}
    words = json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": []})
    return lambda directory: (directory / "tokenizer.json").write_text(words) and None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edited(model_type="gemma2"), "gemma2 caps its logits and scales its embeddings, which is not built: choose"),
        (edited(model_type="gemma3_text"), "gemma3_text has sliding windows"),
        (edited(model_type="bert"), "model_type is bert: choose one of llama, qwen2, qwen3, mistral, gpt_neox, gpt2"),
        (edited(quantization_config={}), "its weights are quantized"),
        (edited(sliding_window=8), "needs 19 positions, pretrained .* has 8 tokens in its sliding window: lower"),
        (edited(max_position_embeddings=18), "needs 19 positions, pretrained .* has 18 positions: lower"),
        (edited(vocab_size=20), "vocab_size is 31 with the start token, but pretrained .* has 20 ids"),
        (edited(vocab_size=30), "bos_token_id is 30: choose an id below the backbone's 30"),
        (edited(hidden_size="wide"), "hidden_size is wide: give a whole number above 0"),
        (edited(hidden_act="tanhh"), "transformers refuses its sizes .*tanhh"),
        (edited(hidden_size=24), r"has shape \[.*\], its config.json asks for"),
        (edited(num_hidden_layers=4), "holds no tensor model.layers.3"),
        (edited(num_hidden_layers=2), "holds model.layers.2.* of its config.json does not have"),
        (without("config.json"), "holds no config.json: give a directory that transformers' save_pretrained wrote"),
        (without("model.safetensors"), "holds no model.safetensors and no index of one"),
        (lambda directory: (directory / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda directory: (directory / "model.safetensors").write_bytes(b"x"), "model.safetensors cannot be read"),
        (lambda directory: (directory / "config.json").write_text('{"model": {}}'), "an export of ours: set init_from"),
        (stored(lambda tensors: tensors.pop("model.norm.weight")), "holds no tensor model.norm.weight"),
        (stored(lambda tensors: tensors.update(more=torch.ones(1))), "holds more, which a model of its config.json"),
        (tokenizer(20), "its tokenizer.json has 20 ids, that of the data set 31 with the start token: build the data"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    change(saved("mistral", tmp_path))
    with pytest.raises(ValueError, match=words) as refused:
        list(weights(config_at(tmp_path)))
    assert "\n" not in str(refused.value)
    assert "pretrained" in str(refused.value) or "backbone" in str(refused.value)


@pytest.mark.parametrize("ids", [30, 31])
def test_the_tokenizer_with_or_without_our_start_token(ids: int, tmp_path: Path) -> None:
    tokenizer(ids)(saved("llama", tmp_path))
    assert list(weights(config_at(tmp_path)))


def test_the_start_token_is_that_of_the_tokenizer_where_the_configuration_names_none(tmp_path: Path) -> None:
    edited(bos_token_id=None)(saved("llama", tmp_path))
    assert config_at(tmp_path).bos == START, "no tokenizer: that of the data"
    named, file = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    added = [{"id": 7, "content": "<s>"}]
    file.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 3, "b": 30}}, "added_tokens": added}))
    for said, bos in (({"content": "<s>"}, 7), ("<s>", 7), ("a", 3), (None, START), ("gone", START)):
        named.write_text(json.dumps({"bos_token": said}))
        assert config_at(tmp_path).bos == bos
        assert list(weights(config_at(tmp_path)))
    file.write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["<pad>", 0], ["a", -1.5]]}}))
    named.write_text('{"bos_token": "a"}')
    assert config_at(tmp_path).bos == 1
    edited(bos_token_id=5)(tmp_path)
    assert config_at(tmp_path).bos == 5, "config.json comes first"


def test_an_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    saved("llama", tmp_path, max_shard_size="5KB")
    sorted(tmp_path.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(ValueError, match=r"holds no file model-00001-of-.*, which model.safetensors.index.json names"):
        list(weights(config_at(tmp_path)))


def test_a_model_that_says_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would whose architecture scaled its logits: the check at the start compares, and it leaves no trace."""
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    config = config_at(saved("llama", tmp_path))
    state = torch.get_rng_state()
    check_logits(config, "here")
    assert torch.equal(torch.get_rng_state(), state)
    forward = LlamaForCausalLM.forward

    def scaled(self: Any, **inputs: Any) -> Any:
        found = forward(self, **inputs)
        found.logits = 1.01 * found.logits
        return found

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(ValueError, match="here: run with a memory its logits are not those of transformers"):
        check_logits(config, "here")


def test_sizes_by_hand_may_not_contradict_the_directory(tmp_path: Path) -> None:
    config = config_at(saved("llama", tmp_path))
    other = dataclasses.replace(config, backbone=config.backbone | {"rms_norm_eps": 1e-3})
    with pytest.raises(ValueError, match="says something else than model"):
        weights(other)


def test_names_in_files_are_those_of_all_parameters() -> None:
    model = Backbone(BackboneConfig(backbone=SIZES["llama"], vocab_size=VOCABULARY, start_token_id=START))
    own = {name for name, _ in model.named_parameters() if not file_names(name, model.config.architecture)}
    assert own and all(".reader." in name or name.startswith("memory.") for name in own)
