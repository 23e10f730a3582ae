# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Prometheus, by a file for node_exporter's textfile collector: RUN/loggers/prometheus/memformer.prom.

A port of its own would not be found on a cluster, where runs move from machine to machine.
"""

import re
from collections.abc import Mapping

from memformer.run.loggers.protocol import Ended, LoggedRun

ENDS: dict[Ended, int] = {"finished": 0, "stopped": 1, "failed": 2}
RUNNING = -1


class PrometheusLogger:
    """The newest value of each number, as gauges with the labels `run` and `id`; the file is replaced as a whole."""

    def __init__(self, run: LoggedRun) -> None:
        from prometheus_client import CollectorRegistry, Gauge

        self._labels = {"run": run.name, "id": run.identifier}
        self._registry, self._gauge = CollectorRegistry(), Gauge
        self._gauges: dict[str, Gauge] = {}
        run.directory.mkdir(parents=True, exist_ok=True)
        self._file = run.directory / "memformer.prom"
        self._go_on()
        self._set("state", RUNNING, f"{RUNNING}: running, " + ", ".join(f"{n}: {how}" for how, n in ENDS.items()))
        self._write()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sets the gauges and writes them."""
        self._set("step", step, "optimizer steps done")
        for tag, value in values.items():
            self._set(tag, value, tag)
        self._write()

    def close(self, how: Ended) -> None:
        """The last values stay, with the state."""
        self._set("state", ENDS[how], "")
        self._write()

    def _set(self, tag: str, value: float, words: str) -> None:
        name = "memformer_" + re.sub(r"[^a-zA-Z0-9_]", "_", tag)
        if name not in self._gauges:
            self._gauges[name] = self._gauge(name, words, tuple(self._labels), registry=self._registry)
        self._gauges[name].labels(**self._labels).set(value)

    def _go_on(self) -> None:
        """The values of the life before stay until there are newer ones."""
        from prometheus_client.parser import text_string_to_metric_families as families

        if self._file.exists():
            for family in families(self._file.read_text(encoding="utf-8")):
                for sample in family.samples:
                    self._set(sample.name.removeprefix("memformer_"), sample.value, family.documentation)

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        write_to_textfile(str(self._file), self._registry)
