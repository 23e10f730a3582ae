# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer data build|inspect|trace` as a user meets them: output, JSON, exit codes, one-line errors.

Covers: launch/commands/data.py, launch/commands/data_adopt.py
"""

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DocumentIndex, SegmentStream, trace_rows
from launch.cli import main
from tests import ROOT
from tests.data_pipeline.faulty_server import serving


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{i} " + "word " * (7 * i), "id": f"doc-{i}"}) for i in range(12)))
    return file


@pytest.fixture
def dataset(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["data", "build", str(source), "--out", str(tmp_path / "set")]) == 0
    capsys.readouterr()
    return tmp_path / "set"


def trace(capsys: pytest.CaptureFixture[str], *options: object) -> list[dict[str, Any]]:
    shape = [*options, *([] if "--lanes" in options else ["--lanes", 3]), "--segment-length", 16, "--num-segments", 2]
    assert main(["data", "trace", *map(str, shape)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def without_rank(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "rank"} for row in rows]


def test_build_reports_what_it_wrote(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tokenizer", "train-bpe:300", "--validation-fraction", "0.3", "--workers", "2", "--json"]
    assert main(["data", "build", str(source), "--out", str(tmp_path / "set"), *options]) == 0
    output = capsys.readouterr()
    assert "\r" not in output.err  # no progress where nobody watches
    lines, result = output.err.splitlines(), json.loads(output.out)
    train, validation = (DocumentIndex.load(tmp_path / "set" / split) for split in ("train", "validation"))
    assert result["documents"] == 12 == len(train) + len(validation)
    assert result["splits"]["validation"]["tokens"] == validation.num_tokens
    assert result["splits"]["train"]["fingerprint"] == train.fingerprint
    assert result["vocab_size"] == train.vocab_size < 300
    assert lines[0] == "sources: 1 file as JSON, a document a record (source.jsonl)"
    assert f"{len(train)} documents" in lines[1] and "300 asked for" in lines[-1]
    assert result["sources"] == {"files": 1, "kinds": {"json": 1}, "left_out": 0, "left_out_files": []}
    assert result["bad_records"] == 0


def test_build_names_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.ndjson").write_text('{"body": "one", "name": "first"}\n{"body": null}\n{"name": "x"}\n')
    (folder / "notes.csv").write_text("a,b")
    words = ["data", "build", str(folder), "--out", str(tmp_path / "set"), "--text-key", "body"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{folder}/a.ndjson line 2: needs a string" in error
    assert main([*words, "--on-bad-record", "skip", "--json"]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[1] == "left out: 1 of kinds that are not read (notes.csv)"
    assert lines[3].startswith(
        '2 bad records left out: a.ndjson line 2: needs a string under "body", not null; a.ndjson'
    )
    result = json.loads(said.out)
    assert result["bad_records"] == len(result["bad_record_places"]) == 2
    assert main(["data", "inspect", str(tmp_path / "set"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["bad_records"] == 2 and "2 records that could not be read" in said.err
    assert main([*words, "--id-key", "name", "--on-bad-record", "skip", "--overwrite"]) == 0
    assert DocumentIndex.load(tmp_path / "set").name(0) == "first"


def test_inspect_tells_what_counts_in_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "who? me", "answer": [[5, 7, 0.5]]}\n')
    words = ["data", "build", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "set"), "--loss-weights-key"]
    assert main([*words, "loss_weights"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and '--loss-weights-key is "loss_weights", which no record has; name the key' in error
    assert main([*words, "answer"]) == 0
    assert "not read" not in capsys.readouterr().out
    assert main(["data", "inspect", str(tmp_path / "set"), "--verify", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["counted_tokens"] == 1.0 and json.loads(said.out)["verified"]
    assert "counted    1.0 tokens by their loss weights (14.29%)" in said.err
    (tmp_path / "b.jsonl").write_text('{"text": "who? me", "loss_weights": [[5, 7, 1]]}\n')
    assert main(["data", "build", str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "plain")]) == 0
    assert '1 record(s) have "loss_weights", which was not read: all their tokens count' in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_a_terminal_cannot_show_are_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    (tmp_path / "\u00e9").mkdir()
    (tmp_path / "\u00e9" / "\udcff.txt").write_text("x" * 40)  # a name whose bytes are no UTF-8
    out, shape = str(tmp_path / "\u00f6"), "--lanes 1 --segment-length 8 --num-segments 1 --steps 1".split()
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding=encoding))
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace"))
    for words in (
        ["build", str(tmp_path / "\u00e9"), "--out", out, "--json"],
        ["build", str(tmp_path / "\u00e9" / "\udcff.txt"), "--out", out + "\udcfe"],
        ["inspect", out, "--verify", "--json"],
        ["trace", out, *shape],
    ):
        assert main(["data", *words]) == 0
    for words in (["inspect", out + "none"], ["build", "\u00e9", "--out", out], ["adopt", out, "--tokenizer", "bytes"]):
        assert main(["data", *words]) == 2
    sys.stdout.flush()
    assert ("\u00f6" if encoding == "utf-8" else "\\xf6") in shown.getvalue().decode(encoding)


def test_the_job_array_tells_sources_apart_by_their_whole_paths(tmp_path: Path) -> None:
    """slurm/data-build.sbatch with a stand-in for srun: a data set for each source, and none built twice."""
    sources = [
        "en/part-0.jsonl",
        "de/part-0.jsonl",
        "v1.0.txt",
        "v1.1.txt",
        "en+part-0.jsonl",
        str(tmp_path / "v1.0.txt"),
        "-dash.txt",
        *(f"{'/'.join(['a' * 60] * 4)}/{number}.txt" for number in "12"),
    ]
    for number, name in enumerate(sources):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(json.dumps({"text": f"source {number}"}))
    (tmp_path / "list").write_text("\r\n".join(sources))
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "memformer").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m launch.cli "$@"\n')
    for name in ("srun", "memformer"):
        (tmp_path / name).chmod(0o755)
    given = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MEMFORMER": str(tmp_path / "memformer")}

    def task(number: int) -> str:
        given["SLURM_ARRAY_TASK_ID"] = str(number)
        words = ["bash", str(ROOT / "slurm/data-build.sbatch"), "list", "out"]
        done = subprocess.run(words, cwd=tmp_path, env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for number in range(1, len(sources) + 1):
        assert "1 documents" in task(number)
    assert "out/en+part-0.jsonl is complete" in task(1)
    built = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(built) == len(sources) and {"en+part-0.jsonl", "en%2Bpart-0.jsonl", "v1.0.txt", "v1.1.txt"} < set(built)


def test_build_help_tells_true_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("build", "adopt", "inspect", "trace"):
        with pytest.raises(SystemExit) as ended:
            main(["data", command, "--help"])
        assert ended.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "None" not in text and "SUPPRESS" not in text
        if command == "build":
            assert "shard, in 10^6 bytes (default: 128.0)" in text and "(default: bytes)" in text


def test_inspect_shows_documents_tokens_and_lengths(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(dataset), "--segment-length", "64", "--verify", "--json"]) == 0
    said = capsys.readouterr()
    facts, index = json.loads(said.out), DocumentIndex.load(dataset)
    assert (facts["documents"], facts["tokens"], facts["verified"]) == (12, index.num_tokens, True)
    assert facts["padding_share"] == pytest.approx(index.padding_share(64), abs=1e-6)
    assert sum(bucket["documents"] for bucket in facts["histogram"]) == 12
    for bucket in facts["histogram"]:
        within = (index.lengths >= bucket["from"]) & (index.lengths <= bucket["to"])
        assert bucket["documents"] == within.sum()
    assert "every size and checksum is as recorded" in said.err


def test_inspect_takes_a_directory_of_splits(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "set")
    assert main(["data", "build", str(source), "--out", out, "--validation-fraction", "0.2"]) == 0
    assert main(["data", "inspect", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["documents"] == sum(split["documents"] for split in facts["splits"].values()) == 12
    assert "verified" not in facts
    assert (
        main(["data", "trace", out, *["--lanes", "1", "--segment-length", "1", "--num-segments", "1", "--steps", "1"]])
        == 2
    )
    assert f"{out}/train and {out}/validation" in capsys.readouterr().err


def test_inspect_verify_names_shard_and_document(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = DocumentIndex.load(dataset)
    shard = index.shard_path(0)
    content = bytearray(shard.read_bytes())
    content[int(index.offsets[5])] ^= 1
    shard.write_bytes(content)
    assert main(["data", "inspect", str(dataset)]) == 0
    assert main(["data", "inspect", str(dataset), "--verify", "--json"]) == 1
    output = capsys.readouterr()
    assert f"{shard}: document 5 (doc-5) does not have its checksum" in output.err
    facts = json.loads(output.out.splitlines()[-1])
    assert facts["verified"] is False and [fault["document"] for fault in facts["faults"]] == [None, 5]


@pytest.mark.parametrize("kept", [None, 0, 100])
def test_inspect_compares_sizes_always(
    dataset: Path, kept: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = DocumentIndex.load(dataset).shard_path(0)
    if kept is None:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:kept])
    problem = "cannot be read" if kept is None else f"has {kept} bytes, not"
    with serving(dataset.parent) as server:
        for name in (str(dataset), f"{server.address}/set"):
            assert main(["data", "inspect", name, "--json", "--cache-dir", str(tmp_path / "cache")]) == 1
            output = capsys.readouterr()
            assert f"{name}/{shard.name}: {problem}" in output.err and "restore the files named" in output.err
            facts = json.loads(output.out.splitlines()[-1])
            assert [fault["file"] for fault in facts["faults"]] == [shard.name] and "verified" not in facts


def test_inspect_of_an_address_shows_its_splits(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "set")
    assert main(["data", "build", str(source), "--out", out, "--validation-fraction", "0.2"]) == 0
    with serving(tmp_path) as server:
        server.query = "key=s3cr3t"
        address = f"{server.address}/set?{server.query}"
        assert main(["data", "inspect", address, "--json", "--cache-dir", str(tmp_path / "cache")]) == 0
        output = capsys.readouterr().out
    facts = json.loads(output.splitlines()[-1])
    assert facts["path"] == f"{server.address}/set" and set(facts["splits"]) == {"train", "validation"}
    assert "s3cr3t" not in output


def test_tokens_of_others_are_adopted_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids").mkdir()
    np.save(tmp_path / "ids" / "ids.npy", np.array([7, 8, 0, 9, 0, 0], np.int64))
    words = ["data", "adopt", str(tmp_path / "ids"), "--out", str(tmp_path / "set"), "--eos", "0", "--json"]
    assert main([*words, "--vocab-size", "10"]) == 0
    said = capsys.readouterr()
    assert said.err == f"{tmp_path / 'set'}: 3 documents, 6 tokens, 1 shards, ids of 64 bits\n"
    facts = json.loads(said.out)
    assert (facts["path"], facts["tokens"], facts["vocab_size"]) == (str(tmp_path / "set"), 6, 11)
    for more, complaint in (
        (["--vocab-size", "9"], "has id 9, but the vocabulary has only ids 0 to 8"),
        (["--vocab-size", "0"], "holds nothing"),
        (["--vocab-size", "10", "--dtype", "int32"], "--dtype is int32, but"),
    ):
        assert main([*words[:3], "--eos", "0", *more]) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1
        assert [path.name for path in (tmp_path / "ids").iterdir()] == ["ids.npy"]
    for arguments in (words, [*words, "--tokenizer", "bytes", "--vocab-size", "10"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_trace_is_what_streams_deliver(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = trace(capsys, dataset, "--steps", 9, "--world-size", 2, "--seed", 4)
    delivered: dict[int, list[dict[str, Any]]] = {}
    for rank in range(2):
        with SegmentStream(
            dataset, num_lanes=3, segment_length=16, num_segments=2, seed=4, rank=rank, world_size=2
        ) as stream:
            for batch in itertools.islice(stream, 9):
                delivered.setdefault(batch.step + 1, []).extend(trace_rows(batch, rank))
    assert rows == [row for step in sorted(delivered) for row in delivered[step]]
    assert list(rows[0]) == ["step", "rank", "lane", "segment", "epoch", "document", "start", "length", "reset"]
    assert rows[0]["step"] == 1 and rows[-1]["step"] == 9
    assert without_rank(rows) == without_rank(trace(capsys, dataset, "--steps", 9, "--seed", 4))


def test_trace_goes_on_from_a_state(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state.json"
    whole = trace(capsys, dataset, "--steps", 10)
    first = trace(capsys, dataset, "--steps", 4, "--state-out", state)
    rest = trace(capsys, dataset, "--steps", 6, "--state-in", state, "--world-size", 3)
    assert without_rank(whole) == without_rank(first + rest)
    # Another number of lanes: the rest of the two epochs, each token once.
    trace(capsys, dataset, "--steps", 4, "--epochs", 2, "--state-out", state)
    rest = trace(capsys, dataset, "--steps", 10_000, "--epochs", 2, "--state-in", state, "--lanes", 2)
    read: dict[tuple[int, int], int] = {}
    for row in first + rest:
        key = (row["epoch"], row["document"])
        assert read.get(key, 0) == row["start"]
        read[key] = row["start"] + row["length"]
    lengths = DocumentIndex.load(dataset).lengths.tolist()
    assert read == {(epoch, document): n for epoch in range(2) for document, n in enumerate(lengths)}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--lanes", "1", "--world-size", "2"], "--lanes is 1; give 2 or more"),
        (["--num-segments", "0"], "--num-segments is 0"),
        (["--steps", "-1"], "--steps is -1"),
        (["--segment-length", "0"], "segment_length is 0"),
        (["--segment-length", "9" * 18], "give 1,099,511,627,776 or less"),
        (["--lanes", "9" * 12], "num_lanes is 999999999999; give 16,777,216 or less"),
        (["--state-in", "missing.json"], "--state-in missing.json: cannot be read"),
        (["--state-in", "SOURCE"], "not JSON"),
        (["--state-out", "missing/state.json"], "--state-out missing/state.json: cannot be written"),
    ],
)
def test_trace_mistakes_are_one_line(
    dataset: Path, source: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--lanes", "3", "--segment-length", "16", "--num-segments", "2", "--steps", "1"]
    given = [str(source) if option == "SOURCE" else option for option in options]
    assert main(["data", "trace", str(dataset), *shape, *given]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_build_and_inspect_mistakes_are_one_line(
    dataset: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, complaint in (
        (["build", str(source), "--out", str(dataset)], "say --overwrite"),
        (["build", str(tmp_path / "none.txt"), "--out", str(tmp_path / "new")], "no such file"),
        (["inspect", str(tmp_path / "none")], "no data set at"),
        (["inspect", str(dataset), "--segment-length", "0"], "--segment-length is 0"),
        (["inspect", str(dataset), "--segment-length", "9" * 18], "; give 1 to 1,099,511,627,776"),
    ):
        assert main(["data", *arguments]) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1
    for arguments in (["data"], ["data", "mend"], ["data", "build", str(source)]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert main(["data", "build", str(source), "--out", str(dataset), "--overwrite"]) == 0


def test_trace_goes_on_from_a_checkpoint(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = trace(capsys, dataset, "--steps", 4, "--state-out", tmp_path / "state")
    checkpoint = tmp_path / "step-00000004"
    checkpoint.mkdir()
    saved = {"step": 4, "num_lanes": 3, "data": json.loads((tmp_path / "state").read_text())}
    (checkpoint / "state.json").write_text(json.dumps(saved))
    whole = trace(capsys, dataset, "--steps", 9)
    for state in (checkpoint, checkpoint / "state.json"):
        assert first + trace(capsys, dataset, "--steps", 5, "--state-in", state) == whole


def test_mds_is_adopted_and_blended(
    source: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mds"
    assert main(["data", "build", str(source), "--out", str(out), "--format", "mds"]) == 0
    for name in ("manifest.json", "documents.npz", "tokenizer.json"):
        (out / name).unlink()
    assert main(["data", "adopt", str(out), "--tokenizer", "bytes", "--name-column", "name", "--json"]) == 0
    adopted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert adopted["fingerprint"] == DocumentIndex.load(dataset).fingerprint and adopted["vocab_size"] == 257
    assert DocumentIndex.load(out).name(3) == "doc-3"
    blend = trace(capsys, dataset, out, "--weights", "1", "3", "--steps", "60")
    tokens = [sum(row["length"] for row in blend if (row["document"] >= 12) == second) for second in (False, True)]
    assert 2 < tokens[1] / tokens[0] < 4.5
    shape = "--lanes 1 --steps 1 --segment-length 4 --num-segments 1".split()
    assert main(["data", "trace", str(dataset), "--weights", "1", "2", *shape]) == 2
    assert "--weights" in capsys.readouterr().err


def test_a_far_data_set_is_inspected_and_traced(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache-dir", str(tmp_path / "cache")]
    with serving(dataset.parent) as server:
        address = f"{server.address}/set"
        assert main(["data", "inspect", address, "--verify", "--json", *cache]) == 0
        said = capsys.readouterr()
        facts = json.loads(said.out)
        assert said.err.startswith(address) and facts["path"] == address and facts["verified"]
        near = trace(capsys, dataset, "--steps", 3)
        shape = "--lanes 3 --segment-length 16 --num-segments 2 --steps 3".split()
        assert main(["data", "trace", address, *shape, *cache]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == near
    assert main(["data", "inspect", "pipe:cat", *cache]) == 2
    assert "allow_pipe" in capsys.readouterr().err
