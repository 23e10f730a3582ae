# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Services that are missing, that fail, or whose run has no name any more: one line, and the run goes on."""

import atexit
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.config.schema import parse_config
from memformer.run.directory import RunDirectory
from memformer.run.grace import VARIABLE, Grace
from memformer.run.loggers import registry
from memformer.run.loggers.registry import Loggers, refuse_missing
from tests import ROOT


class Notebook:
    """A service that writes down what it is told, and fails when it is told to."""

    pages: list[Any] = []  # noqa: RUF012

    def __init__(self, run: Any) -> None:
        self.pages.append(("opened", run.identifier, dict(run.settings)))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if step == 13:
            raise OSError("no thirteenth")
        self.pages.append((step, values))

    def close(self, how: str) -> None:
        self.pages.append(how)


class Endless(Notebook):
    """A service whose server is away, as wandb has it: neither its closing nor its handler comes to an end."""

    def __init__(self, run: Any) -> None:
        atexit.register(threading.Event().wait)

    def close(self, how: str) -> None:
        threading.Event().wait()


LEAVE = """
import sys
from pathlib import Path
from tests.memformer.run.loggers.test_registry import Endless, opened, registry
registry.importlib.import_module("memformer.run.loggers.protocol").Endless = Endless
registry.SERVICES["endless"] = ("json", "protocol", "Endless")
registry.CLOSING_SECONDS = 0.1
with opened(Path(sys.argv[1]), names=("endless",)):
    pass
sys.exit(75)
"""


@pytest.fixture(autouse=True)
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    module = registry.importlib.import_module("memformer.run.loggers.protocol")
    for kind in (Notebook, Endless):
        monkeypatch.setattr(module, kind.__name__, kind, raising=False)
        monkeypatch.setitem(registry.SERVICES, kind.__name__.lower(), ("json", "protocol", kind.__name__))
    monkeypatch.setattr(Notebook, "pages", [])
    monkeypatch.setattr(logging.getLogger("memformer"), "propagate", True)
    return Notebook.pages


def opened(root: Path, reached: int = 0, names: tuple[str, ...] = ("notebook",), grace: str = "") -> Loggers:
    return Loggers(RunDirectory(root), names, lambda: {"a": 1}, reached, Grace({VARIABLE: grace}))


@pytest.mark.parametrize(
    ("code", "how"), [(0, "finished"), (75, "stopped"), (130, "stopped"), (1, "failed"), (None, "failed")]
)
def test_a_life_is_told_in_order_and_ends_as_it_does(tmp_path: Path, code: int | None, how: str) -> None:
    with opened(tmp_path) as loggers:
        loggers.scalars(1, {"train/loss": 2.0})
        if code is not None:
            loggers.ended(code)
    name = json.loads((tmp_path / "loggers" / "run.json").read_text())["id"]
    assert Notebook.pages == [("opened", name, {"a": 1}), (1, {"train/loss": 2.0}), how]


def test_steps_that_were_told_are_not_told_again_and_the_name_stays(tmp_path: Path) -> None:
    for reached in (0, 2):
        with opened(tmp_path, reached) as loggers:
            for step in (2, 3):
                loggers.scalars(step, {})
    assert [page[0] for page in Notebook.pages if page != "failed"] == ["opened", 2, 3, "opened", 3]
    assert len({page[1] for page in Notebook.pages if page[0] == "opened"}) == 1


def test_one_that_fails_is_given_up_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as loggers:
        for step in (12, 13, 14):
            loggers.scalars(step, {})
    assert [page[0] for page in Notebook.pages] == ["opened", 12]
    (line,) = caplog.messages
    assert line == "loggers: notebook failed (OSError: no thirteenth): the run goes on without it"


@pytest.mark.parametrize(("closing", "grace"), [(0.2, 3600.0), (3600.0, 0.4)], ids=["its time", "the launcher's"])
def test_one_that_does_not_come_to_an_end_is_left_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    closing: float,
    grace: float,
) -> None:
    monkeypatch.setattr(registry, "CLOSING_SECONDS", closing)
    loggers = opened(tmp_path, names=("endless", "notebook"), grace=str(grace))
    began = time.monotonic()
    loggers._grace.began(began)
    with loggers:
        loggers.ended(75)
    assert 0.15 < time.monotonic() - began < 10
    (line,) = caplog.messages
    assert line == "loggers: endless has not come to its end in time: what it lacks is in metrics.jsonl"
    assert Notebook.pages[-1] == "stopped", "the others are told"


def test_nor_does_it_hold_the_process_at_its_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAVE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 75, done.stderr


def test_a_name_that_cannot_be_read_is_not_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "loggers" / "run.json"
    file.parent.mkdir()
    for content in ("{", '{"id": 7}', '{"id": "../up"}'):
        file.write_text(content)
        with opened(tmp_path) as loggers:
            loggers.scalars(1, {})
        assert Notebook.pages == [] and file.read_text() == content
    assert all("mend it, or delete it for a new name" in line for line in caplog.messages)


def test_nothing_is_made_without_services(tmp_path: Path) -> None:
    with opened(tmp_path, names=()) as loggers:
        loggers.scalars(1, {})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_refused_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_missing(["notebook"])
    monkeypatch.setitem(registry.SERVICES, "wandb", ("no_such_package", "to_wandb", "WandbLogger"))
    with pytest.raises(UserError, match=r"loggers: wandb needs .*: pip install 'memformer-train\[wandb\]', or leave"):
        refuse_missing(["wandb"])


def test_a_service_is_named_once() -> None:
    values = {"run_dir": "r", "data": {"path": "d"}, "loggers": ["wandb", "prometheus", "wandb"]}
    with pytest.raises(UserError, match=r"c.yaml: loggers: is \['wandb', 'prometheus', 'wandb'\]: one comes twice"):
        parse_config(values, "c.yaml")
