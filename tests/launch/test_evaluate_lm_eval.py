# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer evaluate MODEL --lm-eval ...`: real runs of the harness on files here, read back; mistakes are one line.

Covers: launch/commands/evaluate_lm_eval.py, memformer/inference/lm_eval_tasks.py, memformer/inference/lm_eval_files.py
"""

import importlib.util
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data_pipeline import build_dataset
from data_pipeline.tasks.prompts import Prompt
from data_pipeline.tokenizer_choice import make_tokenizer
from launch.cli import main
from memformer import load_model
from memformer.inference.lm_eval_files import check_files
from tests import ROOT
from tests.launch.test_evaluate_command import export
from tests.memformer.inference.test_tasks import scored
from tests.memformer.models.backbone.examples import config_of, make
from tests.memformer.models.backbone.exported import write_export

datasets = pytest.importorskip("datasets", reason="the extra lm-eval is not installed")
pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

STORY = "There was a princess who had a golden ball, and she threw it up high and caught it again. "
DOCUMENTS = [
    {"story": STORY * 2, "question": "What had she?", "choices": ["a ball", "a frog", "a well"], "gold": 0},
    {"story": STORY[:50], "question": "Who was there?", "choices": ["a cook", "a king", "a princess"], "gold": 2},
    {"story": "", "question": "Is it?", "choices": ["no", "yes", "so it is"], "gold": 1},
]
FAMILIES = ("memformer", "backbone")
DEVICE = ("--device", "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the user's: `datasets` writes what it has read there."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    make_tokenizer("bytes").save(folder)
    backbone = make(
        config_of("llama", "associative", vocab_size=257, start_token_id=256, segment_length=32, bos_token_id=3),
        dtype=torch.float32,
        moved=0.1,
    )
    return {
        "memformer": export(folder / "memformer", folder),
        "backbone": write_export(backbone, folder / "of-a-backbone" / "model"),
    }


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Tasks of all kinds on the same documents, and a group of two of them."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    write_task(
        tmp_path,
        "choice",
        output_type="multiple_choice",
        doc_to_text="{{story}}{{question}}",
        doc_to_choice="choices",
        doc_to_target="gold",
        metric_list=["acc", "acc_norm"],
    )
    write_task(
        tmp_path,
        "rolling",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{story}}{{question}}",
        metric_list=["byte_perplexity", "bits_per_byte"],
    )
    write_task(
        tmp_path,
        "writing",
        output_type="generate_until",
        doc_to_text="{{story}}{{question}}",
        doc_to_target="{{choices[gold]}}",
        generation_kwargs={"until": ["\n\n\n"], "max_gen_toks": 6},
        metric_list=["exact_match"],
    )
    (tmp_path / "tasks" / "group.yaml").write_text("group: both\ntask: [choice, writing]\n")
    return tmp_path


def write_task(folder: Path, name: str, **settings: Any) -> Path:
    """A task on `data.jsonl`; settings that are None are left out."""
    settings.setdefault("metric_list", ["acc"])
    settings["metric_list"] = [
        {"metric": each, "aggregation": AGGREGATIONS.get(each, "mean"), "higher_is_better": True}
        for each in settings["metric_list"]
    ]
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
        "test_split": "test",
        **settings,
    }
    (folder / "tasks").mkdir(exist_ok=True)
    file = folder / "tasks" / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


AGGREGATIONS = {"byte_perplexity": "weighted_perplexity", "bits_per_byte": "bits_per_byte"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_harness_s_figures_are_those_of_our_own_commands(
    family: str, models: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """float32, so likelihoods of some hundred nats agree to 1e-3, those of answers to 1e-4."""
    model, words = str(models[family]), ["--lm-eval-path", str(here / "tasks"), *DEVICE]
    more = ["--out", str(here / "out"), "--dump", str(here / "dump.jsonl"), "--json", "--lanes", "4"]
    assert main(["evaluate", model, "--lm-eval", "choice,rolling,writing", *words, *more]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert json.loads((here / "out" / "lm_eval.json").read_text()) == {
        key: value for key, value in report.items() if key != "seconds"
    }
    found = report["results"]
    assert report["n-samples"]["choice"] == {"original": 3, "effective": 3} and report["limit"] is None
    dumped = [json.loads(line) for line in (here / "dump.jsonl").read_text().splitlines()]
    samples = {name: [each for each in dumped if each["task"] == name] for name in report["n-samples"]}
    assert f"choice   acc                    {found['choice']['acc,none']:.6g}".split() == next(
        line.split()[:3] for line in said.err.splitlines() if line.startswith("choice")
    )

    loaded, right = load_model(model), []
    for document, sample in zip(DOCUMENTS, samples["choice"], strict=True):
        context = document["story"] + document["question"]
        expected = []
        for choice in document["choices"]:
            tokens = np.frombuffer(f"{context} {choice}".encode(), dtype=np.uint8).astype(np.uint16)
            expected.append(scored(loaded, Prompt(tokens, ((len(context), len(tokens)),)), False, 32)[0])
        assert [answer[0][0] for answer in sample["resps"]] == pytest.approx(expected, abs=1e-4)
        right.append(int(np.argmax(expected)) == document["gold"])
    assert found["choice"]["acc,none"] == pytest.approx(np.mean(right))

    text = [{"text": document["story"] + document["question"]} for document in DOCUMENTS]
    (here / "text.jsonl").write_text("\n".join(map(json.dumps, text)))
    build_dataset([here / "text.jsonl"], here / "set")
    assert main(["evaluate", model, "--data", str(here / "set"), "--json", *DEVICE]) == 0
    own = json.loads(capsys.readouterr().out)["with_memory"]
    assert own["tokens"] == sum(len(each["text"]) for each in text)
    assert found["rolling"]["byte_perplexity,none"] == pytest.approx(own["perplexity"], rel=1e-5)
    assert found["rolling"]["bits_per_byte,none"] == pytest.approx(own["loss"] / math.log(2), rel=1e-5)

    for document, sample in zip(DOCUMENTS, samples["writing"], strict=True):
        prompt = ["--prompt", document["story"] + document["question"], "--max-new-tokens", "6", "--temperature", "0"]
        assert main(["generate", model, *prompt, "--json", *DEVICE]) == 0
        assert sample["filtered_resps"] == [json.loads(capsys.readouterr().out)["text"]]

    assert main(["evaluate", model, "--lm-eval", "both,rolling", *words, "--json", "--lanes", "1", "--limit", "2"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["group_subtasks"] == {"both": ["choice", "writing"]}
    assert alone["n-samples"]["writing"] == {"original": 3, "effective": 2}
    assert alone["results"]["choice"]["acc,none"] == pytest.approx(np.mean(right[:2]))


def test_an_answer_that_the_model_writes_is_an_exact_match(
    models: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three documents the first has what the model writes as its target, by a YAML file of its own."""
    model = str(models["memformer"])
    words = ["--max-new-tokens", "6", "--temperature", "0", "--json", *DEVICE]
    assert main(["generate", model, "--prompt", DOCUMENTS[0]["story"] + DOCUMENTS[0]["question"], *words]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    changed = [{**each, "answer": text if not number else "else"} for number, each in enumerate(DOCUMENTS)]
    (here / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in changed))
    content = yaml.safe_load((here / "tasks" / "writing.yaml").read_text()) | {"doc_to_target": "answer"}
    (here / "own.yaml").write_text(yaml.safe_dump(content))
    assert main(["evaluate", model, "--lm-eval", str(here / "own.yaml"), "--json", *DEVICE]) == 0
    found = json.loads(capsys.readouterr().out)["results"]["writing"]
    assert found["exact_match,none"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lm-eval", "chioce"], "there is no task 'chioce': is it 'choice'?"),
        (["--lm-eval", "arc_easy"], "no task 'arc_easy': --lm-eval-path has both, choice, rolling, writing; the"),
        (["--lm-eval", " , "], "--lm-eval names no task"),
        (["--lm-eval", "{here}/none.yaml"], "--lm-eval {here}/none.yaml: there is no such file"),
        (["--lm-eval", "choice", "--lm-eval-path", "{here}/none"], "--lm-eval-path {here}/none: there is no such dir"),
        (["--lm-eval", "choice", "--limit", "0"], "--limit is 0: give 1 or more"),
        (["--lm-eval", "choice", "--lanes", "0"], "--lanes is 0: give 1 or more"),
        (["--lm-eval", "choice", "--lengths", "9"], "--lengths is for tasks: give --tasks"),
        (["--lm-eval", "choice", "--max-segments", "9"], "--max-segments is for a data set: give --limit"),
        (["--lm-eval", "choice", "--out", "{here}/data.jsonl"], "is a file: name a directory"),
        (["--data", "set", "--limit", "9"], "--limit is for tasks of lm-evaluation-harness: give --lm-eval"),
        (["--tasks", "copy", "--limit", "9"], "--limit is for tasks of lm-evaluation-harness: give --lm-eval"),
        (["--lm-eval", "a", "--tasks", "copy"], "not allowed with argument"),
    ],
)
def test_a_wrong_option_is_one_line(
    words: list[str], said: str, models: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("{here}", str(here)) for word in words]
    if "--lm-eval" in words and "--lm-eval-path" not in words:
        given += ["--lm-eval-path", str(here / "tasks")]
    if "--data" in words or "copy" in words:
        given = given[:4]
    before = sorted(here.rglob("*"))
    try:
        assert main(["evaluate", str(models["memformer"]), *given, *DEVICE]) == 2
    except SystemExit as end:  # argparse's own
        assert end.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said.replace("{here}", str(here)) in error
    assert sorted(here.rglob("*")) == before


CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
}
WRITE: dict[str, Any] = {"output_type": "generate_until", "doc_to_text": "question", "doc_to_target": "story"}


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({**CHOICE, "doc_to_choices": "x"}, 1, "cannot be loaded (TypeError: .*unexpected keyword argument 'doc_to_ch"),
        ({**CHOICE, "doc_to_text": "{{quest}}"}, 1, "cannot be loaded (UndefinedError: 'quest' is undefined"),
        ({**CHOICE, "doc_to_text": "{{cycler.__init__}}"}, 1, "cannot be loaded (SecurityError: access to attribute"),
        ({**CHOICE, "test_split": "train"}, 1, "cannot be loaded (KeyError: 'train'"),
        ({**CHOICE, "dataset_path": "allenai/ai2_arc"}, 2, "dataset_path is 'allenai/ai2_arc', and files that are"),
        ({**CHOICE, "dataset_path": "pandas"}, 2, "dataset_path is 'pandas', and files that are here are read by csv"),
        (
            {**CHOICE, "dataset_kwargs": {"data_files": ["hf://nobody/nothing/data.json"]}},
            2,
            "the data are at hf://nobody/nothing/data.json: give --lm-eval-download",
        ),
        ({**CHOICE, "dataset_kwargs": {"data_files": "/none.jsonl"}}, 1, "FileNotFoundError: Unable to find '/none"),
        ({**CHOICE, "metric_list": ["accuracy"]}, 2, "does not know the metric 'accuracy': where it is of Hugging"),
        ({**CHOICE, "use_prompt": "promptsource:x"}, 2, "use_prompt reads files and code of others: give --lm-eval-tr"),
        (
            {**CHOICE, "dataset_kwargs": {"cache_dir": "/"}},
            2,
            "cache_dir says where files are written: give --lm-eval-tr",
        ),
        ({**CHOICE, "unsafe_code": True}, 2, "runs code that the model writes: give --lm-eval-trust to let it"),
        ({**CHOICE, "include": "none.yaml"}, 2, "none.yaml: cannot be read (No such file or directory): mend what"),
        ({**WRITE, "generation_kwargs": {"num_beams": 3}}, 2, "generation_kwargs has num_beams: 3, which is not built"),
    ],
)
def test_a_wrong_task_is_one_line(
    settings: dict[str, Any], code: int, said: str, models: dict[str, Path], here: Path, capsys: Any
) -> None:
    settings = {"metric_list": ["exact_match"], **settings} if "generation_kwargs" in settings else settings
    write_task(here, "wrong", **settings)
    refused(models, here, capsys, "wrong", code, said)


def refused(models: dict[str, Path], here: Path, capsys: Any, name: str, code: int, said: str, *words: str) -> None:
    given = ["--lm-eval", name, "--lm-eval-path", str(here / "tasks"), "--out", str(here / "out"), *words]
    assert main(["evaluate", str(models["memformer"]), *given, *DEVICE]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(re.escape(said).replace(r"\.\*", ".*"), error), error
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task: [\n", "line 2: is not YAML ("),
        ("task: \x00\n", "is not YAML ("),
        ("? !function os.system\n: x\n", "runs Python code (!function os.system): give --lm-eval-trust if you trust"),
        ("a: !!set {? !function os.system}\n", "runs Python code (!function os.system)"),
        ("a: !!python/name:os.system\n", "is not YAML (could not determine a constructor"),
        ('include: "a\\0b"\n', "cannot be read (embedded null byte): mend what names it"),
        ("include: [{inside}]\n", "wanted.yaml: runs Python code (!function os.system)"),
    ],
)
def test_a_file_that_is_damaged_or_wants_to_run_code_is_refused(
    content: str, said: str, models: dict[str, Path], here: Path, capsys: Any
) -> None:
    (here / "wanted.yaml").write_text("doc_to_text: !function os.system\n")
    (here / "tasks" / "wrong.yaml").write_text(content.replace("{inside}", str(here / "wanted.yaml")))
    refused(models, here, capsys, "choice", 2, said)


def test_what_a_link_includes_is_looked_at_where_the_harness_takes_it_from(
    models: dict[str, Path], here: Path, capsys: Any
) -> None:
    (here / "real").mkdir()
    (here / "real" / "task.txt").write_text("include: base.txt\n")
    (here / "real" / "base.txt").write_text("doc_to_text: !function os.system\n")
    (here / "tasks" / "base.txt").write_text("task: harmless\n")
    (here / "tasks" / "linked.yaml").symlink_to(here / "real" / "task.txt")
    refused(models, here, capsys, "choice", 2, "base.txt: runs Python code (!function os.system)")


def test_code_that_no_check_has_seen_is_not_run(here: Path) -> None:
    """The second fence: what the harness loads while it is contained."""
    from lm_eval.tasks import _yaml_loader

    from memformer.inference.lm_eval_tasks import _contained

    file = here / "tasks" / "late.yaml"
    file.write_text("doc_to_text: !function os.getcwd\n")
    with _contained(trust=False), pytest.raises(ValueError, match=r"a file there runs Python code \(os.getcwd\)"):
        _yaml_loader.load_yaml(file)
    with _contained(trust=True):
        assert _yaml_loader.load_yaml(file)["doc_to_text"] is os.getcwd


def test_names_of_names_of_names_are_looked_at_once(here: Path) -> None:
    file = here / "bomb.yaml"
    lines = ["a0: &a0 {metric: acc}", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    file.write_text("\n".join([*lines, "self: &self {again: *self}", "task: bomb"]))
    assert check_files([file], trust=False, download=False) == {"bomb": {file.resolve()}}


def test_a_name_of_several_tasks_is_refused(models: dict[str, Path], here: Path, capsys: Any) -> None:
    (here / "tasks" / "deeper").mkdir()
    shutil.copy(here / "tasks" / "choice.yaml", here / "tasks" / "deeper" / "again.yaml")
    refused(models, here, capsys, "choice", 2, "--lm-eval choice: is the task of several files (")


def test_code_runs_where_it_is_trusted_and_nowhere_else(models: dict[str, Path], here: Path, capsys: Any) -> None:
    file = write_task(here, "coded", **{**CHOICE, "doc_to_text": "FUNCTION"})
    file.write_text(file.read_text().replace("FUNCTION", "!function beside.text"))
    ran = here / "ran"
    (here / "tasks" / "beside.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\ndef text(document):\n    return document['story']\n"
    )
    words = ["evaluate", str(models["memformer"]), "--lm-eval-path", str(here / "tasks"), *DEVICE, "--json"]
    refused(models, here, capsys, "coded", 2, "coded.yaml: runs Python code (!function")
    assert not ran.exists()
    assert main([*words, "--lm-eval", "coded", "--lm-eval-trust", "--limit", "1"]) == 0
    assert ran.exists() and json.loads(capsys.readouterr().out)["results"]["coded"]["sample_len"] == 1


def test_without_a_network_data_from_elsewhere_are_one_line(
    models: dict[str, Path], here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else it tries again for 24 seconds
    (here / "tasks" / "group.yaml").unlink()
    write_task(here, "far", **{**CHOICE, "dataset_path": "nobody/nothing", "dataset_kwargs": None})
    refused(models, here, capsys, "far", 1, "--lm-eval far: cannot be loaded (", "--lm-eval-download")


def test_without_the_harness_there_is_one_line(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else found(name, *more)
    )
    assert main(["evaluate", str(models["memformer"]), "--lm-eval", "choice"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'memformer-train[lm-eval]'" in error


def test_the_page_s_example_runs(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").partition("## Tasks of lm-evaluation")[2]
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    for kind, name in (("yaml", "capitals.yaml"), ("json", "capitals.jsonl")):
        (block,) = re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        Path("tasks", name).write_text(block)
    (line,) = re.findall(r"^    memformer evaluate \S+ (--lm-eval capitals .*)$", page, re.MULTILINE)
    assert main(["evaluate", str(models["memformer"]), *line.split(), "--json", *DEVICE]) == 0
    assert json.loads(capsys.readouterr().out)["n-samples"] == {"capitals": {"original": 1, "effective": 1}}
