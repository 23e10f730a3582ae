# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What test processes have imported before they are forked: everything slow, with the collectives counted."""

import os

from tests.distributed import collectives

# DeepSpeed keeps references to torch's collectives when it is imported.
collectives.install()
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402, F401
import torch._dynamo  # noqa: E402  # DeepSpeed imports it and the next when it makes an engine
import torch._inductor.compile_fx  # noqa: E402, F401

import memformer.training.trainer  # noqa: E402, F401
