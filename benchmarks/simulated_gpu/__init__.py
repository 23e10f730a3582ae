# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A CUDA device that has no GPU behind it: what a run launches, sends and waits for, where there is none to run it on.

Tensors of the device have shapes and dtypes but no numbers (torch's fake tensors), collectives send nothing, and the
host's work is real: data, model, DeepSpeed and the training loop are those of every run. What is recorded is derived,
not measured. Start with `library.load()`, before torch is imported.
"""
