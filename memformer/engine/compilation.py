# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The setting `compile`: whether the layers are compiled, how, and where what comes of it is kept.

`auto` compiles where a GPU has been seen to gain by it and the tests have seen every form of a layer compiled whole,
and nowhere else; it never ends a run. `true` compiles wherever it is asked to, and an error of the compiler is one.
"""

import functools
import importlib.util
import os
import shlex
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memformer.config.schema import Config
from memformer.models.protocol import Compiled, MemoryModel
from memformer.models.registry import family_of
from memformer.models.scoring import Head
from memformer.parallel.tensor import leave_uncompiled
from memformer.run.directory import RunDirectory

RECOMPILE_LIMIT = 64
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_set_here: str | None = None  # for an earlier run of this process, which is not the next one's wish


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

    For a CPU a folder of the machine, as torch has it: code that is made for one CPU is not for the next one.

    Args:
        config: The run.
        device: Of this process.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch writes its default into the environment itself, as soon as its compiler is loaded.
    said, default = os.environ.get(_CACHE), default_cache_dir()
    if said and said not in (default, _set_here):
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

    global _set_here
    kept = kept_in(config, device)
    if kept != os.environ.get(_CACHE):
        os.environ[_CACHE] = _set_here = kept
    keep_whole_files_alone()
    torch._dynamo.config.suppress_errors = config.compile == "auto"
    # Where hooks gather parameters, or heads are spread, graphs of what is no layer would break.
    compile_layers(model, methods=config.parallel.zero_stage != 3 and config.parallel.tensor == 1)


def keep_whole_files_alone() -> None:
    """Has what torch's C++ compiler writes appear when it is complete, as what torch makes for GPUs does.

    A compiler that is killed with its run leaves half a library under the name of a whole one, which torch would load
    from then on: an error, or a bus error.
    """
    from torch._inductor import cpp_builder

    real = cpp_builder.run_compile_cmd
    if getattr(real, "func", None) is _compiled_whole:
        return
    cpp_builder.run_compile_cmd = functools.partial(_compiled_whole, real)


def _compiled_whole(real: Callable[[str, str], None], cmd_line: str, cwd: str) -> None:
    """torch's `run_compile_cmd` with another place for the output, which is renamed at the end."""
    words = shlex.split(cmd_line)
    if "-o" not in words:
        real(cmd_line, cwd)
        return
    place = words.index("-o") + 1
    target = words[place]
    words[place] = f"{target}.{os.getpid()}.partial"
    real(shlex.join(words), cwd)
    os.replace(Path(cwd, words[place]), Path(cwd, target))


def compile_layers(model: MemoryModel, methods: bool = True) -> None:
    """torch.compile of what each layer computes, whose stack shares its graphs, and of what a head does to many logits.

    Hooks of the layer (ZeRO-3's) and its recomputation stay outside. Under tensor parallelism a layer's graph breaks
    where the processes talk.

    Args:
        model: Its layers.
        methods: Compile also the methods that it names, if it is `protocol.Compiled`.
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
        layer.forward = torch.compile(layer.forward, dynamic=False)
    module: Any = model
    for each in module.modules():
        if isinstance(each, Head):
            each.compile_chunks()
    for name in model.compiled_methods if methods and isinstance(model, Compiled) else ():
        setattr(model, name, torch.compile(getattr(model, name), dynamic=False))
