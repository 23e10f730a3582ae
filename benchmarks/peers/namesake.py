# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""PyPI's `memformer` (lucidrains), whose import name is this project's own: loaded from a folder apart.

`make peers` installs it into .venv/namesake; MEMFORMER_NAMESAKE names another folder.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.common import ROOT

NAME = "memformer"


def folder() -> Path:
    """Where it was installed."""
    return Path(os.environ.get("MEMFORMER_NAMESAKE", ROOT / ".venv" / "namesake"))


def available() -> bool:
    """Whether it is installed."""
    return (folder() / NAME / "mrbp.py").is_file()


def load() -> ModuleType:
    """The package; its modules are in `sys.modules` only while it is imported.

    Raises:
        ImportError: It is not installed.
    """
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == NAME}
    sys.path.insert(0, str(folder()))
    importlib.invalidate_caches()
    try:
        package = importlib.import_module(NAME)
        if not str(package.__file__).startswith(str(folder())):
            raise ImportError(f"{folder()}: holds no {NAME}: make peers installs it")
        return package
    finally:
        sys.path.remove(str(folder()))
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
        sys.modules.update(ours)


def replay_scoring_every_segment(model: Any, segments: list[Any], targets: list[Any]) -> None:
    """Its replay with a target for every segment, where its own takes one for the last alone.

    As there: two backward passes a segment, the graph kept for the second.

    Args:
        model: Its model.
        segments: Source tokens of each segment, int64 [B, S].
        targets: Target tokens of each segment, int64 [B, S + 1]: its decoder shifts them itself.
    """
    import torch

    memories = [model.get_initial_mem(len(segments[0]))]
    with torch.no_grad():
        for segment in segments[:-1]:
            memories.append(model(segment, mems=memories[-1])[1])
    gradient = torch.zeros_like(memories[-1])
    for segment, target, memory in zip(reversed(segments), reversed(targets), reversed(memories), strict=True):
        memory = memory if memory.grad_fn is not None else memory.requires_grad_()
        memory.retain_grad()
        _, after, loss = model(src=segment, tgt=target, mems=memory)
        loss.backward(retain_graph=True)
        after.backward(gradient, retain_graph=True)
        if memory.grad is not None:
            gradient = memory.grad.detach().clone()
