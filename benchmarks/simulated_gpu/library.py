# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Compiles and loads shim.cpp, which lets autograd of a build of torch without CUDA run over tensors of cuda:0."""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")
_loaded: list[ctypes.CDLL] = []


def missing() -> str | None:
    """What this machine lacks for a simulated device, in one line; None: nothing."""
    if shutil.which("g++") is None:
        return "a simulated GPU needs g++, which is not installed here"
    if "+cpu" not in importlib.metadata.version("torch"):
        return "a simulated GPU takes the place of CUDA, which this build of torch has itself"
    return None


def load() -> None:
    """Loads the shim into this process, compiled first where this machine has not done so yet (half a minute).

    Raises:
        RuntimeError: torch is imported already: the shim must be found before it.
        FileNotFoundError: There is no g++ here (`missing`).
        subprocess.CalledProcessError: It does not compile with this torch.
    """
    if "torch" in sys.modules:
        raise RuntimeError("the simulated GPU must be loaded before torch is imported")
    _loaded.append(ctypes.CDLL(str(_built()), mode=ctypes.RTLD_GLOBAL))


def loaded() -> bool:
    """Whether the GPU of this process is a simulated one: what it says of numbers is then made up."""
    return bool(_loaded)


def _built() -> Path:
    """The compiled library, in the user's cache: one for each text of the source and each torch."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.submodule_search_locations is not None
    torch = Path(found.submodule_search_locations[0])
    name = hashlib.sha256(SOURCE.read_bytes() + str(torch).encode() + importlib.metadata.version("torch").encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memformer"
    library = folder / f"simulated-gpu-{name.hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # another process may compile it too: the last one stays
        made = Path(scratch) / library.name
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch}/include"]
        options += [f"-I{torch}/include/torch/csrc/api/include", f"-L{torch}/lib", "-lc10", "-ltorch_cpu"]
        subprocess.run(["g++", str(SOURCE), *options, f"-Wl,-rpath,{torch}/lib", "-o", str(made)], check=True)
        made.replace(library)
    return library
