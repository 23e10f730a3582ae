# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks of EleutherAI's lm-evaluation-harness: found, loaded and asked of a model, with nothing run or fetched unasked.

What files of tasks may do is in lm_eval_files.py. The harness's own tasks, which were installed with it, may run their
own code; their data come from the Hugging Face hub.
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

from data_pipeline import UserError
from memformer.inference.lm_eval_files import EVALUATE, SUFFIXES, check_files, unknown_metric

MISSING = "--lm-eval needs EleutherAI's lm-evaluation-harness: pip install 'memformer-train[lm-eval]'"
BOOTSTRAPS = 1000  # of the standard error of a metric that is no mean
KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "configs")


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
    files = {name: Path(name) for name in names if name.endswith(SUFFIXES)}
    for name, place, there, what in (
        *(("--lm-eval", file, file.is_file(), "file") for file in files.values()),
        *(("--lm-eval-path", folder, folder.is_dir(), "directory") for folder in folders),
    ):
        if not there:
            raise UserError(f"{name} {place}: there is no such {what}: give a YAML file of a task, or its directory")
    manager_of = _harness()
    inside = (file for folder in folders for suffix in SUFFIXES for file in sorted(folder.rglob(f"*{suffix}")))
    named = check_files((*files.values(), *inside), trust=trust, download=download)
    by_path = {file.resolve() for file in files.values()}
    for name, found in named.items():
        if len(found) > 1 and (name in names or found & by_path):
            both = ", ".join(map(str, sorted(found)))
            raise UserError(f"--lm-eval {name}: is the task of several files ({both}): give each a name of its own")
    with _contained(trust), _silent():
        places = [str(folder) for folder in folders]
        manager = manager_of(include_path=places, include_defaults=False)
        unknown = [name for name in names if name not in files and name not in manager.task_index]
        if download and (unknown or manager.all_groups):  # there are 14,000: half a minute of reading
            manager = manager_of(include_path=places, include_defaults=True)
            unknown = [name for name in unknown if name not in manager.task_index]
        if unknown:
            raise UserError(_unknown(unknown[0], manager.all_tasks, download))
        random.seed(0)  # some tasks shuffle: as the harness's own command has it
        np.random.seed(1234)
        try:
            tasks: dict[str, Any] = manager.load(list(names))
        except Exception as error:  # of code that others wrote: the harness's, the tasks', that of the data's format
            raise UserError(f"--lm-eval {','.join(names)}: cannot be loaded ({_reason(error)})", exit_code=1) from None
    for name, task in tasks["tasks"].items():
        task.set_fewshot_seed(seed=1234)
        if getattr(task, "UNSAFE_CODE", False) and not trust:
            raise UserError(f"--lm-eval {name}: runs code that the model writes: give --lm-eval-trust to let it")
        for metric, computed in getattr(task, "_metric_fn_list", {}).items():
            if computed is None and task.config.process_results is None:
                raise UserError(f"--lm-eval {name}: {unknown_metric(metric, trust)}")
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
    """Inside the block the harness shows no bars, forks nothing, and runs no code of untrusted files."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils
    from lm_eval.api import task
    from lm_eval.tasks import _yaml_loader

    import_function = _yaml_loader._import_func_in_yml
    own = Path(_yaml_loader.__file__).resolve().parent

    def _own_function(name: str, folder: Path) -> Any:
        """What `!function` names in a task that was installed with the harness; the files were checked before."""
        if not folder.resolve().is_relative_to(own):
            raise ValueError(f"{folder}: a file there runs Python code ({name})")
        return import_function(name, folder)

    with contextlib.ExitStack() as undo:
        # Its bootstrap forks as many processes as there are cores, out of one that computes in threads.
        undo.enter_context(_changed(os.environ, "DISABLE_MULTIPROC", "1"))
        undo.enter_context(_changed(vars(task), "tqdm", lambda documents, **_: documents))
        if not trust:
            undo.enter_context(_changed(vars(_yaml_loader), "_import_func_in_yml", _own_function))
            undo.enter_context(_changed(sys.modules, "evaluate", None))
            sandbox = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
            sandbox.filters.update(utils.env.filters)
            undo.enter_context(_changed(vars(utils), "env", sandbox))
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside the block libraries log nothing and show no bars: what goes wrong is said in one line, by who finds it."""
    import datasets

    with contextlib.ExitStack() as undo:
        for name in ("lm_eval", "datasets", "huggingface_hub"):
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if not datasets.are_progress_bars_disabled():
            undo.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
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
