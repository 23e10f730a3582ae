# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What exports hold for Hugging Face's transformers: one file of code each, made of this project's own modules.

`causal_lm` and the modules NAME_lm are never imported here: they are the sources of that file (`bundle`), and the only
modules that import transformers at their top.
"""
