# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One thread for torch: on tensors as small as these, waiting for each other costs threads more than they gain."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
