# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which part of the project may import which: read from the imports themselves, those inside functions included.

`launch -> memformer -> data_pipeline`; within `memformer`, a room imports rooms to its left only. A room that has
another one in its own group may not import that either.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = (
    ("replay", "processes"),
    ("models",),
    ("config",),
    ("run",),
    ("parallel", "inference"),
    ("engine",),
    ("checkpoints", "planning"),
    ("guards",),
    ("training",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
FACES = "data_pipeline.faces"
"""How packages show their names: a module of the standard library alone."""

TORCH_ALONE = {"replay": {"torch"}, "models": {"torch", "safetensors"}}
"""Rooms whose modules need few packages, and which (safetensors: to load an export)."""
BACKBONE = "memformer/models/backbone"
"""The one family whose modules are those of another package; it is imported where such a model is built, not before."""
HUB = "memformer/models/hub"
"""Sources of the code that an export has for transformers; this project imports none of those that need it."""


def imports(path: Path, text: str | None = None) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file (or a text in its place) imports."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if text is None else text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                below = ROOT.joinpath(*module.split("."), f"{alias.name}.py")
                yield node.lineno, f"{module}.{alias.name}" if below.exists() else module


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has moved"
    return found


def room_of(module: str) -> str:
    """The room of a module `memformer.ROOM...`; empty for `memformer` itself."""
    return module.split(".")[1] if "." in module else ""


def violations(path: Path, text: str | None = None) -> list[str]:
    """What a file of `memformer` (or a text in its place) imports against the order, one line each."""
    own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = []
    for line, module in imports(path, text):
        if module.partition(".")[0] != "memformer" or own not in LEVEL:
            continue
        there = room_of(module)
        if there == own:
            continue
        if not there or LEVEL[there] >= LEVEL[own]:
            found.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {module}")
    return found


def test_every_room_is_in_the_order() -> None:
    folders = {each.name for each in (ROOT / "memformer").iterdir() if (each / "__init__.py").exists()}
    assert folders == set(LEVEL)
    assert len(LEVEL) == 12
    assert [each.name for each in (ROOT / "memformer").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("room", LEVEL)
def test_a_room_imports_only_rooms_to_its_left(room: str) -> None:
    assert [line for path in files(f"memformer/{room}") for line in violations(path)] == []


@pytest.mark.parametrize(
    ("package", "forbidden"), [("data_pipeline", {"memformer", "launch"}), ("memformer", {"launch"})]
)
def test_packages_import_one_way(package: str, forbidden: set[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in files(package)
        for line, module in imports(path)
        if module.partition(".")[0] in forbidden | {"tests", "benchmarks"}
    ]
    assert found == []


@pytest.mark.parametrize("room", TORCH_ALONE)
def test_replay_and_models_need_torch_alone(room: str) -> None:
    for path in files(f"memformer/{room}"):
        found = {
            module.partition(".")[0]
            for _, module in imports(path)
            if module.partition(".")[0] not in sys.stdlib_module_names | {"memformer"} and module != FACES
        }
        of_a_family = {"transformers"} if any(path.is_relative_to(ROOT / each) for each in (BACKBONE, HUB)) else set()
        assert found <= TORCH_ALONE[room] | of_a_family, path


def test_the_backbones_package_is_imported_when_one_is_built_and_not_before() -> None:
    """At the top of no module: a configuration is refused, and another family trained, without it."""
    for path in files(BACKBONE):
        top = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in top if (node.module or "").startswith("transformers")], path


def test_nothing_outside_the_models_knows_a_family() -> None:
    """Neither its configuration nor its modules; `from memformer import Memformer` is for users."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for package in ("memformer", "launch")
        for path in files(package)
        for line, module in imports(path)
        if module.startswith(("memformer.models.memformer", "memformer.models.backbone"))
    ]
    ours = "memformer/models/"
    assert [line for line in found if not line.startswith((ours, "memformer/__init__.py:"))] == []


@pytest.mark.parametrize("package", ["data_pipeline", "memformer", "launch"])
def test_no_circle_of_modules(package: str) -> None:
    """Not even one that type checkers alone walk, or one that is hidden in functions."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files(package)}
    # A package's face names everything inside: it is a way in, not a dependency.
    edges = {
        name: {each for _, each in imports(path) if each in modules and each != name and not is_package(modules[each])}
        for name, path in modules.items()
        if not is_package(path)
    }
    done: set[str] = set()
    for start in edges:
        assert (circle := find_circle(start, edges, [], done)) is None, " -> ".join(circle or [])


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def find_circle(at: str, edges: dict[str, set[str]], path: list[str], done: set[str]) -> list[str] | None:
    if at in path:
        return [*path[path.index(at) :], at]
    if at in done:
        return None
    for target in sorted(edges[at]):
        if circle := find_circle(target, edges, [*path, at], done):
            return circle
    done.add(at)
    return None


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from memformer.training.trainer import train\n",
        "from memformer import engine\n",
        "from memformer import load_model\n",
        "from ..config import schema\n",
        "import memformer.guards.watchdog\n",
    ],
)
def test_the_check_sees_what_it_should(text: str) -> None:
    """An import to the right, in a function, from the package or relative, is found."""
    assert len(violations(ROOT / "memformer" / "replay" / "invented.py", text)) == 1


def test_a_circle_is_found() -> None:
    assert find_circle("a", {"a": {"b"}, "b": {"c"}, "c": {"b"}}, [], set()) == ["b", "c", "b"]
