# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The section `evaluation`: tasks of memory that a run is asked while it trains."""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from data_pipeline.errors import UserError
from memformer.config.checks import each_once
from memformer.config.places import Place
from memformer.config.section import Section

Number = TypeVar("Number", int, float)
LONGEST = 10**9


def _tasks(words: list[str]) -> list[str]:
    from data_pipeline.tasks import parse_tasks

    try:
        if words:
            parse_tasks(",".join(words))
    except UserError as error:
        # The command line's option has the name of the setting, which is named before these words.
        raise ValueError(str(error).removeprefix("--tasks").removeprefix(":").lstrip()) from None
    return words


def _different(values: list[Number]) -> list[Number]:
    return sorted(each_once(values))


def _lengths(value: Any) -> Any:
    """One or several, as numbers or as `--lengths` writes them (4k)."""
    from data_pipeline.tasks.catalogue import parse_lengths

    found: list[Any] = []
    for each in value if isinstance(value, list) else [value]:
        try:
            found += parse_lengths(each) if isinstance(each, str) else [each]
        except UserError as error:
            raise ValueError(str(error).removeprefix("--lengths").lstrip()) from None
    return found


Lengths = Annotated[
    list[Annotated[int, Field(ge=0, le=LONGEST)]],
    Field(min_length=1),
    AfterValidator(_different),
    BeforeValidator(_lengths),
]
Depths = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1), AfterValidator(_different)]


class EvaluationConfig(Section):
    """Tasks of memory that the run is asked while it trains (docs/evaluation.md)."""

    tasks: Annotated[list[str], AfterValidator(_tasks)] = Field([])
    """Tasks with their settings, as `memformer evaluate --tasks` names them, such as [passkey:digits=1, copy]; empty:
    none. Each is asked with the memory and with it reset at every segment."""
    interval: int = Field(500, ge=1)
    """Optimizer steps between two times that they are asked; the last step is one of them."""
    length: Lengths = Field([1000])
    """Tokens of a document, or a list of such lengths, such as [1k, 10k]; 0: without filler."""
    depths: Depths = Field([0.0, 0.5])
    """Shares of a document's filler before its first fact."""
    documents: int = Field(16, ge=1)
    """Documents of each task, length and depth."""
    seed: int = Field(0, ge=0)
    """Names the documents: those of `memformer evaluate` with the same seed."""
    text: list[Place] = Field([])
    """Files and directories whose text stands between the facts; empty: the books that ship with the project."""
