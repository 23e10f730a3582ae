# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The clocks of a run that stands still: ours first, by construction."""

import logging

import pytest

from memformer.config.schema import GuardsConfig
from memformer.processes.time_outs import HEARTBEAT, keep_in_order


@pytest.mark.parametrize("seconds", [0.5, 600, 1800, 7200])
def test_each_clock_is_behind_the_one_before(seconds: float) -> None:
    guards = GuardsConfig(hang_timeout_seconds=seconds / 2, collective_timeout_seconds=seconds)
    environment: dict[str, str] = {}
    keep_in_order(environment, guards.collective_timeout_seconds)
    assert guards.hang_timeout_seconds < guards.collective_timeout_seconds < int(environment[HEARTBEAT])
    with pytest.raises(ValueError, match="set it below collective_timeout_seconds"):
        GuardsConfig(hang_timeout_seconds=seconds, collective_timeout_seconds=seconds)


@pytest.mark.parametrize(("said", "warned"), [("480", True), ("1800", True), ("1801", False), ("nonsense", False)])
def test_what_somebody_has_set_stays(said: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    environment = {HEARTBEAT: said}
    with caplog.at_level(logging.WARNING, "memformer"):
        keep_in_order(environment, 1800)
    assert environment == {HEARTBEAT: said}
    assert ("set the variable above it" in caplog.text) == warned
