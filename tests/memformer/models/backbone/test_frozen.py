# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Runs that train the memory and adapters alone: the same on any number of processes, resumed, exported; the frozen
base lies on the disk once.

Tolerance between ZeRO stages and one process: 1e-4 nats after a few steps of AdamW in float32 (seen: under 1e-5).

Covers: memformer/engine/parameter_state.py, memformer/checkpoints/saving.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from launch.cli import main
from memformer import load_model
from memformer.checkpoints.state import parameter_reader
from memformer.engine.fragments import Region
from memformer.models.probe import probe
from memformer.run import jsonl
from tests.books import small_dataset
from tests.commands import run_command
from tests.distributed.processes import run_distributed
from tests.memformer.models.backbone.test_training import pretrained, settings
from tests.memformer.models.family_runs import SAVED, STEPS, life, metrics

LORA = {"rank": 2, "alpha": 4.0}


def frozen_settings(root: Path, name: str, zero_stage: int, train: str = "lora", **changes: Any) -> dict[str, Any]:
    """A run that trains the memory, with its own rate, and adapters where `train` says so; its rollouts grow."""
    model: dict[str, Any] = {"lora": LORA} if train == "lora" else {}
    model["memory"] = {"layers": [0, 2]}
    values = settings(root, name, zero_stage, dropout=0.0, **model) | changes
    values["training"] |= {"train": train, "eval_interval": 0}
    values["optimizer"] |= {"memory_learning_rate": 5e-3}
    values["data"] |= {"num_segments": {0: 1, SAVED - 1: 2, SAVED + 1: 3}}
    return values


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set, the pretrained directory and the runs lie."""
    made = tmp_path_factory.mktemp("frozen")
    small_dataset(made)
    pretrained(made)
    return made


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Path]:
    """One process with full back-propagation; two under ZeRO 2 and 3; two in bfloat16 that train the memory alone.

    All stages, without adapters, are compared in tests/distributed/test_zero.py.
    """
    one = frozen_settings(root, "one", 0)
    one["training"]["replay"] = "bptt"
    full = {"activation_checkpointing": {"mode": "full"}}
    several = [frozen_settings(root, f"zero-{stage}", stage, **(full if stage == 3 else {})) for stage in (2, 3)]
    several.append(frozen_settings(root, "bf16-1", 1, "memory", precision="bf16"))
    assert run_distributed(life, 1, one) == [[0]]
    assert run_distributed(life, 2, *several) == [[0] * len(several)] * 2
    return {Path(values["run_dir"]).name: Path(values["run_dir"]) for values in (one, *several)}


def checkpoint(run: Path, step: int = STEPS) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


@pytest.mark.slow
@pytest.mark.distributed
class TestFrozen:
    """Two processes, with adapters and without."""

    def test_processes_and_stages_train_alike(self, runs: dict[str, Path]) -> None:
        losses = {name: [row["loss"] for row in metrics(run)] for name, run in runs.items()}
        for stage in (2, 3):
            assert losses[f"zero-{stage}"] == pytest.approx(losses["one"], abs=1e-4)
        assert all(each[-1] < each[0] for each in losses.values())
        rates = [(row["memory_learning_rate"], row["learning_rate"]) for row in metrics(runs["one"])]
        assert all(memory == pytest.approx(5 * rate) for memory, rate in rates)

    @pytest.mark.parametrize("name", ["one", "zero-2", "zero-3", "bf16-1"])
    def test_the_base_is_as_it_was_and_lies_on_the_disk_once(
        self, root: Path, runs: dict[str, Path], name: str
    ) -> None:
        first, last = checkpoint(runs[name], SAVED), checkpoint(runs[name])
        files = sorted((last / "base").iterdir())
        assert files and [file.stat().st_ino for file in files] == [
            (first / "base" / file.name).stat().st_ino for file in files
        ]
        for file in (last / "parameters").iterdir():
            with safe_open(file, framework="pt") as tensors:
                names = {key.partition("/")[2] for key in tensors.keys()}  # noqa: SIM118  # safetensors' object
            assert all("lora_" in each or "reader" in each or each.startswith("memory.") for each in names)
        state, reader = json.loads((last / "state.json").read_text()), parameter_reader(last)
        plain = load_file(root / "base" / "model.safetensors")
        for name_here, name_there in (
            ("embedding.weight", "model.embed_tokens.weight"),
            ("stack.1.block.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
            ("norm.weight", "model.norm.weight"),
        ):
            there = plain[name_there]
            found = reader.read("weight", name_here, Region.whole(there.shape)).view(there.shape)
            narrow = name.startswith("bf16") and there.dim() == 2
            assert torch.equal(found, there.bfloat16() if narrow else there)
            assert state["frozen"][name_here] == str(found.dtype).removeprefix("torch.")

    def test_a_resumed_run_is_equal_to_the_last_bit_without_the_directory(
        self, root: Path, runs: dict[str, Path]
    ) -> None:
        """By the configuration in the run directory; another stage and number of processes goes on from the same files,
        also with all that was frozen trained from there on."""
        names = ["zero-2", "zero-3", "bf16-1"]
        again = {}
        for name in names:
            copy = shutil.copytree(runs[name], root / f"again-{name}")
            shutil.rmtree(checkpoint(copy))
            again[name] = yaml.safe_load((copy / "config.yaml").read_text()) | {"run_dir": str(copy)}
        other = shutil.copytree(root / "again-zero-3", root / "other")
        alone = yaml.safe_load((other / "config.yaml").read_text()) | {"run_dir": str(other)}
        alone["parallel"]["zero_stage"] = 0
        thawed = shutil.copytree(runs["bf16-1"], root / "thawed")
        everything = yaml.safe_load((thawed / "config.yaml").read_text()) | {"run_dir": str(thawed)}
        everything["training"] |= {"train": "all", "max_steps": STEPS + 1}
        away = (root / "base").rename(root / "away")
        try:
            assert run_distributed(life, 2, *again.values()) == [[0] * len(names)] * 2
            assert run_distributed(life, 1, alone, everything) == [[0, 0]]
        finally:
            away.rename(root / "base")
        for name in names:
            assert metrics(root / f"again-{name}") == metrics(runs[name])
            copied = checkpoint(root / f"again-{name}", SAVED) / "base"
            for file in (checkpoint(root / f"again-{name}") / "base").iterdir():
                assert file.samefile(copied / file.name)
        assert [row["loss"] for row in metrics(other)] == pytest.approx(
            [row["loss"] for row in metrics(runs["zero-3"])], abs=1e-4
        )
        assert not (checkpoint(thawed, STEPS + 1) / "base").exists()
        changes = [each for each in jsonl.records(thawed / "events.jsonl") if each["event"] == "resume"][-1]["changes"]
        assert "training.train memory -> all" in changes

    def test_exports_have_peft_files_and_are_used(
        self, root: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whole, or with the frozen weights left to the pretrained directory, under fp32 all of them."""
        for name, options in (("zero-3", ()), ("zero-3", ("--base-reference",)), ("bf16-1", ())):
            out = root / f"export-{name}{''.join(options)}"
            assert main(["export", str(runs[name]), "--out", str(out), *options]) == 0
            assert (out / "adapter_model.safetensors").exists() == name.startswith("zero")
            assert (out / "model.safetensors").exists() != bool(options)
            assert bool([each for each, _ in load_model(out).named_parameters() if "lora_" in each]) == (
                name == "zero-3"
            )
        whole, left = (load_model(root / f"export-zero-3{end}").state_dict() for end in ("", "--base-reference"))
        assert whole.keys() == left.keys() and all(torch.equal(whole[name], left[name]) for name in whole)
        capsys.readouterr()
        assert not main(["generate", str(root / "export-zero-3"), "--prompt", "It", "--max-new-tokens", "5"])

    def test_adapters_are_merged_on_request(
        self, root: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same losses to 1e-5 nats: the same products in float32, summed in another order."""
        from transformers import AutoModelForCausalLM

        out, merged = root / "with-adapters", root / "merged"
        assert main(["export", str(runs["zero-2"]), "--out", str(out)]) == 0
        assert main(["export", str(runs["zero-2"]), "--out", str(merged), "--merge", "--json"]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["merged"] and said["largest_loss_difference"] < 1e-5
        assert not list(merged.glob("adapter_*"))
        adapted, plain = load_model(out), load_model(merged)
        assert probe(plain, torch.device("cpu")) == pytest.approx(probe(adapted, torch.device("cpu")), abs=1e-5)
        assert plain.config.lora is None and not any("lora_" in name for name, _ in plain.named_parameters())
        theirs, told = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
        assert not any(told.values())
        query = adapted.stack[1].block.self_attn.q_proj
        assert not torch.equal(theirs.model.layers[1].self_attn.q_proj.weight, query.weight)
        part = root / "merged-part"
        assert main(["export", str(runs["zero-2"]), "--out", str(part), "--merge", "--base-reference"]) == 0
        held = load_file(part / "model.safetensors")  # what the adapters have changed
        assert sorted(held) == [f"model.layers.{i}.self_attn.{each}_proj.weight" for i in range(3) for each in "qv"]
        one, two = plain.state_dict(), load_model(part).state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        capsys.readouterr()
        assert main(["export", str(runs["bf16-1"]), "--out", str(root / "none"), "--merge"]) == 2
        said_of_none = capsys.readouterr().err
        assert said_of_none.count("\n") == 1 and "has no low-rank adapters (model.lora): leave it out" in said_of_none
        assert not (root / "none").exists()

    def test_a_base_that_is_gone_or_differs_is_refused_in_one_line(self, root: Path, runs: dict[str, Path]) -> None:
        copy = shutil.copytree(runs["one"], root / "broken")
        for step in (SAVED, STEPS):
            file = checkpoint(copy, step) / "base" / "rank-00000.safetensors"
            if step == SAVED:
                file.unlink()
            else:
                content = bytearray(file.read_bytes())
                content[-1] ^= 1
                file.write_bytes(content)
        (root / "broken.yaml").write_text((copy / "config.yaml").read_text())
        done = run_command("train", str(root / "broken.yaml"), "--run_dir", str(copy))
        said = done.stderr
        assert done.returncode == 1
        assert said.count("\n") == 1
        assert "base/rank-00000.safetensors: is missing" in said and "SHA-256 differs" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"lora": LORA}}, "model.lora is given, but training.train is all: set it to lora"),
        ({"training": {"train": "lora"}}, "training.train is lora, but model.lora is left out: give its rank"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    root: Path, change: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(root, "refused", 1)
    for section, each in change.items():
        values[section] = values[section] | each
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(root / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said
