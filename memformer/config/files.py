# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Where the values of a configuration come from: YAML files that extend each other, and words of a command line.

Values stay as they were written (written.py) until the schema says what is asked for; what they mean, and which are
allowed, is in schema.py.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError
from memformer.config.builtin import PREFIX, located
from memformer.config.places import expanded
from memformer.config.written import Fault, Written, number

_PLAIN = "plain"  # the tag of a scalar without quotes or a tag of its own
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "<<"


class NotYaml(UserError):
    """A text that YAML cannot read."""


class _Composer(yaml.SafeLoader):
    """Reads YAML as far as its nodes, with nothing made of plain scalars."""

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        """The tag of a node that has none."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


def read_values(path: str | os.PathLike[str] | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The values of a YAML file, over those of the files it extends, under the overrides; none is checked.

    Args:
        path: The file, or `builtin:` with the name of one that comes with the package; None: the overrides alone.
        overrides: As `memformer.config.schema.load_config` takes them.

    Returns:
        Dictionaries and lists of `Written`.

    Raises:
        UserError: A file that is missing or no mapping, or a malformed override.
    """
    values = {} if path is None else _read(located(os.fspath(path)), ())
    _merge(values, _parse_overrides(overrides))
    return values


def family_named(path: str | None, overrides: Sequence[str] = ()) -> str | None:
    """The family that a command line names, whether or not its other settings hold; None where it names none.

    Args:
        path: The YAML file, if there is one.
        overrides: As `read_values` takes them.

    Raises:
        UserError: As of `read_values`.
    """
    model = read_values(path, overrides).get("model")
    said = model.get("family") if isinstance(model, dict) else None
    return said.text if isinstance(said, Written) else None


def parse_yaml(text: str, source: str, where: Callable[[int], str]) -> Any:
    """What a YAML text holds: dictionaries, lists and `Written`.

    Args:
        text: The text.
        source: Of its values.
        where: The beginning of an error in a line of it (from 1).

    Raises:
        UserError: It is no YAML, has a key twice, or means something else than plain values.
    """
    try:
        node = yaml.compose(text, Loader=_Composer)
        return None if node is None else _Values(source, where).of(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if error.context_mark is not None and str(error.context).startswith("while scanning"):
            mark = error.context_mark  # a text or a key that is never closed: it is wrong where it begins
        line = text.count("\n") + 1 if mark is None else mark.line + 1
        what = " ".join(filter(None, (error.context, error.problem)))
        if what == "mapping values are not allowed here":
            what = "a colon in a value, which needs quotes then, or a line that begins too far right"
        if "\\t" in what:
            what = "a tab where YAML wants blanks: indent with blanks"
        raise NotYaml(f"{where(line)}: is not YAML ({what})") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{where(line)}: is not YAML (a control character, {error.character:#x}): remove it") from None
    except RecursionError:
        raise UserError(f"{where(1)}: is nested too deeply: a setting is two or three levels deep") from None


class _Dumper(yaml.SafeDumper):
    """Quotes every text that is read as something else, also where YAML 1.1 and `number` differ."""


def _quoted_where_needed(dumper: _Dumper, text: str) -> yaml.Node:
    try:
        as_text = number(text) == text
    except Fault:
        as_text = False
    return dumper.represent_scalar(_TEXT, text, style=None if as_text else "'")


_Dumper.add_representer(str, _quoted_where_needed)


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML that `read_values` reads as the same."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False))


class _Values:
    """Makes values of nodes; what several aliases name is made anew for each, so that they can be changed apart."""

    def __init__(self, source: str, where: Callable[[int], str]) -> None:
        self._source, self._where = source, where
        self._open: set[int] = set()

    def of(self, node: yaml.Node, place: str = "") -> Any:
        """The value of a node; `place`: its dotted name, with a dot at the end."""
        if node.tag not in (_PLAIN, _TEXT, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise self._refusal(node, f"has the tag {node.tag}: leave it out, values need none")
        if isinstance(node, yaml.ScalarNode):
            return Written(node.value, self._source, node.tag != _PLAIN)
        if id(node) in self._open:
            raise self._refusal(node, "an alias stands within what it names: write the values out")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            return [self.of(each, f"{place}{number}.") for number, each in enumerate(node.value)]
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, place: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._refusal(key, "a key is a list or a mapping: write a name")
            name = key.value
            if name in lines:
                first = f"(first in line {lines[name]})"
                raise self._refusal(key, f"{place}{name} is there twice {first}: leave one of the two")
            lines[name] = key.start_mark.line + 1
            if name == _MERGE and key.tag == _PLAIN:
                merged = self._merged(value)
            else:
                own[name] = self.of(value, f"{place}{name}.")
        return merged | own

    def _merged(self, node: yaml.Node) -> dict[str, Any]:
        """What `<<` brings in: of several mappings, the first that has a key."""
        found = self.of(node)
        parts = found if isinstance(found, list) else [found]
        if not all(isinstance(part, dict) for part in parts):
            raise self._refusal(node, "<< merges a mapping, or a list of them: name one with *")
        merged: dict[str, Any] = {}
        for part in parts:
            merged = part | merged
        return merged

    def _refusal(self, node: yaml.Node, what: str) -> UserError:
        return UserError(f"{self._where(node.start_mark.line + 1)}: {what}")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    values = parse_yaml(_text(path), str(path), lambda line: f"{path}, line {line}")
    if values is None or (isinstance(values, Written) and not values.text):
        raise UserError(f"{path}: is empty: start it with 'run_dir: ...'")
    if not isinstance(values, dict):
        what = "a list" if isinstance(values, list) else "a single value"
        raise UserError(f"{path}: holds {what}, not sections: start it with 'run_dir: ...'")
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, Written) else bases
    if not isinstance(bases, list) or not all(isinstance(base, Written) for base in bases):
        raise UserError(f"{path}: extends is no list of names: make it a list of YAML files")
    merged: dict[str, Any] = {}
    for base in (written.text for written in bases):
        try:
            name = expanded(base)
            file = (located(name) if name.startswith(PREFIX) else path.parent / name).resolve()
        except (ValueError, UserError) as error:
            raise UserError(f"{path}: extends: {error}") from None
        if file in seen or file == path.resolve():
            raise UserError(f"{path}: extends {base}, which extends this file in turn: remove one of them")
        _merge(merged, _read(file, (*seen, path.resolve())))
    _merge(merged, values)
    return merged


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a YAML configuration") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: is not UTF-8 text (byte {content[error.start]:#x}): save the file as UTF-8"
        ) from None


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    """Puts values over others, section by section; a mapping whose keys are numbers is no section, but one value."""
    for key, value in values.items():
        section = isinstance(value, dict) and not all(name[:1].isdecimal() for name in value)
        if section and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, text = word.partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise UserError(f"{word!r} is not a setting: write --section.field VALUE")
        if not equals:
            if not remaining:
                raise UserError(f"{name} has no value: write {name} VALUE")
            text = remaining.pop(0)
        value = _option_value(name, text)
        for part in reversed(name[2:].split(".")):
            value = {part: value}
        _merge(merged, value)
    return merged


def _option_value(name: str, text: str) -> Any:
    """A list, a mapping or a quoted text is YAML; anything else is the value itself, a # or a colon in it too."""
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        return Written(text, name)
    try:
        return parse_yaml(text, name, lambda line: f"{name} {text!r}")
    except NotYaml as error:
        raise UserError(f"{error}: put it in quotes if it is meant as a text") from None
