# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What benchmarks/data.py compares with: a flat file, and lanes filled from webdataset, streaming and wids.

Lanes of the peers read documents in the order of the shards, without a shuffle, a plan, a state or a checksum.
"""

import functools
import itertools
import json
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline import DocumentIndex
from tests.data_pipeline.streaming_library import import_streaming


def flat_batches(path: Path, lanes: int, width: int) -> Iterator[torch.Tensor]:
    """Slices of one file in memory, one copy a lane."""
    with path.open("rb") as file:
        tokens = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "<u2")
    share = len(tokens) // lanes
    for number in itertools.count():
        batch = np.empty((lanes, width), np.int32)
        at = number * width % (share - width)
        for lane in range(lanes):
            start = lane * share + at
            batch[lane] = tokens[start : start + width]
        yield torch.from_numpy(batch)


def flat_slices(path: Path, lengths: Sequence[int], lanes: int, width: int) -> Iterator[torch.Tensor]:
    """Slices of one file in memory, each as long as a document, one copy and some padding a lane."""
    with path.open("rb") as file:
        tokens = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "<u2")
    places, at = itertools.cycle(lengths), 0
    while True:
        batch = np.zeros((lanes, width), np.int32)
        for lane, length in zip(range(lanes), places, strict=False):
            at = (at + 7919 * width) % (len(tokens) - width)  # the next document lies elsewhere
            batch[lane, :length] = tokens[at : at + length]
        yield torch.from_numpy(batch)


def pread_batches(path: Path, lanes: int, width: int) -> Iterator[torch.Tensor]:
    """The same slices by a system call a lane, which a file that is cut short cannot kill."""
    share = path.stat().st_size // 2 // lanes
    stored = np.empty((lanes, width), "<u2")
    output = memoryview(stored.reshape(-1).data).cast("B")
    with path.open("rb") as file:
        for number in itertools.count():
            at = number * width % (share - width)
            for lane in range(lanes):
                here = output[2 * lane * width : 2 * (lane + 1) * width]
                os.preadv(file.fileno(), (here,), 2 * (lane * share + at))
            yield torch.from_numpy(stored.astype(np.int32))


def lanes_from(documents: Iterator[np.ndarray], lanes: int, width: int) -> Iterator[torch.Tensor]:
    """Fills lanes from an iterator of documents; a lane whose document ends takes the next."""
    current = [next(documents) for _ in range(lanes)]
    at = [0] * lanes
    while True:
        batch = np.empty((lanes, width), np.int32)
        for lane in range(lanes):
            place = 0
            while place < width:
                piece = current[lane][at[lane] : at[lane] + width - place]
                batch[lane, place : place + len(piece)] = piece
                place, at[lane] = place + len(piece), at[lane] + len(piece)
                if at[lane] == len(current[lane]):
                    current[lane], at[lane] = next(documents), 0
        yield torch.from_numpy(batch)


def wds_documents(directory: Path) -> Iterator[np.ndarray]:
    """Documents through webdataset's own iterator, epoch after epoch."""
    import webdataset

    while True:
        shards = sorted(str(path) for path in directory.glob("*.tar"))
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            yield np.frombuffer(sample["tokens"], "<u2")


@functools.cache
def _streaming_dataset(directory: Path) -> Any:
    logging.getLogger("streaming").setLevel(logging.ERROR)
    return import_streaming().StreamingDataset(local=str(directory), shuffle=False, batch_size=1)


def streaming_documents(directory: Path) -> Iterator[np.ndarray]:
    """Documents through StreamingDataset's own iterator, epoch after epoch."""
    while True:
        for sample in _streaming_dataset(directory):
            yield np.frombuffer(sample["tokens"], "<u2")


def streaming_item(directory: Path, lanes: int, width: int) -> Iterator[torch.Tensor]:
    """A document fetched by its number for each lane and batch."""
    dataset = _streaming_dataset(directory)
    return _by_access(lambda number: np.frombuffer(dataset[number]["tokens"], "<u2"), directory, lanes, width)


def wids_item(directory: Path, lanes: int, width: int) -> Iterator[torch.Tensor]:
    """The same through wids, whose shards are mapped into memory."""
    import wids

    index = DocumentIndex.load(directory)
    shards = [{"url": str(directory / shard.name), "nsamples": shard.documents} for shard in index.manifest.shards]
    description = directory.parent / "wids.json"
    description.write_text(json.dumps({"wids_version": 1, "shardlist": shards}))
    dataset = wids.ShardListDataset(str(description), keep=True, transformations=[])
    return _by_access(lambda number: np.frombuffer(dataset[number][".tokens"].read(), "<u2"), directory, lanes, width)


def _by_access(
    document: Callable[[int], np.ndarray], directory: Path, lanes: int, width: int
) -> Iterator[torch.Tensor]:
    lengths = DocumentIndex.load(directory).lengths.tolist()
    queue = itertools.cycle(number for number, length in enumerate(lengths) if length > width)
    current, at = [next(queue) for _ in range(lanes)], [0] * lanes
    while True:
        batch = np.empty((lanes, width), np.int32)
        for lane in range(lanes):
            if at[lane] + width > lengths[current[lane]]:
                current[lane], at[lane] = next(queue), 0
            batch[lane] = document(current[lane])[at[lane] : at[lane] + width]
            at[lane] += width
        yield torch.from_numpy(batch)
