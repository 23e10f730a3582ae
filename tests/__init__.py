# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The tests. Folders mirror the packages; `distributed` and `faults` need several processes, `slurm` a cluster."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
