# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The file of code in an export: all that it needs of this project, once, and nothing that imports it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from memformer.models.hub import bundle as bundling
from memformer.models.hub.bundle import Clash, bundle
from tests import ROOT

NAMES = ("memformer_lm", "backbone_lm")


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_alone_and_has_every_name_that_it_uses(name: str, tmp_path: Path) -> None:
    text = bundle(name)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
            first = module.partition(".")[0]
            assert first in sys.stdlib_module_names | {"torch", "safetensors", "transformers"}, module
    (tmp_path / "modeling.py").write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", str(tmp_path / "modeling.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_definitions_are_ours_word_for_word(name: str) -> None:
    """Every class and function of the models' own modules stands in it as it does there."""
    text = bundle(name)
    family = "backbone" if name == "backbone_lm" else "memformer"
    for module in ("model", "reader", "memory"):
        source = (ROOT / "memformer" / "models" / family / f"{module}.py").read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                assert f"{ast.get_source_segment(source, node)}\n" in text, f"{module}: {node.name}"


def invented(root: Path, **modules: str) -> None:
    for name, text in modules.items():
        file = root.joinpath("memformer", "models", *name.split("__")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_imports_of_ours_become_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under other names, from a package's face, of whole modules, in functions, and for type checkers alone."""
    face = "if TYPE_CHECKING:\n    from memformer.models.parts.inner import Inner\n"
    user = (
        '"""Uses.\n\nMore."""\n\nimport math\nfrom typing import TYPE_CHECKING\n\n'
        "from memformer.models import tools\nfrom memformer.models.parts import Inner\n"
        "from memformer.models.tools import (\n    double as twice,\n)\n\n"
        "if TYPE_CHECKING:\n    from memformer.config import Config\n\n"
        "# Why.\ndef all_of(x: 'Config') -> float:\n    from memformer.models.tools import half as divided\n\n"
        "    return tools.half(x) + twice(x) + divided(x) + Inner.value + math.pi\n"
    )
    invented(
        tmp_path,
        hub__user=user,
        tools="def half(x):\n    return x / 2\n\n\ndef double(x):\n    return 2 * x\n",
        parts__inner="class Inner:\n    value = 7\n",
    )
    (tmp_path / "memformer" / "models" / "parts" / "__init__.py").write_text(face)
    monkeypatch.setattr(bundling, "ROOT", tmp_path)
    bundle.cache_clear()
    text = bundle("user")
    bundle.cache_clear()
    space: dict[str, object] = {}
    exec(compile(text, "made", "exec"), space)
    assert space["all_of"](4) == 2 + 8 + 2 + 7 + space["math"].pi  # type: ignore[operator, attr-defined]
    assert "memformer.config" not in text and "# Why." in text and "# Uses." in text


def test_one_name_for_two_things_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = "from memformer.models.other import used\n\n\ndef same():\n    return used()\n"
    invented(tmp_path, hub__user=user, other="def same():\n    return 1\n\n\ndef used():\n    return same()\n")
    monkeypatch.setattr(bundling, "ROOT", tmp_path)
    bundle.cache_clear()
    with pytest.raises(Clash, match=r"user\.py and .*other\.py both define same: rename one"):
        bundle("user")
