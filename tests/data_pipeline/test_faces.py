# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Faces: a package shows its names, and imports nothing before one is used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

FACES = sorted(
    ".".join(path.relative_to(ROOT).parent.parts)
    for package in ("data_pipeline", "memformer")
    for path in (ROOT / package).rglob("__init__.py")
    if "face(" in path.read_text(encoding="utf-8")
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a face, whose module counts how often it is imported."""
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "inside.py").write_text("import sys\nsys.imported = getattr(sys, 'imported', 0) + 1\nX = 5\n")
    (tmp_path / "shown" / "__init__.py").write_text(
        "from data_pipeline.faces import face\n__getattr__ = face(__name__, {'X': 'inside', 'Y': 'inside'})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "imported", 0, raising=False)
    return "shown"


def test_a_name_is_imported_when_it_is_used_and_kept(package: str) -> None:
    shown = importlib.import_module(package)
    assert sys.imported == 0  # type: ignore[attr-defined]
    assert shown.X == 5
    assert vars(shown)["X"] == 5
    assert sys.imported == 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="module 'shown' has no attribute 'Z'"):
        _ = shown.Z
    with pytest.raises(AttributeError):
        _ = shown.Y  # the face promises it, its module does not have it


@pytest.mark.parametrize("package", FACES)
def test_a_face_shows_what_type_checkers_see(package: str) -> None:
    """All that it lists, from the places that its imports for type checkers name."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: str(node.module) for node in taken for alias in node.names}
    assert set(module.__all__) == set(seen) - {"TYPE_CHECKING", "face"}
    for name in module.__all__:
        assert getattr(module, name) is getattr(importlib.import_module(seen[name]), name)
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        _ = module.unheard_of


def test_no_face_waits_for_torch() -> None:
    program = f"import sys; [__import__(name) for name in {FACES!r}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
