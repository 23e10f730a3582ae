# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which clock ends a run that stands still: ours before NCCL's, and NCCL's before the one that says nothing.

    guards.hang_timeout_seconds < guards.collective_timeout_seconds < TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC

The first names the rank at fault and writes stacks (memformer/guards/watchdog.py); the schema holds it below the
second, the time-out of the process groups, after which torch tears the process down. The third watches the thread that
watches the second, and aborts a process without a word where that thread hangs in the driver: by torch's default after
eight minutes, before the others.
"""

import logging
from collections.abc import MutableMapping

LOG = logging.getLogger("memformer")
HEARTBEAT = "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"
BEHIND_SECONDS = 300
"""How long after the time-out of a collective: that is told, and written down, by the thread that is watched."""


def keep_in_order(environment: MutableMapping[str, str], collective_seconds: float) -> None:
    """Before the process group is made: NCCL's heartbeat comes last. What somebody has set stays, with a warning.

    Args:
        environment: What torch reads.
        collective_seconds: Time-out of the process groups.
    """
    said = environment.setdefault(HEARTBEAT, str(int(collective_seconds) + BEHIND_SECONDS))
    if said.isdecimal() and int(said) <= collective_seconds:
        LOG.warning(
            "%s is %s, and guards.collective_timeout_seconds %g: where the driver hangs, the process is aborted before "
            "anything can say why; set the variable above it, or leave it out",
            HEARTBEAT,
            said,
            collective_seconds,
        )
