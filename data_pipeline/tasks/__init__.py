# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks of memory, as text: something is told once and asked for further on, by any length and depth."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from data_pipeline.tasks.catalogue import TASKS, parse_depths, parse_lengths, parse_tasks
    from data_pipeline.tasks.documents import Document, make_document, solved
    from data_pipeline.tasks.filler import Texts
    from data_pipeline.tasks.task import Question, Story, Task

__all__ = [
    "TASKS",
    "Document",
    "Question",
    "Story",
    "Task",
    "Texts",
    "make_document",
    "parse_depths",
    "parse_lengths",
    "parse_tasks",
    "solved",
]

__getattr__ = face(
    __name__,
    {
        "TASKS": "catalogue",
        "parse_depths": "catalogue",
        "parse_lengths": "catalogue",
        "parse_tasks": "catalogue",
        "Document": "documents",
        "make_document": "documents",
        "solved": "documents",
        "Texts": "filler",
        "Question": "task",
        "Story": "task",
        "Task": "task",
    },
)
