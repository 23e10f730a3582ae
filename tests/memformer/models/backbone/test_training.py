# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A pretrained backbone with a memory is trained, saved, resumed, exported, evaluated and continued by the commands.

Tolerances: tests/memformer/models/family_runs.py.

Covers: memformer/models/backbone/associative.py, memformer/models/backbone/slots.py,
memformer/training/initial_weights.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_pipeline import DocumentIndex
from launch.cli import main
from memformer import load_model
from memformer.config.schema import parse_config
from memformer.inference.drawing import available
from memformer.models.sizes import count_parameters
from memformer.run.directory import RunDirectory
from tests.books import small_dataset
from tests.commands import run_command
from tests.distributed.processes import run_distributed
from tests.memformer.models.backbone.examples import SIZES
from tests.memformer.models.family_runs import (
    STEPS,
    assert_alike,
    assert_resumed,
    break_off,
    compared,
    life,
    metrics,
    run_settings,
)


def settings(root: Path, name: str, zero_stage: int, **model: Any) -> dict[str, Any]:
    """A run as its YAML file has it."""
    pretrained = str(root / "base")
    return run_settings(
        root, name, zero_stage, {"family": "backbone", "pretrained": pretrained, "dropout": 0.1} | model
    )


def pretrained(root: Path, **sizes: int) -> Path:
    """A tiny Llama in the vocabulary of the data set, that predicts nothing well but knows its own numbers."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    vocabulary = DocumentIndex.load(root / "data" / "train").vocab_size
    values = {key: value for key, value in SIZES["llama"].items() if key != "model_type"} | sizes
    torch.manual_seed(5)
    made = AutoModelForCausalLM.from_config(LlamaConfig(**values, vocab_size=vocabulary, bos_token_id=None))
    made.save_pretrained(root / "base")
    return root / "base"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set, the pretrained directory and the runs lie."""
    made = tmp_path_factory.mktemp("backbone")
    small_dataset(made)
    pretrained(made)
    return made


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[int, Path]:
    """By ZeRO stage, a finished run of two processes."""
    every = [settings(root, f"zero-{stage}", stage) for stage in (0, 1, 3)]
    if available():
        every[2]["training"]["memory_pictures_interval"], every[2]["tensorboard"] = STEPS, True
    assert run_distributed(life, 2, *every) == [[0, 0, 0]] * 2
    return {stage: root / f"zero-{stage}" for stage in (0, 1, 3)}


@pytest.mark.slow
@pytest.mark.distributed
class TestTrained:
    """Two processes under ZeRO 0, 1 and 3."""

    def test_zero_stages_train_alike_from_the_pretrained_weights(self, root: Path, runs: dict[int, Path]) -> None:
        assert_alike(runs[0], runs[1])
        assert_alike(runs[0], runs[3])
        rows = metrics(runs[0])
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert "pretrained" in (runs[1] / "config.yaml").read_text()
        figures = [[row["memory"] for row in metrics(run)] for run in runs.values()]
        assert set(figures[0][0]) == {"norm", "rank", "change", "retention", "gate", "read"}
        for row, *others in zip(*figures, strict=True):
            for name, by_layer in row.items():
                assert len(by_layer) == 3 and all(each[name] == pytest.approx(by_layer, rel=1e-2) for each in others)
        assert min(figures[0][-1]["norm"]) > 0 and max(figures[0][-1]["gate"]) < 1

    def test_pictures_of_matrices_are_images_of_tensorboard(self, runs: dict[int, Path]) -> None:
        """Under ZeRO 3, where both processes take part."""
        pytest.importorskip("matplotlib")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(RunDirectory(runs[3]).tensorboard), size_guidance={"images": 0})
        board.Reload()
        assert board.Tags()["images"] == ["memory/recall"]
        assert [image.step for image in board.Images("memory/recall")] == [STEPS]

    def test_two_processes_train_like_one_with_full_back_propagation(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Without dropout, whose masks depend on the number of processes; with layers recomputed under ZeRO 3."""
        plain, spread = [], []
        for memory in ({"kind": "slots", "num_slots": 4, "write_layer": 2}, {"kind": "tokens", "num_slots": 4}):
            one = settings(root, f"plain-{memory['kind']}", 0, dropout=0.0, memory=memory)
            plain.append(compared(one, replay="bptt", diagnostics_interval=1))
            two = settings(root, f"spread-{memory['kind']}", 3, dropout=0.0, memory=memory)
            spread.append(compared(two, diagnostics_interval=1))
            spread[-1]["activation_checkpointing"] = {"mode": "full"}
        assert run_distributed(life, 1, *plain) == [[0, 0]]
        assert run_distributed(life, 2, *spread) == [[0, 0]] * 2
        for one, two in zip(plain, spread, strict=True):
            assert_alike(Path(one["run_dir"]), Path(two["run_dir"]))
            figures = [metrics(Path(each["run_dir"]))[-1]["memory"] for each in (one, two)]
            assert figures[0].keys() == figures[1].keys() >= {"change"}
            for name, value in figures[0].items():
                assert figures[1][name] == pytest.approx(value, rel=1e-3), name
        slots, tokens = (self.inspected(Path(run["run_dir"]), capsys) for run in spread)
        assert slots["shares"]["all"]["writes"] == tokens["document"]["writes"]
        assert set(tokens["figures"]) == {"norm", "change"} and tokens["recall"] is None

    def inspected(self, run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        """An export of a run, whose memory is inspected by the command; the answer."""
        out, text = run.parent / f"{run.name}-export", str(run / "short.txt")
        Path(text).write_text("It was the best of times, it was the worst of times. " * 8)
        assert main(["export", str(run), "--out", str(out)]) == 0
        capsys.readouterr()
        words = ["inspect-memory", str(out), "--text-file", text, "--out", str(out / "memory"), "--horizon", "2"]
        assert main([*words, "--no-pictures", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["files"] == ["memory.json"] and found["document"]["writes"] > 2
        report = json.loads((out / "memory" / "memory.json").read_text())
        if "shares" in found:
            assert report["model"]["num_memory_slots"] == len(report["slots"])
        else:
            assert report["figures"] == found["figures"]
        return found

    def test_a_resumed_run_is_equal_to_the_last_bit(self, root: Path, runs: dict[int, Path]) -> None:
        """Under each ZeRO stage."""
        for stage, run in runs.items():
            break_off(run, f"again-{stage}")
        every = [settings(root, f"again-{stage}", stage) for stage in runs]
        assert run_distributed(life, 2, *every) == [[0, 0, 0]] * 2
        for stage, run in runs.items():
            assert_resumed(f"again-{stage}", run)

    @pytest.mark.parametrize("stage", [1, 3])
    def test_exports_are_loaded_evaluated_and_continued(
        self, root: Path, runs: dict[int, Path], stage: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = root / f"export-{stage}"
        assert main(["export", str(runs[stage]), "--out", str(out)]) == 0
        assert json.loads((out / "memory.json").read_text())["architecture"] == "Backbone"
        from transformers import AutoModelForCausalLM

        away = (root / "base").rename(root / "away")  # the export needs it no more
        try:
            model = load_model(out)
            assert model.head.weight is model.embedding.weight
            plain, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
            assert not any(told.values())
            assert torch.equal(plain.model.norm.weight, model.norm.weight)
            capsys.readouterr()
            assert not main(["evaluate", str(out), "--data", str(root / "data"), "--max-segments", "4", "--json"])
            report = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert report["with_memory"]["loss"] != report["memory_reset"]["loss"]
            assert not main(["generate", str(out), "--prompt", "It", "--max-new-tokens", "20"])
            assert capsys.readouterr().out.strip()
        finally:
            away.rename(root / "base")

    def test_unchanged_weights_may_be_left_to_the_pretrained_directory(
        self, root: Path, runs: dict[int, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A run whose steps were too small to change them; of one that changed all, the option is refused."""
        values = settings(root, "unmoved", 1, dropout=0.0)
        values["optimizer"]["learning_rate"] = 1e-30
        assert run_distributed(life, 1, values) == [[0]]
        whole, part = root / "whole", root / "part"
        assert main(["export", str(root / "unmoved"), "--out", str(whole)]) == 0
        assert main(["export", str(root / "unmoved"), "--out", str(part), "--base-reference", "--json"]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["base"] == str(root / "base") and said["largest_loss_difference"] < 1e-5
        assert not list(part.glob("model*.safetensors")) and said["files"] == ["memory.safetensors"]
        one, two = load_model(whole).state_dict(), load_model(part).state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        more = settings(root, "from-part", 1) | {"init_from": str(part)}
        assert run_distributed(life, 1, more) == [[0]]
        assert main(["export", str(runs[1]), "--out", str(root / "none"), "--base-reference"]) == 2
        refused = capsys.readouterr().err
        assert refused.count("\n") == 1 and "--base-reference: every weight of" in refused
        away = (root / "base").rename(root / "away")
        try:
            assert main(["export", str(root / "unmoved"), "--out", str(root / "none"), "--base-reference"]) == 2
        finally:
            away.rename(root / "base")
        refused = capsys.readouterr().err
        assert refused.count("\n") == 1 and "--base-reference: pretrained is" in refused and "leave it out" in refused
        assert not (root / "none").exists() and not list(root.glob(".none*"))

    def test_the_matrices_of_an_export_are_inspected(
        self, runs: dict[int, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = self.inspected(runs[0], capsys)
        assert found["recall"]["distance"] == [0, 1, 2] and len(found["figures"]["norm"]) == 3

    def test_an_export_starts_a_new_run(self, root: Path, runs: dict[int, Path]) -> None:
        """Two processes under ZeRO 3, each of which reads its share of every tensor."""
        out = root / "started-from"
        assert main(["export", str(runs[0]), "--out", str(out)]) == 0
        values = settings(root, "more", 3) | {"init_from": str(out)}
        assert run_distributed(life, 2, values) == [[0]] * 2
        assert metrics(root / "more")[0]["loss"] < metrics(runs[0])[0]["loss"]


def test_what_is_not_built_is_refused_in_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slots = settings(root, "refused", 1, memory={"kind": "slots", "num_slots": 4})
    (root / "config.yaml").write_text(yaml.safe_dump(slots))
    assert main(["train", str(root / "config.yaml"), "--parallel.pipeline", "2"]) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert "parallel.pipeline: model.memory.kind is slots" in refused and "or set parallel.pipeline to 1" in refused


def test_a_plan_counts_it_also_with_layers_that_are_recomputed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "config.yaml").write_text(yaml.safe_dump(settings(root, "planned", 1)))
    command = ["plan", str(root / "config.yaml"), "--gpus-per-node", "2", "--precision", "fp32", "--json"]
    assert main(command) == 0
    model = parse_config(settings(root, "planned", 1), "test").model.completed(257, 256, 16)
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["parameters"] == count_parameters(model)
    assert main([*command, "--activation_checkpointing.mode", "full"]) == 0
    recomputed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert recomputed["device_memory"]["activations"] < plan["device_memory"]["activations"]


def test_what_does_not_fit_the_data_is_refused_in_one_line(root: Path) -> None:
    """By `train`: a segment that is too long, found with the data set opened; no run directory is left."""
    (root / "config.yaml").write_text(yaml.safe_dump(settings(root, "refused", 1)))
    done = run_command("train", str(root / "config.yaml"), "--data.segment_length", "60")
    refused = done.stderr
    assert done.returncode == 2
    assert refused.count("\n") == 1
    assert "model.segment_length 60 with overlap 15 and the memory's 8 tokens needs 84 positions" in refused
    assert not (root / "refused").exists()
