# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The families there are, by the name in a configuration and by the architecture in an export.

A family of another package is found by an entry point of the group `memformer.families`, whose value names its
`Family`.
"""

import functools
from importlib.metadata import entry_points

from memformer.models.configuration import ModelConfig
from memformer.models.family_record import Family, Stages, Wavefronts

GROUP = "memformer.families"
DEFAULT = "memformer"


class UnknownFamily(ValueError):
    """No family of that name or architecture."""


class NotBuilt(ValueError):
    """A family is without what a setting needs; the message names the setting, the family and the mend."""


_registered: dict[str, Family] = {}


def register(made: Family) -> None:
    """Makes a family known to this process; installed packages name theirs by an entry point instead."""
    _registered[made.name] = made


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        UnknownFamily: There is none; the message names those that there are.
    """
    if name not in _registered:
        _register_built_in()
    if name not in _registered:
        _register_installed(name)
    if name not in _registered:
        raise UnknownFamily(f"there is no family {name!r}; choose from {', '.join(family_names())}")
    return _registered[name]


def family_names() -> list[str]:
    """The names of all families that there are, in order."""
    _register_built_in()
    return sorted({*_registered, *(point.name for point in entry_points(group=GROUP))})


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration."""
    return family(config.family)


def stages_of(config: ModelConfig) -> Stages:
    """How a pipeline cuts a model of this configuration.

    Raises:
        NotBuilt: It does not cut its family, or not this one of it.
    """
    stages = family_of(config).stages
    if stages is None:
        raise NotBuilt(f"parallel.pipeline: not built for family {config.family}: set it to 1")
    try:
        stages.check(config)
    except ValueError as error:
        raise NotBuilt(f"parallel.pipeline: model.{error}; or set parallel.pipeline to 1") from None
    return stages


def wavefronts_of(config: ModelConfig) -> Wavefronts:
    """How the family of a configuration reads documents along diagonals.

    Raises:
        NotBuilt: It does not.
    """
    found = family_of(config).wavefront
    if found is None:
        raise NotBuilt(f"not built for family {config.family}, all of whose layers wait for one memory")
    return found


def family_of_architecture(architecture: str) -> Family:
    """The family whose exports say `architecture`.

    Raises:
        UnknownFamily: There is none.
    """
    for look in (_register_built_in, _register_installed):
        look()
        for each in list(_registered.values()):
            if each.architecture == architecture:
                return each
    known = ", ".join(sorted(each.architecture for each in _registered.values()))
    raise UnknownFamily(f"architecture {architecture!r} is of no family here; known are {known}")


@functools.cache
def _register_built_in() -> None:
    from memformer.models.backbone.family import FAMILY as BACKBONE
    from memformer.models.memformer.family import FAMILY as MEMFORMER

    for made in (MEMFORMER, BACKBONE):
        _registered.setdefault(made.name, made)


@functools.cache
def _register_installed(name: str | None = None) -> None:
    """Families of other packages: the one of a name, or all."""
    for point in entry_points(group=GROUP) if name is None else entry_points(group=GROUP, name=name):
        words = f"the entry point {point.name} = {point.value} of {GROUP}"
        try:
            found = point.load()
        except Exception as error:  # code of another package, whatever it raises
            raise UnknownFamily(f"{words} cannot be loaded ({error}): mend or remove that package") from error
        if not isinstance(found, Family) or found.name != point.name:
            raise UnknownFamily(f"{words} is no Family of that name: mend or remove that package")
        _registered.setdefault(found.name, found)
