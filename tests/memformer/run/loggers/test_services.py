# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A real run of two lives, told to every service as it is without a network; what they have is read back.

Covers: memformer/run/loggers/to_wandb.py, memformer/run/loggers/to_prometheus.py, memformer/run/loggers/to_mlflow.py,
memformer/run/loggers/to_trackio.py, memformer/run/loggers/protocol.py, memformer/run/loggers/registry.py
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memformer.processes.group import World
from memformer.run.directory import RunDirectory
from memformer.run.loggers.protocol import LoggedRun
from memformer.run.loggers.registry import SERVICES
from memformer.run.loggers.to_mlflow import STATES, VARIABLES, MlflowLogger
from memformer.run.loggers.to_prometheus import ENDS, PrometheusLogger
from memformer.run.loggers.to_trackio import LEVELS
from memformer.run.loggers.to_wandb import EXIT_CODES
from memformer.training import Callback, TrainingState, train
from tests import ROOT
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.faults.lives import metrics_of, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

BLOCK, HEAD = 32_768, 7  # of LevelDB's log format, in which wandb writes its records


class Crash(Callback):
    """Ends the first life after step 3, whose checkpoint is that of step 2."""

    def after_metrics(self, state: TrainingState, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 3:
            raise RuntimeError("gone")


def lives(world: World, root: str) -> None:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_PROJECT": "memformer-test", "WANDB_SILENT": "true"}
    os.environ |= {"TRACKIO_DIR": f"{root}/trackio", "TRACKIO_PROJECT": "memformer-test"}
    config = tiny_config(Path(root), "told", training={"max_steps": 5}).model_copy(update={"loggers": list(SERVICES)})
    with pytest.raises(RuntimeError, match="gone"):
        train(config, callbacks=[Crash()])
    assert train(config) == 0
    later = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 6})})
    assert train(later) == 0
    from trackio.context_vars import current_run

    assert current_run.get() is None, "otherwise Trackio finishes it once more at the end of the process"
    found = {"mlflow": in_mlflow(RunDirectory(Path(root) / "told")), "trackio": in_trackio()}
    (Path(root) / "found.json").write_text(json.dumps(found))


def in_mlflow(run: RunDirectory) -> list[dict[str, Any]]:
    """The runs that MLflow's files have."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run.loggers / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("memformer")
    return [
        {
            "state": each.info.status,
            "name": each.info.run_name,
            "settings": each.data.params,
            "tags": each.data.tags,
            "losses": [(row.step, row.value) for row in client.get_metric_history(each.info.run_id, "train/loss")],
        }
        for each in client.search_runs([experiment.experiment_id])
    ]


def in_trackio() -> list[dict[str, Any]]:
    """The runs that Trackio's database has."""
    from trackio.sqlite_storage import SQLiteStorage

    project = "memformer-test"
    return [
        {
            "name": name,
            "settings": SQLiteStorage.get_run_config(project, name),
            "alerts": sorted((alert["title"], alert["level"]) for alert in SQLiteStorage.get_alerts(project, name)),
            "losses": [
                (row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs(project, name) if "train/loss" in row
            ],
        }
        for name in SQLiteStorage.get_runs(project)
    ]


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2 as messages

    data, at, whole = path.read_bytes(), HEAD, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + HEAD])
        whole += data[at + HEAD : at + HEAD + size]
        at += HEAD + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = messages.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def told(path: Path) -> dict[str, Any]:
    """Of one life: the run's id, its settings, losses by step, summary's state and exit code."""
    found: dict[str, Any] = {"losses": {}, "settings": {}}
    for record in records(path):
        if record.HasField("run"):
            found["id"] = record.run.run_id
            found["settings"] |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
        elif record.HasField("history"):
            row = {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in record.history.item}
            if "train/loss" in row:
                found["losses"][record.history.step.num] = row["train/loss"]
        elif record.HasField("summary"):
            for each in record.summary.update:
                if "state" in (each.key, *each.nested_key):
                    found["state"] = json.loads(each.value_json)
        elif record.HasField("exit"):
            found["exit"] = record.exit.exit_code
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("told")
    small_dataset(root, characters=3_000)
    run_distributed(lives, 1, str(root))
    return RunDirectory(root / "told")


def test_wandb_has_one_run_of_two_lives_whose_steps_never_go_backward(run: RunDirectory) -> None:
    first, second, _ = (told(path) for path in sorted((run.loggers / "wandb").glob("wandb/offline-run-*/*.wandb")))
    assert first["id"] == second["id"] == json.loads((run.loggers / "run.json").read_text())["id"]
    losses = {row["step"]: row["loss"] for row in metrics_of(run)}
    assert first["losses"] == {step: losses[step] for step in (1, 2, 3)}
    assert second["losses"] == {step: losses[step] for step in (4, 5)}, "step 3 is trained again, and was told"
    assert (first["state"], first["exit"]) == ("failed", EXIT_CODES["failed"]) and EXIT_CODES["failed"] == 1
    assert (second["state"], second["exit"]) == ("finished", 0)
    settings = first["settings"]
    assert settings["settings"]["training"]["max_steps"] == 5 and settings["world_size"] == 1
    assert settings["parameters"] > 1000 and settings["model_flops_per_token"] > 1000


STOPPED = """
import os, signal, sys
from pathlib import Path
from memformer.run.directory import RunDirectory
from memformer.run.grace import Grace
from memformer.run.loggers import registry
registry.CLOSING_SECONDS = 1
with registry.Loggers(RunDirectory(Path(sys.argv[1])), ["wandb"], dict, 0, Grace({})):
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    Path(sys.argv[1], "children").write_text(children)
    for child in children.split():
        os.kill(int(child), signal.SIGSTOP)
sys.exit(75)
"""


def test_a_wandb_that_does_not_answer_any_more_does_not_hold_the_process(tmp_path: Path) -> None:
    """Its own process is stopped, for which `finish` waits, and its handler for the end of this process after that."""
    command, environment = [sys.executable, "-c", STOPPED, str(tmp_path)], {**os.environ, "WANDB_MODE": "offline"}
    try:
        with (tmp_path / "said").open("w") as said:  # no pipe: wandb's process holds it as well
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=said, stderr=said, timeout=60, check=False)
    finally:
        stopped = [int(each) for each in (tmp_path / "children").read_text().split()]
        for process in stopped:
            os.kill(process, signal.SIGKILL)
    text = (tmp_path / "said").read_text()
    assert stopped and done.returncode == 75 and "wandb has not come to its end in time" in text, text


def test_mlflow_and_trackio_have_one_run_of_all_lives(run: RunDirectory) -> None:
    found = json.loads((run.root.parent / "found.json").read_text())
    losses = [[row["step"], row["loss"]] for row in metrics_of(run)]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    (mlflow,), (trackio,) = found["mlflow"], found["trackio"]
    assert mlflow["losses"] == trackio["losses"] == losses, "step 3 is trained twice, and told once"
    name = json.loads((run.loggers / "run.json").read_text())["id"]
    assert (mlflow["name"], mlflow["state"], mlflow["tags"]["memformer.id"]) == ("told", STATES["finished"], name)
    assert mlflow["settings"]["settings.training.max_steps"] == "5" and int(mlflow["settings"]["parameters"]) > 1000
    assert mlflow["tags"]["settings.training.max_steps"] == "6", "MLflow's parameters cannot change"
    assert trackio["name"] == f"told-{name[:8]}"
    assert trackio["settings"]["settings"]["training"]["max_steps"] == 6
    ends = ("failed", "finished", "finished")
    assert trackio["alerts"] == [[f"run {how}", LEVELS[how]] for how in ends] and LEVELS["failed"] == "error"


def test_what_mlflow_cannot_take_is_told_by_a_later_step_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    logger = MlflowLogger(LoggedRun("a run", "id", tmp_path / "mlflow", {}))
    shutil.rmtree(tmp_path / "mlflow")
    logger.scalars(1, {"train/loss": 2.5})
    logger._sender.join(30)
    with pytest.raises(Exception, match="does not exist"):
        logger.scalars(2, {"train/loss": 2.5})
    with pytest.raises(Exception, match="does not exist"):
        logger.close("finished")


def test_prometheus_keeps_what_the_life_before_said(tmp_path: Path) -> None:
    """Steps that are trained again are not told again: the file must not be empty meanwhile."""
    for life in (1, 2):
        logger = PrometheusLogger(LoggedRun("a run", "id", tmp_path, {}))
        text = (tmp_path / "memformer.prom").read_text()
        if life == 1:
            logger.scalars(7, {"train/loss": 2.5, "eval/loss": 3.0})
            logger.close("stopped")
    assert (
        'memformer_train_loss{id="id",run="a run"} 2.5' in text
        and 'memformer_eval_loss{id="id",run="a run"} 3.0' in text
    )
    assert 'memformer_step{id="id",run="a run"} 7.0' in text and 'memformer_state{id="id",run="a run"} -1.0' in text


def test_prometheus_has_the_last_step(run: RunDirectory) -> None:
    from prometheus_client.parser import text_string_to_metric_families as families

    text = (run.loggers / "prometheus" / "memformer.prom").read_text()
    samples = {each.name: each for family in families(text) for each in family.samples}
    assert samples["memformer_step"].value == 6 and samples["memformer_state"].value == ENDS["finished"]
    assert samples["memformer_train_loss"].value == metrics_of(run)[-1]["loss"]
    assert {each.labels["run"] for each in samples.values()} == {"told"}
