# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The first moments of a rank: tie its life to the launcher's, bind it to its cores, become the real command.

Run as a script, `python -I -S child.py LAUNCHER_PID CORES COMMAND...` (CORES as in "0,1", or "-" for no binding). This
could be `subprocess`'s `preexec_fn`, but Python code between fork and exec can deadlock on a lock that another thread
of the launcher held; a fresh interpreter cannot, and both settings survive the exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the launcher's main thread ends, however that ends.

    Args:
        parent: The launcher's process id, to notice that it died before the kernel was asked.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"launch: the launcher (process {parent}) is gone")


def main(arguments: list[str]) -> None:
    """Prepares this process and replaces it by the command; returns only by `sys.exit`."""
    parent, cores, *command = arguments
    die_with_parent(int(parent))
    if cores != "-":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"launch: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
