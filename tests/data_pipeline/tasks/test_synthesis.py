# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`data synthesise`: an ordinary data set of the documents, with the same bytes every time, and nothing else left.

Covers: launch/commands/data_synthesise.py
"""

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline import DocumentIndex, ShardStore, UserError, open_data
from data_pipeline.tasks import Texts, parse_tasks
from data_pipeline.tasks.synthesis import documents_of, record_of, synthesise
from data_pipeline.verify import verify_dataset
from launch.cli import main


def test_a_data_set_holds_the_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["needle:digits=1,passkey", "--lengths", "200,150", "--documents", "12", "--json"]
    assert main(["data", "synthesise", *words, "--out", str(tmp_path / "set")]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["documents"] == 12 and sorted(file.name for file in tmp_path.iterdir()) == ["set"]
    index = open_data(tmp_path / "set")
    assert isinstance(index, DocumentIndex)
    assert verify_dataset(index) == []
    tasks = parse_tasks("needle:digits=1,passkey")
    made = list(documents_of(tasks, Texts(), [150, 200], None, 12, 0, len))
    with contextlib.closing(ShardStore(index)) as store:
        stored = [store.read(document, 0, int(index.lengths[document])) for document in range(12)]
    assert [bytes(tokens.astype("uint8")).decode() for tokens in stored] == [each.text for each in made]
    answers = sum(place.end - place.start for each in made for place in each.answers)
    assert index.counted_tokens == answers, "answers alone count"
    assert Counter(each.name.rpartition("-any-")[0] for each in made) == {
        f"{task}-{length}": 3 for task in ("needle:digits=1", "passkey") for length in (150, 200)
    }
    assert main(["data", "synthesise", *words, "--out", str(tmp_path / "again")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fingerprint"] == facts["fingerprint"]


def test_a_record_marks_its_answers() -> None:
    (document,) = documents_of(parse_tasks("recall:queries=3"), None, [0], [0.5], 1, 0, len)
    record = record_of(document)
    assert len(record["loss_weights"]) == 3
    for start, end, weight in record["loss_weights"]:
        assert weight == 1 and record["text"][start] == " " and record["text"][start + 2 : end] == "."
        assert record["text"][:start].endswith("?")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["copy", "--lengths", "100", "--documents", "0"], "--documents is 0: give 1 or more"),
        (["copy", "--lengths", "100", "--documents", "2", "--seed", "-1"], "--seed is -1: give 0 or more"),
        (["copy", "--lengths", "10", "--documents", "2"], "copy: a document needs 38 tokens, but --lengths has 10"),
        (
            ["copy", "--lengths", "100", "--documents", "2", "--tokenizer", "train-bpe:300"],
            "lengths are counted with it",
        ),
        (["copies", "--lengths", "100", "--documents", "2"], "there is no task 'copies'"),
        (["copy", "--lengths", "100", "--documents", "2", "--text", "/nowhere"], "/nowhere"),
        (["copy", "--lengths", "100", "--documents", "2", "--validation-fraction", "2"], "validation_fraction is 2"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "synthesise", *words, "--out", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    copy = parse_tasks("copy")
    synthesise(copy, tmp_path / "set", texts=None, lengths=[0], documents=3)
    with pytest.raises(UserError, match="holds a data set already"):
        synthesise(copy, tmp_path / "set", texts=None, lengths=[0], documents=4)
    report = synthesise(copy, tmp_path / "set", texts=None, lengths=[0], documents=4, overwrite=True)
    assert report.manifests[tmp_path / "set"].documents == 4
