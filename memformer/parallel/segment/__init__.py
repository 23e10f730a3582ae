# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Segments over ranks: which rank has which piece of a rollout, when it computes it, what crosses the seams."""
