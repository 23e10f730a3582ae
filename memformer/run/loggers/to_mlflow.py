# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""MLflow. Server, experiment and key come from its own variables, MLFLOW_TRACKING_URI and so on.

Without a server the figures become files in RUN/loggers/mlflow, which MLflow keeps reading but develops no further.
"""

import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from memformer.run.loggers.protocol import Ended, LoggedRun

STATES: dict[Ended, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
TAG = "memformer.id"
"""What a later life finds the run by: MLflow gives runs ids of its own."""
MOST_METRICS, MOST_PARAMETERS = 1000, 100  # that a server takes in one request
VARIABLES = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its own seven keep a run without a server waiting for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout may be read by a program
}


class MlflowLogger:
    """One run there for all lives of a run here; a thread sends, so that no step waits for the server."""

    def __init__(self, run: LoggedRun) -> None:
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            run.directory.mkdir(parents=True, exist_ok=True)
            address = run.directory.resolve().as_uri()
        self._client = MlflowClient(tracking_uri=address, registry_uri=address)
        self._id = self._going_on(run)
        self._describe(run.settings)
        self._rows: queue.Queue[tuple[int, int, Mapping[str, float]] | None] = queue.Queue()
        self._error: Exception | None = None
        self._sender = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._sender.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hands them to the thread; raises what it has failed with."""
        if self._error is not None:
            raise self._error
        self._rows.put((step, time.time_ns() // 1_000_000, dict(values)))

    def close(self, how: Ended) -> None:
        """Waits for what is on its way, and sets the run's state there."""
        self._rows.put(None)
        self._sender.join()
        if self._error is not None:
            raise self._error
        self._client.set_terminated(self._id, STATES[how])

    def _going_on(self, run: LoggedRun) -> str:
        """The run's id there, of a new run or of the one that an earlier life began."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "memformer"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        began = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.identifier}'", max_results=1)
        if not began:
            return str(self._client.create_run(experiment, tags={TAG: run.identifier}, run_name=run.name).info.run_id)
        self._client.update_run(began[0].info.run_id, status="RUNNING")
        return str(began[0].info.run_id)

    def _describe(self, settings: Mapping[str, Any]) -> None:
        """Settings as parameters. MLflow's stay as they were set, so that a changed one becomes a tag of its name."""
        from mlflow.entities import Param

        flat = dict(_flat(settings))
        known = self._client.get_run(self._id).data.params
        new = [Param(name, value) for name, value in flat.items() if name not in known]
        for at in range(0, len(new), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=new[at : at + MOST_PARAMETERS])
        for name in flat.keys() & known.keys():
            if flat[name] != known[name]:
                self._client.set_tag(self._id, name, flat[name])

    def _send(self) -> None:
        from mlflow.entities import Metric

        ended = False
        while not ended:
            rows = [self._rows.get()]
            while not self._rows.empty():
                rows.append(self._rows.get())
            ended = None in rows
            metrics = [
                Metric(_named(tag), value, when, step)
                for step, when, values in filter(None, rows)
                for tag, value in values.items()
            ]
            try:
                for at in range(0, len(metrics), MOST_METRICS):
                    self._client.log_batch(self._id, metrics=metrics[at : at + MOST_METRICS])
            except Exception as error:  # whatever a server or a disk does; told by the next step
                self._error = error
                return


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """`section.field` and its value, as text, as long as MLflow takes it."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield _named(f"{above}{name}")[:250], text[:5000]


def _named(tag: str) -> str:
    """A name with the characters that MLflow has in names."""
    return re.sub(r"[^\w./:\- ]", "_", tag)
