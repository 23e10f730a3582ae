# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The command line, and how a run is started: on this machine, by Slurm, by submitit."""
