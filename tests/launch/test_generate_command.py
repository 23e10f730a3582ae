# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer generate` and `evaluate` on what users give them: bytes that are no text, documents read once, addresses.

Covers: launch/commands/generate.py, launch/commands/evaluate.py, launch/models.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from tests.commands import run_command
from tests.data_pipeline.faulty_server import serving
from tests.workshop import make_workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def address(workshop: Path) -> Iterator[str]:
    """Where the workshop is served."""
    with serving(workshop) as server:
        yield server.address


def test_a_prompt_that_is_no_utf_8_is_one_line(workshop: Path) -> None:
    (workshop / "prompt.txt").write_bytes(b"two lines,\nthe second caf\xe9\n")
    for words, place in (
        (["--prompt", "caf\udce9"], "--prompt: is not UTF-8 text (byte 0xe9 in line 1)"),
        (["--prompt-file", "prompt.txt"], "--prompt-file prompt.txt: is not UTF-8 text (byte 0xe9 in line 2)"),
        (["--prompt-file", "none.txt"], "--prompt-file none.txt: cannot be read (No such file or directory)"),
        (["--prompt", "a", "--seed", "9" * 30], "argument --seed: is '999999999999999999999999999999': give a whole n"),
        (["--prompt", "a", "--temperature", "inf"], "argument --temperature: is 'inf': give a number"),
    ):
        done = run_command("generate", "model", *words, "--max-new-tokens", "1", folder=workshop)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"memformer generate: error: {place}") and done.stderr.count("\n") == 1


def test_a_prompt_in_any_language_is_continued_on_any_terminal(workshop: Path) -> None:
    words = ["generate", "model", "--prompt", "café", "--max-new-tokens", "2", "--json"]
    done = run_command(*words, environment={"PYTHONIOENCODING": "ascii"}, folder=workshop)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == len("café".encode())


def told(workshop: Path, *words: str) -> dict[str, Any]:
    """What the command answers, greedily."""
    done = run_command("generate", "model", *words, "--temperature", "0", "--json", folder=workshop)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_document_read_once_answers_many_prompts(workshop: Path) -> None:
    """Each as if the document were read before it anew; several side by side, also with a prompt that comes by file."""
    text = "She walked on over the hill and thought of nothing. " * 9
    (workshop / "long.txt").write_text(text)
    (workshop / "question.txt").write_text("And then?")
    read = told(workshop, "--prompt-file", "long.txt", "--save-state", "state", "--max-new-tokens", "0")
    assert (read["prompt_tokens"], read["new_tokens"], read["text"]) == (len(text), 0, "")
    questions = ["Who?", "And then?"]
    anew = [told(workshop, "--prompt", text + each, "--max-new-tokens", "40") for each in questions]
    for words, expected in (
        (["--load-state", "state", "--prompt", "Who?", "--prompt-file", "question.txt"], anew),
        (["--prompt", text + "Who?", "--prompt", text + "And then?"], anew),
        (["--load-state", "state", "--prompt", "And then?"], anew[1:]),
    ):
        found = told(workshop, *words, "--max-new-tokens", "40")
        texts = [each["text"] for each in found.get("prompts", [found])]
        assert texts == [each["text"] for each in expected] and all(texts)


def test_what_was_written_is_part_of_the_state_and_of_each_prompt_its_own(workshop: Path) -> None:
    two = ["--prompt", "One.", "--prompt", "Another."]
    whole = told(workshop, *two, "--max-new-tokens", "50")["prompts"]
    begun = told(workshop, *two, "--max-new-tokens", "20", "--save-state", "begun")["prompts"]
    rest = told(workshop, "--load-state", "begun", "--max-new-tokens", "30")["prompts"]
    assert [a["text"] + b["text"] for a, b in zip(begun, rest, strict=True)] == [each["text"] for each in whole]
    shown = run_command("generate", "model", *two, "--max-new-tokens", "3", "--temperature", "0", folder=workshop)
    texts = [each["text"] for each in told(workshop, *two, "--max-new-tokens", "3")["prompts"]]
    assert shown.stdout.endswith(f"--- prompt 1\n{texts[0]}\n--- prompt 2\n{texts[1]}\n")


def test_states_that_do_not_fit_are_one_line_and_leave_nothing(workshop: Path) -> None:
    told(workshop, "--prompt", "a", "--prompt", "b", "--save-state", "pair", "--max-new-tokens", "0")
    before = sorted(each.name for each in workshop.iterdir())
    for words, line in (
        ([], "there is nothing to continue: give --prompt, --prompt-file or --load-state"),
        (["--prompt-file", "-", "--prompt-file", "-"], "--prompt-file - is given twice: standard input is read once"),
        (["--prompt", "a", "--save-state", "pair"], "pair: exists: choose another file, or remove it"),
        (["--prompt", "a", "--save-state", "no/pair"], "no/pair: there is no directory no: make it, or choose another"),
        (["--load-state", "none"], "none: is no file: give one that --save-state has written"),
        (
            ["--load-state", "config.yaml", "--save-state", "new"],
            "config.yaml: is no state of a reader, or a part of one",
        ),
        (["--load-state", "pair", "--dtype", "bf16"], "pair: its weights is "),
        (
            ["--load-state", "pair", "--prompt", "a"],
            "--load-state pair: is of 2 documents, and there are 1 prompts: giv",
        ),
    ):
        done = run_command("generate", "model", *words, "--max-new-tokens", "1", folder=workshop)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith(f"memformer generate: error: {line}")
    assert sorted(each.name for each in workshop.iterdir()) == before


def test_the_last_part_of_documents_is_scored_alone(workshop: Path) -> None:
    words = ["evaluate", "model", "--data", "data", "--json"]
    whole, part = (
        json.loads(run_command(*words, *more, folder=workshop).stdout)["with_memory"]
        for more in ([], ["--from-token", "64"])
    )
    rows = [row for row in whole["by_position"] if row["from"] >= 64]
    assert [(row["from"], row["tokens"]) for row in part["by_position"]] == [(r["from"], r["tokens"]) for r in rows]
    assert [row["loss"] for row in part["by_position"]] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    for wrong, line in ((-1, "is -1: give 0 or more"), (10**9, "is 1000000000, and the longest document of ")):
        done = run_command(*words, "--from-token", str(wrong), folder=workshop)
        assert done.returncode == 2 and f"error: --from-token {line}" in done.stderr and done.stderr.count("\n") == 1


def test_held_out_data_at_an_address_is_scored_as_a_copy_of_it(workshop: Path, address: str) -> None:
    cache = ["--cache-dir", str(workshop / "cache")]
    scores = []
    for data in ("data", f"{address}/data", f"{address}/data/validation"):
        done = run_command("evaluate", "model", "--data", data, "--json", *cache, folder=workshop)
        assert done.returncode == 0, done.stderr
        scores.append(json.loads(done.stdout)["with_memory"])
    assert scores[0] == scores[1] == scores[2]
    done = run_command("evaluate", "model", "--data", f"{address}/nothing", *cache, folder=workshop)
    assert done.returncode == 2 and f"{address}/nothing" in done.stderr and done.stderr.count("\n") == 1


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        f"generate {LONG} --prompt x",
        f"evaluate {LONG} --tasks copy",
        f"inspect-memory {LONG} --text-file {LONG} --out out",
        f"train {LONG}",
        f"train {LONG}.yaml",
        f"plan {LONG}.yaml",
        f"launch local {LONG}.yaml --nproc 2",
        f"export {LONG} --out out",
        f"checkpoint list {LONG}",
        f"status {LONG}",
        f"data inspect {LONG}",
        f"data build {LONG} --out out",
        f"data build README.md --out {LONG}",
        f"data adopt {LONG} --tokenizer bytes",
        f"data synthesise copy --lengths 60 --documents 1 --out {LONG}",
    ],
    ids=lambda words: words.replace(LONG, "LONG"),
)
def test_a_path_that_no_file_system_takes_is_one_line(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("some text")
    assert main(words.split()) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
