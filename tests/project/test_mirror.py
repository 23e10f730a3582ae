# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Every module has a test: a file by its name, or one that says in its docstring that it exercises it.

`memformer/run/metrics.py` is tested by `tests/memformer/run/test_metrics.py`, or by a test file whose docstring has a
paragraph `Covers: memformer/run/metrics.py, ...`. Such a file must reach the module: by imports of its own, of what it
imports and so on (a name from a package's face leads to the module that defines it), by a module that a string names
(`python -m launch.cli`, a script beside the module), or by a program in a string.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("data_pipeline", "memformer", "launch")
COVERS = "Covers:"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def named(name: str) -> Path | None:
    """The file of a module of this project, given as `a.b.c`."""
    place = ROOT.joinpath(*name.split("."))
    return next((each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()), None)


MODULES = [
    relative(path)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def file_by_name(module: str) -> Path:
    """The test file by the module's name."""
    path = Path(module)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


def claims(test: Path) -> list[str]:
    """What a test file's docstring says that it covers."""
    text = ast.get_docstring(ast.parse(test.read_text(encoding="utf-8"))) or ""
    found = re.search(rf"^{COVERS}(.*?)(?:\n\s*\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return [each for each in re.split(r"[,\s]+", found[1]) if each] if found else []


@functools.cache
def defined_by(face: Path) -> dict[str, str]:
    """Public name of a package -> the module that its `__init__.py` has it from."""
    tree = ast.parse(face.read_text(encoding="utf-8"))
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: node.module or "" for node in taken for alias in node.names}


def steps(tree: ast.AST, at: Path) -> Iterator[str]:
    """Names of modules that a file leads to."""
    package = list(at.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield f"{module}.{alias.name}" if named(f"{module}.{alias.name}") else from_face(module, alias.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from steps_of_text(node.value, at)


def from_face(module: str, name: str) -> str:
    face = named(module)
    return defined_by(face).get(name, module) if face is not None and face.name == "__init__.py" else module


def steps_of_text(text: str, at: Path) -> Iterator[str]:
    """Of a string: a module's name, the name of a script beside the file, or a program."""
    if re.fullmatch(r"\w+(\.\w+)+", text):
        yield text
        if text.endswith(".py") and (at.parent / text).is_file():
            yield ".".join([*at.relative_to(ROOT).parent.parts, text.removesuffix(".py")])
    elif "import " in text:
        try:
            yield from steps(ast.parse(text), at)
        except SyntaxError:
            return  # prose


@functools.cache
def neighbours(path: Path) -> frozenset[Path]:
    found = map(named, steps(ast.parse(path.read_text(encoding="utf-8")), path))
    # A face that is imported as a whole leads nowhere: its names do.
    return frozenset(each for each in found if each is not None and each.name != "__init__.py")


@functools.cache
def reached(test: Path) -> frozenset[str]:
    """Every module that a test file leads to, however far."""
    seen: set[Path] = set()
    ahead = [test]
    while ahead:
        ahead += neighbours(at := ahead.pop()) - seen
        seen.add(at)
    return frozenset(map(relative, seen))


CLAIMED = {module for test in TESTS for module in claims(test)}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_test(module: str) -> None:
    own = file_by_name(module)
    assert own.is_file() or module in CLAIMED, (
        f"{module} has no test: write {relative(own)}, or name it after `{COVERS}` in the docstring of the test that "
        "exercises it"
    )
    if own.is_file():
        assert module in reached(own), f"{relative(own)} does not import {module}: test it there, or rename the file"


@pytest.mark.parametrize("test", [test for test in TESTS if claims(test)], ids=relative)
def test_what_a_test_says_it_covers_is_there_and_reached(test: Path) -> None:
    for module in claims(test):
        assert module in MODULES, f"{relative(test)} says `{COVERS} {module}`, which is gone: name its new place"
        assert module in reached(test), f"{relative(test)} does not lead to {module}: name it in the test that does"


def test_the_check_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faces, strings and programs lead on; a docstring alone leads nowhere."""
    text = (
        'from memformer.replay import Carry\nRUN = ["-m", "launch.child"]\n'
        'PROGRAM = "import sys; from data_pipeline import load_tokenizer"\n'
    )
    found = {relative(path) for path in map(named, steps(ast.parse(text), ROOT / "tests" / "invented.py")) if path}
    assert found == {"memformer/replay/rollout.py", "launch/child.py", "data_pipeline/tokenizer_choice.py"}
    invented = tmp_path / "test_invented.py"
    invented.write_text('"""Made up.\n\nCovers: launch/cli.py,\nlaunch/child.py\n\nMore words.\n"""\n')
    assert claims(invented) == ["launch/cli.py", "launch/child.py"]
    monkeypatch.setattr("tests.project.test_mirror.ROOT", tmp_path)
    assert reached(invented) == {"test_invented.py"}
