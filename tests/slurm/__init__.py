# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tests on a real Slurm cluster, which they start themselves."""
