# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Long documents as bytes - books, Python packages, files of your own - cut into excerpts, some documents held out."""

import dataclasses
import functools
import gzip
import hashlib
import itertools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.reader import Reader, State, losses_of
from benchmarks.tasks.text import BOOKS
from benchmarks.training import Rollout, chunks

HELD_OUT_BOOKS = ("austen_persuasion", "shakespeare_winters_tale", "shakespeare_hamlet")
HELD_OUT_EVERY = 8  # of other documents
LEAST_BYTES, MOST_BYTES = 50_000, 3_000_000  # of a document; a longer one is cut, so that none is most of the data


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents, uint8 each: those that are trained on, and others."""

    name: str
    trained: list[np.ndarray]
    held_out: list[np.ndarray]

    @functools.cached_property
    def digest(self) -> str:
        """Of all documents in their order, 12 hex digits: which packages are installed differs from day to day."""
        whole = hashlib.sha256()
        for text in itertools.chain(self.trained, self.held_out):
            whole.update(hashlib.sha256(text).digest())
        return whole.hexdigest()[:12]


@functools.cache
def texts(source: str) -> Texts:
    """Documents of a source.

    Args:
        source: "books": those of corpora/books. "packages": the Python packages beside this interpreter's, the code of
            one a document. Otherwise a directory: its packages where it holds any, else its *.txt and *.txt.gz files.

    Raises:
        SystemExit: There are too few documents.
    """
    if source == "books":
        paths = sorted(BOOKS.glob("*.txt.gz"))
        held = [path.name.startswith(HELD_OUT_BOOKS) for path in paths]
        documents = [np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8) for path in paths]
        return _divided("the books of corpora/books", documents, held)
    directory = Path(sysconfig.get_paths()["purelib"]) if source == "packages" else Path(source)
    found = [document for document in _packages(directory) or _files(directory) if len(document) >= LEAST_BYTES]
    if len(found) < HELD_OUT_EVERY:
        raise SystemExit(
            f"--documents {source}: {len(found)} documents of at least {LEAST_BYTES:,} bytes in {directory}; "
            f"{HELD_OUT_EVERY} are needed (Python packages, *.txt or *.txt.gz)"
        )
    name = "installed Python packages" if source == "packages" else directory.name
    return _divided(name, found, [number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 for number in range(len(found))])


def _divided(name: str, documents: list[np.ndarray], held: list[bool]) -> Texts:
    chosen = list(zip(documents, held, strict=True))
    return Texts(name, [text for text, out in chosen if not out], [text for text, out in chosen if out])


def _packages(directory: Path) -> list[np.ndarray]:
    """The modules of a package one behind another, each after a line with its name."""
    documents = []
    for package in sorted(path.parent for path in directory.glob("*/__init__.py")):
        code = bytearray()
        for file in sorted(package.rglob("*.py")):
            if len(code) < MOST_BYTES:
                code += f"# {file.relative_to(directory)}\n".encode() + file.read_bytes() + b"\n"
        documents.append(np.frombuffer(bytes(code[:MOST_BYTES]), dtype=np.uint8))
    return documents


def _files(directory: Path) -> list[np.ndarray]:
    """Text files, gzipped or not."""
    documents = []
    for path in sorted([*directory.glob("*.txt"), *directory.glob("*.txt.gz")]):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        documents.append(np.frombuffer(text[:MOST_BYTES], dtype=np.uint8))
    return documents


def excerpts(documents: list[np.ndarray], count: int, length: int, random: np.random.Generator) -> torch.Tensor:
    """Excerpts of `length` bytes from random places, longer documents more often, int64 [count, length]."""
    sizes = np.array([max(0, len(text) - length) for text in documents])
    if not sizes.any():
        raise SystemExit(f"no document is longer than an excerpt of {length:,} bytes: choose shorter excerpts")
    chosen = random.choice(len(documents), size=count, p=sizes / sizes.sum())
    parts = [documents[i][at : at + length] for i, at in ((i, int(random.integers(sizes[i]))) for i in chosen)]
    return torch.from_numpy(np.stack(parts).astype(np.int64))


def rollouts(
    documents: list[np.ndarray], lanes: int, length: int, num_segments: int, segment_length: int, seed: int
) -> Iterator[Rollout]:
    """Endless rollouts of `num_segments`; a batch of excerpts of `length` bytes is read to its end."""
    random = np.random.default_rng(seed)
    while True:
        yield from chunks(excerpts(documents, lanes, length, random), num_segments, segment_length)


@torch.no_grad()
def losses_by_excerpt(reader: Reader, tokens_BL: torch.Tensor, segment_length: int) -> tuple[torch.Tensor, State]:
    """Mean loss of each segment of each excerpt in nats, [B, segments], and the last state."""
    state, means = None, []
    for segment in tokens_BL.split(segment_length, dim=1):
        logits, state = reader.read(segment, state)
        means.append(losses_of(logits, segment).mean(1))
    return torch.stack(means, 1), state


def losses_by_segment(reader: Reader, tokens_BL: torch.Tensor, segment_length: int) -> tuple[torch.Tensor, State]:
    """Mean loss of each segment in nats, [segments], and the last state."""
    found, state = losses_by_excerpt(reader, tokens_BL, segment_length)
    return found.mean(0), state
