# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` where only torch and transformers are installed.

One process in which nothing of this project can be imported opens an export of each family and memory; what it
generates and scores is held to this project's own, token by token over many borders of segments. Logits: 1e-5 of the
largest, for sums in another order where a segment's mask is left out.

Covers: memformer/models/hub/backbone_lm.py, memformer/models/hub/memformer_lm.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memformer import Memformer, MemformerConfig, load_model
from memformer.inference.generation import generate
from memformer.models.backbone import LoraConfig
from memformer.replay import Segment
from tests import ROOT
from tests.books import TINY_MODEL
from tests.memformer.models.backbone.exported import write_export
from tests.memformer.models.backbone.test_exports import LENGTH, model_of

NEW = 40  # tokens: over three borders of segments or more
KINDS = ("associative", "slots half-way", "tokens")
PROGRAM = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"memformer", "data_pipeline", "launch", "deepspeed", "pydantic"}:
            raise ImportError(f"{name} is not to be had here")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForCausalLM
prompts = json.loads(sys.argv[1])
found = {}
for directory in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    options = dict(max_new_tokens=int(sys.argv[2]), do_sample=False, pad_token_id=0)
    alone = [model.generate(torch.tensor([each]), **options)[0, len(each):].tolist() for each in prompts]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(each)) + each for each in prompts])
    seen = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    beside = model.generate(padded, attention_mask=seen, **options)[:, longest:].tolist()
    torch.manual_seed(3)
    drawn = model.generate(torch.tensor(prompts[:1]), max_new_tokens=20, do_sample=True, top_k=9, pad_token_id=0)
    text = torch.tensor([prompts[0] + alone[0]])
    scored = model(text, labels=text)
    with_start = torch.cat([torch.full((1, 1), 256), text], 1)
    refused = []
    for wrong in (
        lambda: model.generate(text, num_beams=2, max_new_tokens=20, pad_token_id=0),
        lambda: model(padded, attention_mask=seen),
        lambda: model.save_pretrained("nowhere"),
        lambda: AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, device_map="balanced"),
    ):
        try:
            wrong()
        except ValueError as error:
            refused.append(str(error))
    found[directory] = {
        "class": type(model).__name__, "alone": alone, "beside": beside, "drawn": drawn.shape[1],
        "loss": float(scored.loss), "logits": scored.logits[0].tolist(), "refused": refused,
        "start": torch.equal(model.generate(with_start, **options)[:, with_start.shape[1]:],
                             model.generate(text, **options)[:, text.shape[1]:]),
        "kept": [float((model(each, logits_to_keep=count).logits - model(each).logits[:, -count:]).abs().max())
                 for each in (text, with_start) for count in (1, 3, text.shape[1])],
        "first": model(with_start).logits[0, :-1].shape[0] == text.shape[1],
        "eval": not model.training,
    }
print(json.dumps(found))
"""
PROMPTS = [list(b"It was the best of times, it was the worst"), list(b"A tale")]


def memformer() -> Memformer:
    torch.manual_seed(4)
    of_data = {"vocab_size": 257, "start_token_id": 256, "segment_length": LENGTH}
    model = Memformer(MemformerConfig(**TINY_MODEL, **of_data, overlap=3, block="modern"))
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.3 * torch.randn_like(each))
    return model.eval()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    models: dict[str, Any] = {memory: model_of("qwen3", memory) for memory in KINDS}
    for model in models.values():
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(3)  # so that it does not say one word alone
    models["gpt2"] = model_of("gpt2", "armt", bos_token_id=7, lora=LoraConfig(2, 4.0))
    models["memformer"] = memformer()
    return {name: write_export(model, root / name.replace(" ", "-")) for name, model in models.items()}


@pytest.fixture(scope="module")
def found(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the other process found, by export."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM, json.dumps(PROMPTS), str(NEW), *map(str, exports.values())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=home, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return {name: said[str(directory)] for name, directory in exports.items()}


@pytest.mark.slow
def test_it_generates_what_we_generate(exports: dict[str, Path], found: dict[str, Any]) -> None:
    """One text at a time, and texts of different lengths side by side; a start token in front changes nothing."""
    various = 0
    for name, directory in exports.items():
        model, result = load_model(directory), found[name]
        expected = [list(generate(model, prompt, NEW, temperature=0)) for prompt in PROMPTS]
        assert result["class"] == ("MemformerForCausalLM" if name == "memformer" else "BackboneForCausalLM")
        assert result["alone"] == expected and result["beside"] == expected, name
        assert result["drawn"] == len(PROMPTS[0]) + 20
        assert result["start"] and result["first"] and result["eval"]
        # What is not asked for is read without its logits: the same tensors through the same products.
        assert result["kept"] == [0.0] * 6, name
        various += len(set(expected[0])) > 3
    assert various > len(exports) // 2, "a model that says one word alone shows nothing"


def by_segments(model: Any, text: torch.Tensor) -> torch.Tensor:
    """Logits of every token but the first from those before it, segment by segment as in training, [n - 1, V]."""
    memory, found, full = model.initial_memory(1), [], torch.tensor([LENGTH])
    for start in range(0, text.shape[1], LENGTH):
        part, before = text[:, start : start + LENGTH], text[:, max(0, start - LENGTH) : max(start, LENGTH)]
        count, first = torch.tensor([part.shape[1]]), torch.tensor([start == 0])
        logits, memory = model.logits(Segment(before, full, part, count, first), memory)
        found.append(logits[0])
    return torch.cat(found)[1:]


@pytest.mark.slow
def test_it_scores_as_we_do(exports: dict[str, Path], found: dict[str, Any]) -> None:
    for name, directory in exports.items():
        text = torch.tensor([PROMPTS[0] + found[name]["alone"][0]])
        expected = by_segments(load_model(directory), text)
        scored = torch.tensor(found[name]["logits"])[:-1]
        assert torch.allclose(scored, expected, atol=1e-5 * float(expected.abs().max())), name
        loss = torch.nn.functional.cross_entropy(expected, text[0, 1:])
        assert found[name]["loss"] == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.slow
def test_what_a_memory_cannot_do_is_refused_in_one_line(found: dict[str, Any]) -> None:
    for result in found.values():
        beams, padded, saved, spread = result["refused"]
        assert "use num_beams=1" in beams and "scored one by one" in padded
        assert "copy the directory" in saved and "device_map 'balanced' is not built: name one device" in spread
        assert not any("\n" in each for each in result["refused"])


SOURCES = ("memformer.models.hub.causal_lm", "memformer.models.hub.backbone_lm", "memformer.models.hub.memformer_lm")


def test_we_never_run_it() -> None:
    """Nothing of this project imports the modules that import transformers at their top, but for each other."""
    for folder in ("memformer", "launch", "data_pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.stem not in {name.rpartition(".")[2] for name in SOURCES}:
                assert not any(name in path.read_text() for name in SOURCES), path
