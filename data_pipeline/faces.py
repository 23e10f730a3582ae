# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Faces: what a package shows of itself, imported when it is first asked for (PEP 562).

A package names where each of its public names lives and imports nothing until one is used. So `import memformer`, the
help of a command and a refused configuration do not wait for torch.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def face(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: Its name, `__name__`.
        places: Public name -> the module, relative to the package, that defines it.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        vars(importlib.import_module(package))[name] = value
        return value

    return find
