# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Pipeline parallelism with memory replay: the split, the schedule, the engine that executes it."""
