# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Training runs that wait for a test, wherever the machine: the test says at which step, acts, and lets them go on.

`held_python` makes a stand-in for Python. The project's command, started by it (as a module, or as the copy that a job
runs), starts its ranks by it too; these stand still after the step in the file RUN/hold, in the moment in which ranks
look whether they are asked to stop, until they are, or the file says a later step, or is gone. They start in half the
time as well: without torch's compiler. Everything else that it is asked to run is run by Python itself.
"""

import contextlib
import os
import runpy
import sys
import time
import types
from pathlib import Path

COMMAND = ["-m", "launch.cli"]
FILE = "hold"


def held_python(folder: Path) -> str:
    """Makes the stand-in in a folder; returns its path, which stands for `sys.executable`."""
    path = folder / "held-python"
    if path.exists():
        return str(path)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$0" "$@"\n')
    path.chmod(0o755)
    return str(path)


def hold(run: Path, step: int) -> None:
    """Has a run stand still after a step, or at once if it has trained that one; before it gets there."""
    run.mkdir(parents=True, exist_ok=True)
    fresh = run / f"{FILE}.new"
    fresh.write_text(str(step))
    fresh.replace(run / FILE)


def release(run: Path) -> None:
    """Lets a run go on to its end."""
    (run / FILE).unlink()


def main(stand_in: str, arguments: list[str]) -> None:
    """Runs the project's command with ranks that wait, or replaces this process by Python."""
    copy = Path(arguments[0], "__main__.py").is_file()
    if arguments[:2] != COMMAND and not copy:
        os.execv(sys.executable, [sys.executable, *arguments])
    sys.path[0] = arguments[0] if copy else os.getcwd()  # as Python itself does
    wait_for_the_test()
    leave_the_compiler_out()
    sys.executable, sys.argv = stand_in, arguments[0 if copy else 1 :]
    if copy:
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


def wait_for_the_test() -> None:
    """Has the run of this process wait where a test says so."""
    from memformer.run.stop_requests import StopRequests

    look = StopRequests.urgency.fget
    assert look is not None, "what ranks ask after each step has moved"

    def urgency(requests: StopRequests) -> int:
        while not (asked := look(requests)) and must_wait(requests.stop_file.parent):
            time.sleep(0.02)
        return int(asked)

    setattr(StopRequests, "urgency", property(urgency))  # noqa: B010 - mypy knows no assignment to a property


def leave_the_compiler_out() -> None:
    """torch imports its compiler, and SymPy with it, for the first optimizer: half of a start, for nothing here."""
    stand_in = types.ModuleType("torch._dynamo")
    # All that eager torch asks of it.
    vars(stand_in).update(
        disable=lambda function, *_, **__: function,
        graph_break=lambda: None,
        set_stance=lambda *_, **__: contextlib.nullcontext(),
        trace_rules=types.SimpleNamespace(clear_lru_cache=lambda: None),
    )
    sys.modules["torch._dynamo"] = stand_in


def must_wait(run: Path) -> bool:
    """Whether a run has trained the step that it is to wait after."""
    from memformer.run import jsonl

    try:
        step = int((run / FILE).read_text())
    except OSError:
        return False
    trained = jsonl.last(run / "metrics.jsonl", lambda row: "step" in row)
    return trained is not None and trained["step"] >= step


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
