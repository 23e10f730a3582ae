# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer data synthesise`: a data set of documents that tell something once and ask for it further on."""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.build import BuildReport
from data_pipeline.errors import UserError
from data_pipeline.shards import WRITERS
from data_pipeline.tasks.catalogue import described, parse_depths, parse_lengths, parse_tasks
from data_pipeline.tasks.filler import texts_for
from data_pipeline.tasks.synthesis import synthesise
from launch.progress import Progress

SUMMARY = "Makes a data set to train on: documents that tell something once and ask for it further on, answers marked."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """TASK, which documents, and how they are stored."""
    add, unset = parser.add_argument, argparse.SUPPRESS
    add("tasks", metavar="TASK,...", help="tasks with their settings, such as needle:digits=1:keys=4,copy; see below")
    add("--lengths", metavar="N,...", required=True, default=unset, help="tokens of a document, as 160, 4k, 1M")
    add(
        "--documents",
        metavar="N",
        type=int,
        required=True,
        default=unset,
        help="documents in all, in turn of each kind",
    )
    add("--out", metavar="DIR", required=True, default=unset, help="directory to make")
    add(
        "--depths",
        metavar="X,...",
        default=unset,
        help="share of a document before its first fact (default: any, drawn uniformly)",
    )
    add("--seed", metavar="N", type=int, default=0, help="names the documents")
    add(
        "--text",
        metavar="SOURCE",
        nargs="+",
        default=unset,
        help="texts that facts are hidden in, of the kinds that `data build` takes (default: the books of the project)",
    )
    add(
        "--tokenizer",
        metavar="bytes|bpe:FILE|hf:FILE",
        default="bytes",
        help="as of data build; lengths are its tokens",
    )
    add("--format", choices=list(WRITERS), default="webdataset", help="storage format of the shards")
    add("--shard-megabytes", metavar="MB", type=float, default=128.0, help="largest size of a shard, in 10^6 bytes")
    add(
        "--validation-fraction",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="share of the text held out, in whole documents, as of data build",
    )
    add("--overwrite", action="store_true", help="replace a data set in DIR when the new one is complete")
    parser.epilog = described()


def run(arguments: argparse.Namespace) -> BuildReport:
    """Makes the documents and builds the data set.

    Raises:
        UserError: A setting does not fit, or DIR cannot be made.
    """
    tasks, lengths = parse_tasks(arguments.tasks), parse_lengths(arguments.lengths)
    depths = parse_depths(arguments.depths) if "depths" in arguments else None
    if arguments.documents < 1:
        raise UserError(f"--documents is {arguments.documents}: give 1 or more")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}: give 0 or more")
    texts = texts_for(tasks, lengths, getattr(arguments, "text", ()))
    settings: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("tokenizer", "format", "shard_megabytes", "validation_fraction", "overwrite")
    }
    with Progress() as progress:
        return synthesise(
            tasks,
            Path(arguments.out),
            texts=texts,
            lengths=lengths,
            depths=depths,
            documents=arguments.documents,
            seed=arguments.seed,
            progress=lambda made: progress.count("making", made, arguments.documents, "documents"),
            **settings,
        )
