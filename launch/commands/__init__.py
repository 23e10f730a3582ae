# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One module a subcommand: `SUMMARY`, `add_arguments(parser)` and `run(arguments)`."""
