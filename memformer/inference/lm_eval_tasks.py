# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks of EleutherAI's lm-evaluation-harness: found, loaded and asked of a model, with nothing run or fetched unasked.

A task is a YAML file, and three things in it are more than data. `!function` names Python code. A template of Jinja can
reach all of Python. A metric that the harness does not know is looked for by Hugging Face's `evaluate`, which fetches
code and runs it. Unless the files are trusted, the first is refused, templates are rendered in Jinja's sandbox, and
`evaluate` cannot be imported. The harness's own tasks, which were installed with it, may run their own code; their data
come from the Hugging Face hub.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import logging
import os
import random
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_pipeline import UserError

MISSING = "--lm-eval needs EleutherAI's lm-evaluation-harness: pip install 'memformer-train[lm-eval]'"
FORMATS = ("csv", "json", "parquet", "text")
"""Builders of data sets that read files which are here, and nothing else."""
CODE, TRUST = "!function", "give --lm-eval-trust if you trust whoever wrote it"
EVALUATE = f"where it is of Hugging Face's evaluate, which fetches code and runs it, {TRUST}"
FETCHED = "give --lm-eval-download to have it fetched"
BOOTSTRAPS = 1000  # of the standard error of a metric that is no mean
KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "configs")
_SUFFIXES = (".yaml", ".yml")


class _Function(str):
    """What stands behind `!function`."""


class _TaskLoader(yaml.SafeLoader):
    """Reads a task's YAML without running anything."""


_TaskLoader.add_constructor(CODE, lambda loader, node: _Function(node.value))


@dataclasses.dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their data.

    Attributes:
        tasks: As the harness's `TaskManager.load` gives them.
        trust: Whether they may run code of their own.
    """

    tasks: dict[str, Any]
    trust: bool


def load_tasks(names: Sequence[str], folders: Sequence[Path], *, trust: bool, download: bool) -> LoadedTasks:
    """Finds tasks by name, group or tag in directories, or by the path of a YAML file, and reads their data.

    Args:
        names: Of tasks, or paths that end with .yaml or .yml.
        folders: Directories with YAML files of tasks, at any depth.
        trust: Whether these files may run code.
        download: Whether data may come from elsewhere, and names be those of the harness's own tasks.

    Raises:
        UserError: The harness is missing; there is no such task; a file is damaged, wants to run code or to fetch data
            that it may not; its data cannot be read.
    """
    files = {name: Path(name) for name in names if name.endswith(_SUFFIXES)}
    for name, place, there, what in (
        *(("--lm-eval", file, file.is_file(), "file") for file in files.values()),
        *(("--lm-eval-path", folder, folder.is_dir(), "directory") for folder in folders),
    ):
        if not there:
            raise UserError(f"{name} {place}: there is no such {what}: give a YAML file of a task, or its directory")
    inside = (file for folder in folders for suffix in _SUFFIXES for file in sorted(folder.rglob(f"*{suffix}")))
    for file in (*files.values(), *inside):
        _check_file(file, trust, download, set())
    manager_of = _harness()
    with _contained(trust):
        manager = manager_of(include_path=[str(folder) for folder in folders], include_defaults=download)
        for name in names:
            if name not in files and name not in manager.task_index:
                raise UserError(_unknown(name, manager.all_tasks, download))
        random.seed(0)  # some tasks shuffle: as the harness's own command has it
        np.random.seed(1234)
        try:
            tasks: dict[str, Any] = manager.load(list(names))
        except Exception as error:  # of code that others wrote: the harness's, the tasks', that of the data's format
            raise UserError(f"--lm-eval {','.join(names)}: cannot be loaded ({_reason(error)})", exit_code=1) from None
    for name, task in tasks["tasks"].items():
        task.set_fewshot_seed(seed=1234)
        if getattr(task, "UNSAFE_CODE", False) and not trust:
            raise UserError(
                f"--lm-eval {name}: runs what the model writes: {TRUST.replace('whoever wrote it', 'that')}"
            )
        for metric, computed in getattr(task, "_metric_fn_list", {}).items():
            if computed is None and task.config.process_results is None:
                raise UserError(
                    f"--lm-eval {name}: has the metric {metric!r}, which the harness does not know: {EVALUATE}"
                )
    return LoadedTasks(tasks, trust)


def ask_tasks(lm: Any, loaded: LoadedTasks, *, limit: int | None = None, samples: bool = False) -> dict[str, Any]:
    """Asks a model, and works the metrics out.

    Args:
        lm: See `lm_eval_adapter.MemoryLM`.
        loaded: The tasks.
        limit: Documents of each task at most, its first ones; None: all.
        samples: Whether the result has every request and answer.

    Returns:
        JSON-ready, with the harness's own names: `results`, `groups`, `group_subtasks`, `versions`, `n-shot`,
        `higher_is_better`, `n-samples`, `configs`, and `samples` by task; and `lm_eval`, its version.

    Raises:
        UserError: A task's template or metric fails on its data.
    """
    import lm_eval
    from lm_eval.utils import handle_non_serializable

    with _contained(loaded.trust):
        try:
            found: dict[str, Any] = lm_eval.evaluate(
                lm,
                loaded.tasks,
                limit=limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=samples,
                confirm_run_unsafe_code=loaded.trust,
            )
        except UserError:
            raise
        except Exception as error:  # of a task's template or metric; what fails in the model is not the tasks' fault
            if any(frame.f_locals.get("self") is lm for frame, _ in traceback.walk_tb(error.__traceback__)):
                raise
            names = ",".join(loaded.tasks["tasks"])
            raise UserError(
                f"--lm-eval {names}: cannot be asked ({_reason(error)}): mend the task", exit_code=1
            ) from None
    kept = {name: found[name] for name in (*KEPT, "samples") if name in found}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=handle_non_serializable))
    return {"lm_eval": lm_eval.__version__, **plain}


def table(result: dict[str, Any]) -> list[str]:
    """The lines of a result for people: a row a metric of each task and group."""
    found = [(name, *row) for name, metrics in result["results"].items() for row in _metrics(metrics)]
    width = max([len(name) for name, *_ in found] + [4])
    most = max([len(metric) for _, metric, *_ in found] + [6])
    lines = [f"{'task':<{width}}  {'metric':<{most}}  {'value':>12}  {'error':>10}  {'asked':>6}"]
    for name, metric, value, error, asked in found:
        shown = f"{error:>10.4f}" if isinstance(error, int | float) else f"{'':>10}"
        number = f"{value:>12.6g}" if isinstance(value, int | float) else f"{value!s:>12}"
        lines.append(f"{name:<{width}}  {metric:<{most}}  {number}  {shown}  {asked:>6}")
    return lines


def _metrics(metrics: dict[str, Any]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Of a task: metric, value, standard error, documents."""
    for key, value in metrics.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = metrics.get(f"{metric}_stderr,{kind}")
            yield metric if kind == "none" else f"{metric} ({kind})", value, error, metrics.get("sample_len", "")


def _harness() -> Any:
    """The harness's TaskManager.

    Raises:
        UserError: It is not installed, or not whole.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(MISSING)
    try:
        from lm_eval import evaluator  # noqa: F401  # asks for all that it needs
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"{MISSING} ({error})") from None
    return TaskManager


@contextlib.contextmanager
def _contained(trust: bool) -> Iterator[None]:
    """Inside the block the harness says nothing but errors, forks nothing, and runs no code of untrusted files."""
    import datasets
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    with contextlib.ExitStack() as undo:
        for name in ("lm_eval", "huggingface_hub"):
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if not datasets.are_progress_bars_disabled():
            undo.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        # Its bootstrap forks as many processes as there are cores, out of one that computes in threads.
        undo.enter_context(_changed(os.environ, "DISABLE_MULTIPROC", "1"))
        if not trust:
            undo.enter_context(_changed(sys.modules, "evaluate", None))
            sandbox = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
            sandbox.filters.update(utils.env.filters)
            undo.enter_context(_changed(vars(utils), "env", sandbox))
        yield


@contextlib.contextmanager
def _changed(values: Any, name: str, value: Any) -> Iterator[None]:
    """Another value inside the block."""
    before = values.get(name, values)  # `values` itself: there was none
    values[name] = value
    try:
        yield
    finally:
        if before is values:
            del values[name]
        else:
            values[name] = before


def _check_file(file: Path, trust: bool, download: bool, seen: set[Path]) -> None:
    """Refuses a task's file that is damaged, and what it may not do; and those that it includes.

    Raises:
        UserError: See `load_tasks`.
    """
    if file.resolve() in seen:
        return
    seen.add(file.resolve())
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_TaskLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: is not YAML ({getattr(error, 'problem', None) or error}): mend it") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        return  # no task: the harness leaves it out
    for value in _values(content):
        if not trust and (isinstance(value, _Function) or (isinstance(value, dict) and "use_prompt" in value)):
            what = f"{CODE} {value}" if isinstance(value, _Function) else "use_prompt"
            raise UserError(f"{file}: runs Python code ({what}): {TRUST}")
        if not download and isinstance(value, dict):
            _check_local(file, value)
    includes = content.get("include", [])
    for include in includes if isinstance(includes, list) else [includes]:
        _check_file(file.parent / str(include), trust, download, seen)


def _check_local(file: Path, settings: dict[Any, Any]) -> None:
    """Refuses data that are not files here."""
    source = settings.get("dataset_path")
    if source is not None and source not in FORMATS:
        raise UserError(
            f"{file}: dataset_path is {source!r}, and files that are here are read by {', '.join(FORMATS)}: {FETCHED}"
        )
    for place in _values(settings.get("dataset_kwargs")):
        if isinstance(place, str) and "://" in place:
            raise UserError(f"{file}: the data are at {place}: {FETCHED}")


def _values(content: Any) -> Iterator[Any]:
    """All that a document of YAML holds, itself first."""
    yield content
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _values(each)


def _unknown(name: str, known: Sequence[str], download: bool) -> str:
    """What is wrong with a task's name."""
    near = difflib.get_close_matches(name, known, 1, 0.7)
    if near:
        mend = f"is it {near[0]!r}?"
    elif download:
        mend = "lm_eval ls tasks lists those of the harness"
    else:
        those = f"--lm-eval-path has {', '.join(known[:10])}" if known else "give --lm-eval-path DIR or a YAML file"
        mend = f"{those}; the harness's own, whose data are fetched, need --lm-eval-download"
    return f"--lm-eval: there is no task {name!r}: {mend}"


def _reason(error: BaseException) -> str:
    """The first cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ModuleNotFoundError) and error.name == "evaluate" and "evaluate" in sys.modules:
        return EVALUATE
    words = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {words[:300]}"
