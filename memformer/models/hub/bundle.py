# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`bundle`: a module and all of this project that it imports, as one file that needs none of this project.

An export has such a file for transformers' `trust_remote_code`: it computes what we compute because it is the same
code, word for word, with the imports between our modules taken out. So there is one source of the mathematics, the file
needs torch and transformers alone, and a reader of the export sees all that would be run. A package of many files would
do too, but would bury the weights under twenty modules.

Two modules may not define one name differently: that is an error here, found by the tests, not in an export.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "memformer"
_HEAD = '''# Copyright 2026 the Memformer authors. Licensed under the Apache License, Version 2.0.
"""Code of this model for transformers, written by `memformer export` from the modules it was trained with.

It is run by `AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)` and by nothing else: loading the
model with `memformer` reads the weights alone. It needs torch, safetensors and transformers >= 5.24.
"""
'''


class Clash(ValueError):
    """Two modules define one name differently."""


@functools.cache
def bundle(name: str) -> str:
    """The text of one file with everything that `memformer.models.hub.NAME` needs of this project.

    Raises:
        Clash: See there.
    """
    modules = list(_in_order(ROOT / PACKAGE / "models" / "hub" / f"{name}.py", set()))
    plain: set[str] = set()
    imports: dict[str, set[str]] = {}
    defined: dict[str, tuple[str, Path]] = {}
    sections = []
    for path in modules:
        section = _Section(path)
        plain |= section.plain
        for module, names in section.imports:
            imports.setdefault(module, set()).update(names)
        for own, text in section.definitions():
            before, where = defined.setdefault(own, (text, path))
            if before != text:
                raise Clash(f"{path} and {where} both define {own}: rename one")
        sections.append(section.text())
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    return "\n".join([_HEAD, *sorted(plain), *lines, "", *sections])


def _in_order(path: Path, seen: set[Path]) -> Iterator[Path]:
    """A module behind all that it needs."""
    seen.add(path)
    for each in _Section(path).needs():
        if each not in seen:
            yield from _in_order(each, seen)
    yield path


def _file(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


@functools.cache
def _defined_in(face: Path) -> dict[str, str]:
    """Name that a package shows -> the module that it is from."""
    tree = ast.parse(face.read_text(encoding="utf-8"))
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in taken for alias in node.names}


class _Section:
    """What becomes of one module."""

    def __init__(self, path: Path) -> None:
        self.path, self._source = path, path.read_text(encoding="utf-8")
        self._tree = ast.parse(self._source)
        self.plain: set[str] = set()  # import MODULE
        self.imports: list[tuple[str, list[str]]] = []  # from MODULE import NAMES
        self._gone: list[tuple[int, int, str]] = []  # first line, last line, what stands there instead
        self._from: list[tuple[ast.ImportFrom, Path | None]] = []
        for top in list(self._tree.body):
            if isinstance(top, ast.If) and isinstance(top.test, ast.Name) and top.test.id == "TYPE_CHECKING":
                self._gone.append((top.lineno, top.end_lineno or top.lineno, ""))
                self._tree.body.remove(top)
            elif isinstance(top, ast.Import | ast.ImportFrom) and not self._is_ours(top):
                if isinstance(top, ast.Import):
                    self.plain.add(ast.unparse(top))
                else:
                    self.imports.append((top.module or "", [ast.unparse(each) for each in top.names]))
                self._gone.append((top.lineno, top.end_lineno or top.lineno, ""))
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and self._is_ours(node):
                assert isinstance(node, ast.ImportFrom)
                self._take(node)

    @staticmethod
    def _is_ours(node: ast.Import | ast.ImportFrom) -> bool:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return any(name.partition(".")[0] == PACKAGE for name in names)

    def _take(self, node: ast.ImportFrom) -> None:
        """An import of ours goes; a module or a name under another name is put in its place."""
        instead = []
        for alias in node.names:
            module = f"{node.module}.{alias.name}"
            own = alias.asname or alias.name
            if _file(module).is_file():  # a module under its name
                names = sorted(name for name, _ in _Section(_file(module)).definitions())
                instead.append(f"{own} = types.SimpleNamespace({', '.join(f'{name}={name}' for name in names)})")
                self.plain.add("import types")
                self._from.append((node, _file(module)))
                continue
            if own != alias.name:
                instead.append(f"{own} = {alias.name}")
            source = _file(str(node.module))
            if not source.is_file():
                source = _file(_defined_in(source.with_suffix("") / "__init__.py")[alias.name])
            self._from.append((node, source))
        lines = "\n".join(" " * node.col_offset + line for line in instead)
        self._gone.append((node.lineno, node.end_lineno or node.lineno, lines))

    def needs(self) -> list[Path]:
        """Our modules that it imports, in order."""
        return list(dict.fromkeys(path for _, path in self._from if path is not None))

    def definitions(self) -> Iterator[tuple[str, str]]:
        """Name and text of everything that the module defines at its top."""
        for node in self._tree.body:
            text = ast.unparse(node)
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name, text
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    yield from ((name.id, text) for name in ast.walk(target) if isinstance(name, ast.Name))

    def text(self) -> str:
        """The module without its imports; its docstring as a comment."""
        lines = self._source.splitlines()
        gone = list(self._gone)
        first = self._tree.body[0]
        title = f"# {'-' * 100}\n# {self.path.relative_to(ROOT).as_posix()}"
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            words = ast.get_docstring(self._tree) or ""
            title += "".join(f"\n# {line}".rstrip() for line in words.splitlines())
            gone.append((1, first.end_lineno or first.lineno, ""))
        for start, stop, instead in sorted(gone, reverse=True):
            lines[start - 1 : stop] = [instead] if instead else []
        return title + "\n\n" + "\n".join(lines).strip("\n") + "\n\n"
