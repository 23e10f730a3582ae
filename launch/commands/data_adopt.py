# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer data adopt`: makes a data set of tokens that others wrote, where they lie."""

import argparse
from pathlib import Path

from data_pipeline.adopt import adopt
from data_pipeline.manifest import Manifest
from data_pipeline.token_types import TYPES

SUMMARY = (
    "Makes a data set of tokens that others wrote, where they lie: MDS shards, Megatron's .bin and .idx, OLMo's .npy, "
    "datatrove's .ds, plain rows of ids. Parquet with lists of ids is copied."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE, the vocabulary, and what files may not tell of themselves."""
    add, unset = parser.add_argument, argparse.SUPPRESS
    add(
        "data",
        metavar="SOURCE",
        help="directory of MDS shards (with index.json), of .bin with .idx, .ds with .ds.index, .npy with .csv.gz, or "
        ".parquet; or one such file",
    )
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument(
        "--tokenizer", metavar="bytes|bpe:FILE|hf:FILE", default=unset, help="what the tokens were made with"
    )
    vocabulary.add_argument(
        "--vocab-size",
        metavar="N",
        type=int,
        default=unset,
        help="where the tokenizer is not at hand: the number of its ids; a model of them reads and writes numbers",
    )
    add(
        "--out",
        metavar="DIR",
        default=unset,
        help="directory to make, with links to the files, or copies of Parquet (default: the manifest is written into "
        "SOURCE)",
    )
    add("--column", default=unset, help="column of the ids (default: tokens in MDS, input_ids in Parquet)")
    add("--name-column", metavar="COLUMN", default=unset, help="column that names documents for people")
    add(
        "--dtype",
        choices=list(TYPES),
        default=unset,
        help="type of an id, where the files do not tell it (default: the one that gives ids of the vocabulary)",
    )
    add(
        "--eos",
        metavar="ID",
        type=int,
        default=unset,
        help="the id that ends each document, for .npy and .bin files with nothing beside them that tells their ends",
    )


def run(arguments: argparse.Namespace) -> tuple[Path, Manifest]:
    """Adopts, and says what was found; the data set's directory and manifest."""
    given = vars(arguments)
    names = ("tokenizer", "vocab_size", "out", "column", "name_column", "dtype", "eos")
    manifest = adopt(arguments.data, **{name: given.get(name) for name in names})
    root = Path(given.get("out", arguments.data))
    print(
        f"{root}: {manifest.documents:,} documents, {manifest.tokens:,} tokens, {len(manifest.shards)} shards, "
        f"ids of {8 * int(manifest.token_dtype[2:])} bits"
    )
    if manifest.dropped_documents:
        print(f"{manifest.dropped_documents:,} documents without a token were left out")
    outside = manifest.settings.get("tokens_outside_documents", 0)
    if outside:
        print(f"{outside:,} tokens that belong to no document were left out")
    return root, manifest
