# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Where else than in its directory a run's figures go: one small protocol, one module a service."""
