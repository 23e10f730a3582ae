# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The setting `compile`: whether the layers are compiled, how, and where what comes of it is kept.

`auto` compiles where a GPU has been seen to gain by it and the tests have seen every form of a layer compiled whole,
and nowhere else; it never ends a run. `true` compiles wherever it is asked to, and an error of the compiler is one.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memformer.config.schema import Config
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.parallel.tensor import leave_uncompiled
from memformer.run.directory import RunDirectory

RECOMPILE_LIMIT = 64
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def why_plain(config: Config, device: torch.device) -> str | None:
    """Why the layers are not compiled, in a few words; None: they are.

    Args:
        config: The run.
        device: Of this process.
    """
    if config.compile != "auto":
        return None if config.compile else "compile is false"
    parallel = config.parallel
    if device.type != "cuda":
        return "compile is auto, which is for GPUs"
    reasons = {
        f"family {config.model.family}": not family_of(config.model).compiled,
        "model.dropout": config.model.dropout > 0,
        "parallel.zero_stage 3": parallel.zero_stage == 3,
        "parallel.tensor": parallel.tensor > 1,
        "parallel.pipeline": parallel.pipeline > 1,
        "parallel.segment": parallel.segment > 1,
        "parallel.offload_optimizer": parallel.offload_optimizer != "none",
    }
    untried = [name for name, given in reasons.items() if given]
    if untried:
        return f"compile is auto, and was not timed on GPUs with {' and '.join(untried)}: set it to true to try"
    missing = _missing(device)
    return f"compile is auto, and its compiler needs {missing}, which is not there" if missing else None


def _missing(device: torch.device) -> str | None:
    """What torch's compiler for GPUs lacks here: it writes Triton, whose launchers are compiled C."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton"
    if torch.cuda.get_device_capability(device)[0] < 7:
        return "a GPU of compute capability 7.0 or later"
    if not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):
        return "a C compiler (gcc or clang, or CC)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python.h (the headers of this Python)"
    return None


def kept_in(config: Config, device: torch.device) -> str:
    """The folder of what the compiler makes: with the run, for its later lives, or where the environment says.

    For a CPU a folder of the machine, as torch has it: a C++ compiler that is killed leaves half a library, which no
    later life could load. What is made for GPUs is renamed when it is complete.

    Args:
        config: The run.
        device: Of this process.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch writes its default into the environment itself, as soon as its compiler is loaded.
    said, default = os.environ.get(_CACHE), default_cache_dir()
    if said and said != default:
        return said
    return default if device.type == "cpu" else str(RunDirectory(config.run_dir).compiled.absolute())


def compile_model(model: MemoryModel, config: Config, device: torch.device) -> None:
    """Compiles the layers as the settings say.

    With `auto` a layer that cannot be compiled is computed as it was written, and torch warns of it.

    Args:
        model: Its layers.
        config: The run.
        device: Of this process.
    """
    import torch._dynamo.config

    os.environ[_CACHE] = kept_in(config, device)
    if config.compile == "auto":
        torch._dynamo.config.suppress_errors = True
    compile_layers(model)


def compile_layers(model: MemoryModel) -> None:
    """torch.compile of what each layer computes: the layers of a stack share their graphs.

    Hooks of the layer (ZeRO-3's) and its recomputation stay outside. Under tensor parallelism a layer's graph breaks
    where the processes talk.
    """
    import torch._dynamo.config

    # With and without masks, gradients, a reset memory, in training and out of it: a stack has more forms than torch
    # compiles of one function by default, and it would run the later ones as they are, without a word.
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    if model.config.dropout:
        import torch._inductor.config

        # The replay must redraw the masks of the first pass; compiled random numbers differ between the graph with
        # gradients and the one without.
        torch._inductor.config.fallback_random = True
    leave_uncompiled()
    for layer in model.layers():
        # Each shape has a graph of its own: one for all that were seen would come in the place of the first after an
        # evaluation, and a run that was resumed between the two would round otherwise.
        layer.forward = _Compiled(layer)


@contextlib.contextmanager
def weights_cast_once(dtype: torch.dtype | None, added_here: bool) -> Iterator[None]:
    """Within the block, compiled layers take 16-bit copies of their weights that are made once.

    Autocast keeps such copies for what is not compiled. A compiled graph holds its casts in itself, and would make
    them in every segment and group of lanes.

    Args:
        dtype: That autocast multiplies in; None: there is none.
        added_here: Gradients of the copies are added to those of the weights by one kernel, which widens them as it
            reads; no hook of the weights is called. Otherwise autograd widens them first and adds them then: the same
            sums, to the bit, and nearly twice the bytes.
    """
    global _copies
    before, _copies = _copies, None if dtype is None else _Copies(dtype, added_here)
    try:
        yield
    finally:
        _copies = before


class _Copies(dict[int, torch.Tensor]):
    """Weights in another dtype, by the `id` of the weight; see `weights_cast_once`."""

    def __init__(self, dtype: torch.dtype, added_here: bool) -> None:
        super().__init__()
        self.dtype, self.added_here = dtype, added_here

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight's copy."""
        if id(weight) not in self:
            self[id(weight)] = self._made(weight)
        return self[id(weight)]

    def _made(self, weight: torch.Tensor) -> torch.Tensor:
        if self.added_here and weight.requires_grad and weight.dtype != self.dtype:
            with torch.no_grad():
                copy = weight.to(self.dtype).requires_grad_()
            add = functools.partial(_add_gradient, weight)
            copy.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
            return copy
        with torch.enable_grad():  # pass 1 has no graph, and the segments after it take the same copies
            return weight.to(self.dtype)


def _add_gradient(weight: torch.Tensor, copy: torch.Tensor) -> None:
    assert copy.grad is not None
    if weight.grad is None:
        weight.grad = copy.grad.to(weight.dtype)
    else:
        weight.grad.add_(copy.grad)
    copy.grad = None


_copies: _Copies | None = None


class _Compiled:
    """What a layer computes, compiled.

    Args:
        layer: Any; its linear maps are those whose weights autocast casts.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.body = _Body(layer)
        self.maps = {f"{name}.weight": part for name, part in self.body.named_modules() if type(part) is nn.Linear}
        self.compute = torch.compile(_computed, dynamic=False)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The layer's forward."""
        weights = {} if _copies is None else {name: _copies.of(part.weight) for name, part in self.maps.items()}
        return self.compute(self.body, weights, inputs, named)


class _Body(nn.Module):
    """A layer as it is written, below its hooks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return type(self.layer).forward(self.layer, *inputs, **named)


def _computed(body: _Body, weights: dict[str, torch.Tensor], inputs: Any, named: Any) -> Any:
    return torch.func.functional_call(body, weights, inputs, named) if weights else body(*inputs, **named)
