# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Data sets of tasks, to train on: documents as records of JSON lines, handed to the ordinary build.

A record is `{"text": ..., "id": ..., "loss_weights": [[start, end, 1.0], ...]}`; the ranges, in characters, are the
answers with the blank before each, so that these alone count in the loss. Documents of a seed are never those that
`memformer evaluate` asks with the same.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.build import BuildReport, build_dataset
from data_pipeline.errors import UserError
from data_pipeline.tasks.documents import Count, Document, make_document
from data_pipeline.tasks.filler import Texts
from data_pipeline.tasks.task import Task
from data_pipeline.tokenizer_choice import make_tokenizer, training_vocab_size

USE = "synthesise"
"""Names the draws of training documents."""
RECORDS = "documents.jsonl"
WEIGHTS_KEY = "loss_weights"


def documents_of(
    tasks: Sequence[Task],
    texts: Texts | None,
    lengths: Sequence[int],
    depths: Sequence[float] | None,
    documents: int,
    seed: int,
    count: Count,
) -> Iterator[Document]:
    """Documents of several tasks, lengths and depths, as many of each as of any other, in turn.

    Args:
        tasks: What they tell and ask.
        texts: What stands between the facts.
        lengths: In tokens, see `make_document`.
        depths: See `make_document`; None: drawn uniformly.
        documents: How many in all.
        seed: Names them.
        count: Tokens of a text.
    """
    places: Sequence[float | None] = depths or [None]
    kinds = [(task, length, depth) for depth in places for length in lengths for task in tasks]
    for number in range(documents):
        task, length, depth = kinds[number % len(kinds)]
        yield make_document(task, texts, length, depth, seed, number, USE, count)


def record_of(document: Document) -> dict[str, Any]:
    """A document as a record of a source, its answers marked."""
    ranges = [[answer.start, answer.end, 1.0] for answer in document.answers]
    return {"text": document.text, "id": document.name, WEIGHTS_KEY: ranges}


def synthesise(
    tasks: Sequence[Task],
    out: str | Path,
    *,
    texts: Texts | None,
    lengths: Sequence[int],
    documents: int,
    depths: Sequence[float] | None = None,
    seed: int = 0,
    tokenizer: str = "bytes",
    progress: Callable[[int], None] | None = None,
    **build: Any,
) -> BuildReport:
    """Builds a data set of documents of tasks at `out`, complete or not at all.

    Args:
        tasks: See `documents_of`.
        out: See `build_dataset`.
        texts: See `documents_of`.
        lengths: See `documents_of`.
        documents: See `documents_of`.
        depths: See `documents_of`.
        seed: See `documents_of`.
        tokenizer: As of `build_dataset`, but one that is there: lengths are counted with it.
        progress: Told after each document how many are made.
        build: Further arguments of `build_dataset`.

    Raises:
        UserError: A setting does not fit, or `build_dataset` raises it.
    """
    if training_vocab_size(tokenizer) is not None:
        raise UserError(f"--tokenizer {tokenizer}: lengths are counted with it: give bytes, bpe:FILE or hf:FILE")
    chosen, target = make_tokenizer(tokenizer), Path(out)

    def count(text: str) -> int:
        return len(chosen.encode(text))

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
            source = Path(folder) / RECORDS
            with source.open("w", encoding="utf-8") as file:
                made = documents_of(tasks, texts, lengths, depths, documents, seed, count)
                for number, document in enumerate(made, start=1):
                    file.write(json.dumps(record_of(document), ensure_ascii=False) + "\n")
                    if progress:
                        progress(number)
            return build_dataset([source], target, tokenizer=tokenizer, loss_weights_key=WEIGHTS_KEY, **build)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", exit_code=1) from error
