# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What test processes have imported before they are forked: everything slow, with the collectives counted."""

import gc
import importlib.util
import os

from tests.distributed import collectives

# DeepSpeed keeps references to torch's collectives when it is imported.
collectives.install()
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from memformer.processes.group import import_deepspeed  # noqa: E402

import_deepspeed()
import deepspeed.module_inject.auto_ep_layer  # noqa: E402, F401  # DeepSpeed imports this when it makes an engine
import pytest  # noqa: E402, F401  # which the modules import that the functions come from
import torch._dynamo  # noqa: E402, F401  # torch imports it when it makes an optimizer

import memformer.models.memformer.family  # noqa: E402
import memformer.training.trainer  # noqa: E402, F401
from memformer.config.schema import schema_of  # noqa: E402

schema_of("memformer")  # pydantic reads the docstring of every field: a fifth of a second

if importlib.util.find_spec("transformers"):
    # Two and a half seconds of every process that builds a backbone.
    import transformers.models.llama.modeling_llama  # noqa: F401

# For every engine of stage 3 DeepSpeed calls gc.collect(), which would go through all of these modules and copy the
# pages that they lie in.
gc.collect()
gc.freeze()
