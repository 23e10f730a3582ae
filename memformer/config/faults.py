# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What is wrong with a configuration, in words: where it was written, the setting, its value, and the mend."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from memformer.config.written import Where, Written, leaves

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_NO_SECTION = ("model_type", "model_attributes_type", "dataclass_type", "dict_type")
_ELSEWHERE = {
    "batch_size": ["data.num_lanes"],
    "train_batch_size": ["data.num_lanes"],
    "epochs": ["training.max_steps"],
    "num_epochs": ["training.max_steps"],
    "num_train_epochs": ["training.max_steps"],
    "seq_len": ["data.segment_length"],
    "block_size": ["data.segment_length"],
    "context_length": ["data.segment_length"],
    "num_layers": ["model.num_encoder_layers", "model.num_decoder_layers"],
    "hidden_size": ["model.d_model"],
    "hidden_dim": ["model.d_model"],
    "output_dir": ["run_dir"],
    "out_dir": ["run_dir"],
    "save_steps": ["checkpoint.interval"],
    "eval_steps": ["training.eval_interval"],
    "max_grad_norm": ["optimizer.gradient_clipping"],
    "grad_clip": ["optimizer.gradient_clipping"],
    "log_every": ["training.log_interval"],
    "logging_steps": ["training.log_interval"],
    "save_every": ["checkpoint.interval"],
    "tp": ["parallel.tensor"],
    "tensor_parallel": ["parallel.tensor"],
    "tensor_model_parallel_size": ["parallel.tensor"],
    "pp": ["parallel.pipeline"],
    "pipeline_parallel": ["parallel.pipeline"],
    "pipeline_model_parallel_size": ["parallel.pipeline"],
    "cp": ["parallel.segment"],
    "context_parallel_size": ["parallel.segment"],
    "bf16": ["precision"],
    "fp16": ["precision"],
}
"""Settings under the names that other programs have for them."""

_OF_A_BRANCH = {"string_type": "text", "list_type": "list"}  # each branch of `path or list` refuses the other's values


ITEM = "*"
"""Stands in a dotted name for the number of a section in a list, as in data.path.*.weight."""


class Faults:
    """The faults of one configuration.

    Args:
        values: What was written, as `read_values` gives it.
        source: The file that was asked for.
        settings: Gives the dotted names of all settings of the schema, with `ITEM` for those in lists.
    """

    def __init__(self, values: Mapping[str, Any], source: str, settings: Callable[[], Collection[str]]) -> None:
        self._values, self._source, self._settings = values, source, settings
        given: dict[str, list[Written]] = {}
        for place, written in leaves(values):
            if written.source.startswith("--"):
                given.setdefault(_dotted(tuple(part for part in place if isinstance(part, str))), []).append(written)
        self._options = {setting: _as_given(parts) for setting, parts in given.items()}
        """Setting -> the option that it comes from, as it was given."""

    def of_schema(self, errors: Iterable[Any]) -> list[tuple[Where, str]]:
        """What pydantic found, as (place, words)."""
        found: dict[Where, list[Any]] = {}
        for error in errors:
            found.setdefault(self._place(error), []).append(error)
        said = []
        for place, each in found.items():
            # A value that may be a text or a list is compared with both; what it cannot be anyway says nothing.
            telling = [error for error in each if error["type"] not in _OF_A_BRANCH]
            # A choice that may be a truth value as well: said in one.
            telling, also = [error for error in telling if error["type"] == "literal_error"] or telling, telling
            if not telling and not any(other[: len(place)] == place != other for other in found):
                telling = each[:1]
            truth = "" if telling == also else ", true or false"
            said += [(place, self._words(place, error) + truth) for error in telling]
        return said

    def joined(self, said: Iterable[tuple[Where, str]]) -> str:
        """Faults as (place, words) in one line; each file is named where its faults begin."""
        parts: list[str] = []
        before = ""
        for place, words in said:
            head, setting = self._head(place, words)
            text = f"{setting}: {words}" if setting else words
            parts.append(text if head == before else f"{head}: {text}")
            before = head
        return "; ".join(parts)

    def _head(self, place: Where, words: str) -> tuple[str, str]:
        """Where the value was written, and the setting as far as that does not name it."""
        setting = _dotted(place)
        near = place
        while near and not (sources := self._sources(near)):
            near = near[:-1]  # something is missing in what was written there
        if near and len(sources) == 1:
            (source,) = sources
            return source, "" if source == f"--{setting}" else setting
        # A fault of several settings together: it is the command line's as well, where one of them comes from there.
        named = [
            given
            for option, given in self._options.items()
            if option.startswith(setting) and _names(words, option, place)
        ]
        return self._source + (f" with {', '.join(named)}" if named else ""), setting

    def _sources(self, place: Where) -> set[str]:
        return {written.source for at, written in leaves(self._values) if at[: len(place)] == place}

    def _place(self, error: Any) -> Where:
        """Where in the values: pydantic names the branches of unions in between."""
        place: Where = ()
        node: Any = self._values
        for number, part in enumerate(error["loc"], start=1):
            keys: Collection[Any] = range(len(node)) if isinstance(node, list) else node
            if isinstance(node, (Mapping, list)) and part in keys:
                place, node = (*place, part), node[part]
            elif number == len(error["loc"]) and error["type"] == "missing":
                place = (*place, part)
        return place

    def _words(self, place: Where, error: Any) -> str:
        kind, value = error["type"], _shown(error["input"])
        if kind in _UNKNOWN:
            return self._unknown(place)
        if kind == "missing":
            in_list = any(isinstance(part, int) for part in place)
            return "is missing: " + (
                "write it there" if in_list else f"set it in the file or with --{_dotted(place)} VALUE"
            )
        if kind == "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
        if kind in _NO_SECTION:
            return f"is {value}: it is a section, {self._filled(place)}"
        if kind in _OF_A_BRANCH:
            either = error["loc"][-1] != place[-1]
            return f"is {value}: write a {'text or a list' if either else _OF_A_BRANCH[kind]}"
        message = str(error["msg"])
        return f"is {value}: {message[0].lower()}{message[1:]}"

    def _beside(self, section: Where) -> list[str]:
        """The names of what may stand in a section, in the schema's order."""
        above = [ITEM if isinstance(part, int) else str(part) for part in section]
        known = [each.split(".") for each in self._settings()]
        names = [each[len(above)] for each in known if each[: len(above)] == above and len(each) > len(above)]
        return list(dict.fromkeys(names))

    def _filled(self, section: Where) -> str:
        """How a section is written."""
        names = self._beside(section)
        if names and not all(isinstance(part, str) for part in section):
            return f"write {{{', '.join(f'{name}: VALUE' for name in names)}}}"
        if names and any(option == _dotted(section) for option in self._options):
            return f"give its settings, such as --{_dotted(section)}.{names[0]} VALUE"
        return "write its settings under it"

    def _unknown(self, place: Where) -> str:
        parent, name = place[:-1], str(place[-1])
        settings = [each for each in self._settings() if ITEM not in each.split(".")]
        if name in settings and not parent:  # a dotted name, as on a command line
            section, _, field = name.rpartition(".")
            return f"a file has sections: write {field} under {section}:"
        beside = self._beside(parent)
        meant = similar(name, beside, settings)
        if not meant:
            return f"unknown key; the keys are {', '.join(sorted(beside))}"
        dashes = "--" if any(option.startswith(_dotted(place)) for option in self._options) else ""
        return f"unknown key, did you mean {' or '.join(dashes * ('.' in each) + each for each in meant)}?"


def similar(name: str, beside: Collection[str], settings: Collection[str]) -> list[str]:
    """What may be meant by the name of an unknown setting: names beside it, or else dotted names from anywhere.

    Args:
        name: The unknown name.
        beside: Names that there are where it stands.
        settings: Dotted names of all settings.
    """
    name = name.replace("-", "_")
    last = {each: each.rpartition(".")[2] for each in settings if "." in each}
    if exact := [each for each, field in last.items() if field == name]:
        return exact[:3]
    if elsewhere := [each for each in _ELSEWHERE.get(name, ()) if each in settings]:
        return elsewhere
    if close := difflib.get_close_matches(name, beside, 1, 0.7):
        return close
    if short := [each for each in beside if _abbreviates(name, each)]:
        return short[:3]
    if short := [each for each, field in last.items() if _abbreviates(name, field)]:
        return short[:3]
    near = difflib.get_close_matches(name, set(last.values()), 1, 0.75)
    return [each for each, field in last.items() if field in near][:3]


def _abbreviates(name: str, field: str) -> bool:
    """lr and rate stand for learning_rate."""
    words = field.split("_")
    return len(words) > 1 and len(name) > 1 and (name in words or name == "".join(word[0] for word in words if word))


def _names(words: str, option: str, place: Where) -> bool:
    """Whether a fault at a place speaks of a setting: by its dotted name, or in a section by its own."""
    spoken = option if not place else option.rpartition(".")[2]
    return re.search(rf"(?<![\w.]){re.escape(spoken)}(?![\w])", words) is not None


def _as_given(parts: list[Written]) -> str:
    """An option with its value, which may be a list."""
    texts = ", ".join(written.text for written in parts)
    return f"{parts[0].source} {texts if len(parts) == 1 else f'[{texts}]'}"


def _dotted(place: Where) -> str:
    return ".".join(map(str, place))


def _shown(value: Any) -> str:
    """A value in YAML's words, cut where it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
