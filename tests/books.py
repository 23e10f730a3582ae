# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Small data sets of real text for tests, from the books that ship with the project."""

import gzip
from pathlib import Path

from data_pipeline import build_dataset

TINY_MODEL = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_model": 32,
    "num_heads": 2,
    "d_ff": 64,
    "num_memory_slots": 4,
}
"""A model of a few ten thousand parameters, as the section `model` of a configuration."""

BOOKS = Path(__file__).parents[1] / "corpora" / "books"


def book_text(characters: int, skip: int = 20_000) -> str:
    """A piece from the middle of the first book."""
    first = sorted(BOOKS.glob("*.txt.gz"))[0]
    with gzip.open(first, "rt", encoding="utf-8") as file:
        return file.read(skip + characters)[skip:]


def small_dataset(directory: Path, documents: int = 6, characters: int = 6_000, tokenizer: str = "bytes") -> Path:
    """A data set with train/ and validation/ of a few documents of uneven length; returns its directory."""
    sources = directory / "text"
    sources.mkdir(parents=True)
    for number in range(documents):
        text = book_text(characters - 701 * number, skip=20_000 + 30_000 * number)
        (sources / f"document-{number}.txt").write_text(text, encoding="utf-8")
    build_dataset([sources], directory / "data", tokenizer=tokenizer, validation_fraction=0.3)
    return directory / "data"
