# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a file of a task of lm-evaluation-harness may do: hold data, unless its user says that it may do more.

A task is a YAML file, and three things in it are more than data. `!function` names Python code. A template of Jinja can
reach all of Python. A metric that the harness does not know is looked for by Hugging Face's `evaluate`, which fetches
code and runs it. The first and the last are refused here; templates are rendered in a sandbox (lm_eval_tasks.py). Data
are files that are here, in formats whose readers run nothing.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import UserError

SUFFIXES = (".yaml", ".yml")
FORMATS = ("csv", "json", "parquet", "text")
"""Readers of data sets that read files which are here, and nothing else."""
FUNCTION = "!function"
OUTWARD = {"use_prompt": "reads files and code of others", "cache_dir": "says where files are written"}
"""Settings that reach further than data: what each does."""
TRUST = "give --lm-eval-trust if you trust whoever wrote it"
EVALUATE = f"where it is of Hugging Face's evaluate, which fetches code and runs it, {TRUST}"
FETCHED = "give --lm-eval-download to have it fetched"


class _TaskLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the harness has it too
    """Reads a task's YAML without running anything, and notes the functions that are named."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.functions: list[str] = []

    def function(self, node: yaml.Node) -> str:
        """What `!function` names."""
        self.functions.append(str(node.value))
        return self.functions[-1]


_TaskLoader.add_constructor(FUNCTION, _TaskLoader.function)


def check_files(files: Iterable[Path], *, trust: bool, download: bool) -> dict[str, set[Path]]:
    """Refuses files of tasks that are damaged or that want to do what they may not, and those that they include.

    Args:
        files: YAML files; what is no task in them is left alone.
        trust: Whether they may run code.
        download: Whether their data may come from elsewhere.

    Returns:
        The files, without what they include, by the name of the task in them.

    Raises:
        UserError: One is refused.
    """
    ahead, seen, named = list(files), set(), dict[str, set[Path]]()
    listed = len(ahead)
    while ahead:
        file, listed = ahead.pop(0), listed - 1
        try:
            place = file.resolve()  # the harness takes what is included from there, too
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{str(file)!r}: cannot be read ({error}): mend what names it") from None
        if place in seen:
            continue
        seen.add(place)
        content, mappings, functions = _read(file)
        if functions and not trust:
            raise UserError(f"{file}: runs Python code ({FUNCTION} {functions[0]}): {TRUST}")
        for settings in mappings:
            for name, what in OUTWARD.items():
                if name in settings and not trust:
                    raise UserError(f"{file}: {name} {what}: {TRUST}")
            _check_metric(file, settings.get("metric"), trust)
            if not download:
                _check_local(file, settings)
        includes = content.get("include", []) if isinstance(content, dict) else []
        ahead += [place.parent / str(each) for each in (includes if isinstance(includes, list) else [includes])]
        if listed >= 0 and isinstance(content, dict) and isinstance(content.get("task"), str):
            named.setdefault(content["task"], set()).add(place)
    return named


def _read(file: Path) -> tuple[Any, list[dict[Any, Any]], list[str]]:
    """What a file holds, all mappings in it, and the functions that it names."""
    try:
        loader = _TaskLoader(file.read_bytes())
        try:
            content = loader.get_single_data()
            return content, list(_mappings(content)), loader.functions
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # the latter of dates and keys
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: is not YAML ({getattr(error, 'problem', None) or error}): mend it") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): mend what names it") from None


def _mappings(content: Any) -> Iterator[dict[Any, Any]]:
    """All mappings of a document, at any depth; what is named from several places is one."""
    ahead, seen = [content], set[int]()
    while ahead:
        each = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            yield each
        ahead += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()


def _check_local(file: Path, settings: dict[Any, Any]) -> None:
    """Refuses data that are not files here."""
    source = settings.get("dataset_path")
    if source is not None and source not in FORMATS:
        raise UserError(
            f"{file}: dataset_path is {source!r}, and files that are here are read by {', '.join(FORMATS)}: {FETCHED}"
        )
    named = re.search(r"\w+://[^'\"]*", str(settings.get("dataset_kwargs", "")))
    if named:
        raise UserError(f"{file}: the data are at {named[0]}: {FETCHED}")


def _check_metric(file: Path, metric: Any, trust: bool) -> None:
    """Refuses a metric that is looked for elsewhere, or would be in vain."""
    from lm_eval.api import metrics, registry

    assert metrics  # which enters them into the registry
    elsewhere = isinstance(metric, str) and metric not in registry.metric_registry
    if elsewhere and not (trust and importlib.util.find_spec("evaluate")):
        raise UserError(f"{file}: {unknown_metric(metric, trust)}")


def unknown_metric(metric: str, trust: bool) -> str:
    """What is wrong with a metric that is not the harness's own, and the mend."""
    mend = "install Hugging Face's evaluate if it is one of its" if trust else EVALUATE
    return f"the harness does not know the metric {metric!r}: {mend}"
